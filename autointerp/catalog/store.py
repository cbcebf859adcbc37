"""Find a catalogue name's folder in the cache; what is not there is fetched, converted and kept.

An entry is there when its folder has a ``catalog.json`` with the pinned hashes. The folder is made
under another name and renamed when complete, so a process killed at any time leaves nothing that
counts; one process at a time makes an entry, the others wait for it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from autointerp.catalog import convert, fetch
from autointerp.catalog.entries import ENTRIES, Entry, Kind
from autointerp.errors import ConfigError
from autointerp.registry import did_you_mean
from autointerp.resources import cache_dir

NOT_IN_KEYS = "a key holds the hash of what is fetched"

log = logging.getLogger("autointerp")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
MARK = "catalog.json"


def entries(kind: Kind | None = None) -> dict[str, Entry]:
    """The catalogue by name, or its entries of one kind."""
    return {name: entry for name, entry in ENTRIES.items() if kind is None or entry.kind == kind}


def location(entry: Entry) -> Path:
    """Where the entry is or will be: a folder, and for text the JSON lines file in it."""
    if entry.kind != "text":
        return cache_dir() / "models" / entry.name
    return cache_dir() / "text" / entry.name / f"{entry.name}.jsonl"


def _folder(entry: Entry) -> Path:
    place = location(entry)
    return place.parent if entry.kind == "text" else place


def is_cached(name: str) -> bool:
    """Whether resolving this name of the catalogue needs no download. Sampled text is made as it is asked for."""
    entry = ENTRIES[name]
    if entry.sampled_from:
        return is_cached(entry.sampled_from)
    try:
        mark = json.loads((_folder(entry) / MARK).read_text())
    except (OSError, ValueError):
        return False
    return mark.get("sha256") == dict(entry.payload)


def resolve(name_or_id_or_path: str, kind: Kind, *, revision: str | None = None) -> Path:
    """The local folder (for text the file) of a catalogue name, a hub id or a local path, fetched if need be.

    `revision` is a hub revision; ``org/name@revision`` says the same. Raises ConfigError for a name
    that is none of the three, AutointerpError where no source gives what was asked for.
    """
    name = name_or_id_or_path
    check_name(name, kind)
    if name in ENTRIES:
        return ensure(ENTRIES[name])
    path = Path(name).expanduser()
    if path.exists():
        return path
    repository, _, named = name.partition("@")
    return fetch.hub_folder(repository, named or revision)


def check_name(name: str, kind: Kind) -> None:
    """Raise ConfigError for a name that `resolve` refuses; nothing is fetched."""
    if name in ENTRIES:
        entry = ENTRIES[name]
        if entry.kind != kind:
            raise ConfigError(f"{name!r} is the catalogue's name of a {entry.kind}, not of a {kind}")
        if entry.sampled_from:
            raise ConfigError(f"{name!r} is made to measure: ask autointerp.catalog.sampled_text with tokens and seed")
        return
    path = Path(name).expanduser()
    if path.exists():
        if kind != "text" and not (path / "config.json").is_file():
            raise ConfigError(f"{name!r} is no model folder: it has no config.json")
        return
    if HUB_ID.fullmatch(name):
        if kind == "text":
            raise ConfigError(f"{name!r} is no local file; hub datasets are read by corpus.source")
        return
    if "/" in name or "\\" in name:
        raise ConfigError(f"no {kind} at {name!r}: there is no such file or folder")
    raise ConfigError(f"no {kind} named {name!r}{did_you_mean(name, entries(kind))}")


def cached_folder(name_or_path: str) -> Path | None:
    """Where a model of the catalogue or a local folder lies, if it is on this machine already."""
    if name_or_path in ENTRIES:
        return location(ENTRIES[name_or_path]) if is_cached(name_or_path) else None
    path = Path(name_or_path).expanduser()
    return path if (path / "config.json").is_file() else None


def ensure(entry: Entry) -> Path:
    """Fetch and convert the entry unless it is there, and say where it is."""
    from filelock import FileLock

    if is_cached(entry.name):
        return location(entry)
    final = _folder(entry)
    with fetch.disk_full_said(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(final.parent / f".{entry.name}.lock"):
            if not is_cached(entry.name):  # another process may have made it while this one waited
                _make(entry, final)
    return location(entry)


def _make(entry: Entry, final: Path) -> None:
    work, made = final.parent / f".{entry.name}.fetch", final.parent / f".{entry.name}.made"
    work.mkdir(exist_ok=True)
    for scratch in work.glob("tmp*"):  # of a killed process; this one holds the lock
        shutil.rmtree(scratch)
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    try:
        payload, source = fetch.fetch_payload(entry, work)
        log.info("converting %s", entry.name)
        getattr(convert, entry.convert)(payload, made)
        mark = {
            "name": entry.name,
            "source": source,
            "sha256": dict(entry.payload),
            "licence": entry.licence,
            "about": entry.about,
        }
        for path in made.rglob("*"):
            if path.is_file():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        (made / MARK).write_text(json.dumps(mark, indent=2))
        shutil.rmtree(final, ignore_errors=True)  # of an earlier pin
        os.replace(made, final)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    shutil.rmtree(work)


def models_table() -> list[dict[str, Any]]:
    """A row for each entry: name, kind, about, cached, size (bytes to download), licence, sources, path."""
    return [
        {
            "name": entry.name,
            "kind": entry.kind,
            "about": entry.about,
            "cached": is_cached(entry.name),
            "size": entry.size,
            "licence": entry.licence,
            "sources": [f"sampled from {entry.sampled_from}"]
            if entry.sampled_from
            else [str(s) for s in entry.sources],
            "path": str(_folder(entry)),
        }
        for entry in ENTRIES.values()
    ]
