"""A run's folder at a URL: readers and runs have a copy on this machine, and what changed is carried either way.

1. `fetched` brings what changed at the URL since the last time; a copy in which a run works is left as it is.
2. A command that writes a run's folder (`kept_at_url`) fetches it first, works in the copy, and at its end, also where
   it failed, sends what changed; ``run.json`` goes last.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from autointerp.artifacts import write_atomically
from autointerp.engine.remote import Listed, Remote, Unreachable, is_url, side_by_side
from autointerp.errors import AutointerpError
from autointerp.hashing import digest
from autointerp.resources import cache_dir

log = logging.getLogger("autointerp")

P = ParamSpec("P")
T = TypeVar("T")
STATE = ".at-url.json"  # what was carried last: name -> its mark at the URL, its size and time here
JOURNAL = "usage.jsonl"  # what runs alone read
PROBE = ".writable"


def copy_of(url: str) -> Path:
    """The folder on this machine that stands for one at a URL."""
    remote, name = Remote(url), ""
    with suppress(ValueError):  # the driver says what is wrong with the URL
        name = (remote.local or PurePosixPath(urlsplit(remote.url).path)).name  # the rest may hold credentials
    return cache_dir() / "runs" / digest(str(remote.local or remote.url)) / (name if name.strip(".") else "run")


def fetched(url: str, *, journal: bool = False) -> Path:
    """The copy of a folder, as it is at the URL now. `journal`: with what a run needs to go on. Where the URL has
    nothing the copy, if there is one, stays as it is: it may be all that is left.

    Raises AutointerpError where the URL cannot be read, ConfigError where it has no driver.
    """
    remote, folder = Remote(url), copy_of(url)
    try:
        there = remote.listed()
        if not there:
            if (folder / STATE).exists():
                log.warning("%s holds nothing any more: what it had lies in %s", remote.shown, folder)
                (folder / STATE).unlink(missing_ok=True)  # so that the next run sends all of it
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            _fetch(remote, folder, there, journal)
    except Timeout:
        log.info("a run works in %s, the copy of %s", folder, remote.shown)
    except Unreachable as error:
        raise AutointerpError(f"{remote.shown} cannot be read: {error}") from None
    return folder


def kept_at_url(command: Callable[P, T]) -> Callable[P, T]:
    """`command`, whose `out` may be a URL then."""

    @functools.wraps(command)
    def kept(*args: P.args, **options: P.kwargs) -> T:
        out: Any = options.get("out")
        if not is_url(out):
            return command(*args, **options)
        with _sent_to(out):
            return command(*args, **options)

    return kept


@contextmanager
def _sent_to(url: str) -> Iterator[None]:
    remote, folder = Remote(url), fetched(url, journal=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:  # hours before the first result
        remote.write(PROBE, b"")
        remote.remove(PROBE)
    except Unreachable as error:
        raise AutointerpError(f"--out {remote.shown} cannot be written: {error}") from None
    try:
        yield
    except Exception:
        try:
            _send(remote, folder)
        except Unreachable as error:
            log.warning("%s cannot be written (%s): what there is lies in %s", remote.shown, error, folder)
        raise
    try:
        _send(remote, folder)
    except Unreachable as error:
        raise AutointerpError(
            f"{remote.shown} cannot be written ({error}): the results lie in {folder}, run again to send them"
        ) from None


def _fetch(remote: Remote, folder: Path, there: Mapping[str, Listed], journal: bool) -> None:
    before = _state(folder)
    wanted = [name for name, about in there.items() if _new(before, name, about) or not (folder / name).is_file()]
    wanted = [name for name in wanted if _carried(name) and (journal or name != JOURNAL)]
    side_by_side(lambda name: _get(remote, name, folder / name), wanted)
    for name in before.keys() - there.keys():  # removed at the URL since
        (folder / name).unlink(missing_ok=True)
    unchanged = {name: before[name] for name in before.keys() & there.keys() if name not in wanted}
    _remember(folder, unchanged | _carried_now(folder, {name: there[name] for name in wanted}))


def _get(remote: Remote, name: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):  # it went meanwhile
        write_atomically(file, lambda temporary: remote.get(name, temporary))


def _send(remote: Remote, folder: Path) -> None:
    with suppress(Timeout), FileLock(folder / ".lock", timeout=0):  # who holds it sends at its own end
        _send_alone(remote, folder)


def _send_alone(remote: Remote, folder: Path) -> None:
    before = _state(folder)
    here = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    here = {name: path for name, path in here.items() if _carried(name)}
    changed = [name for name, path in here.items() if before.get(name, {}).get("here") != _stamp(path)]
    side_by_side(lambda name: remote.put(here[name], name), [name for name in changed if name != "run.json"])
    side_by_side(remote.remove, [name for name in before if name not in here])
    if "run.json" in changed:
        remote.put(here["run.json"], "run.json")
    _remember(folder, _carried_now(folder, {name: about for name, about in remote.listed().items() if name in here}))
    if changed:
        log.info("%d files went to %s", len(changed), remote.shown)


def _carried(name: str) -> bool:
    """Nothing hidden: locks, what is being written; nothing outside the folder."""
    parts = PurePosixPath(name).parts
    return not name.startswith("/") and not any(part.startswith(".") for part in parts)


def _new(before: Mapping[str, Mapping[str, Any]], name: str, about: Listed) -> bool:
    return before.get(name, {}).get("there") != about.mark


def _stamp(file: Path) -> list[int]:
    status = os.stat(file)
    return [status.st_size, status.st_mtime_ns]


def _state(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads((folder / STATE).read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _carried_now(folder: Path, there: Mapping[str, Listed]) -> dict[str, dict[str, Any]]:
    """Of files that are the same at both ends."""
    files = {name: folder / name for name in there}
    return {n: {"there": there[n].mark, "here": _stamp(file)} for n, file in files.items() if file.is_file()}


def _remember(folder: Path, state: Mapping[str, Mapping[str, Any]]) -> None:
    write_atomically(folder / STATE, lambda path: path.write_text(json.dumps(state)))
