"""The mirror of a store: finished artifacts at a URL, for machines that share no disk.

1. An artifact is ``URL/STAGE/KEY/``: its files under the names of their sha256, and its manifest, which goes last. So a
   torn upload is no artifact, what went over before a kill need not go again, and two machines that send the same
   artifact at once cannot mix theirs.
2. A look costs one request, for the manifest. It holds for a minute, also where there was none.
3. Files come when a stage reads them, and go in a thread of their own. Both are compared with the manifest's hashes.
4. Nothing here ends a run: what fails is one line of the log, and the mirror rests for a while.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from autointerp.engine.remote import Remote, Unreachable, side_by_side
from autointerp.engine.store import MANIFEST
from autointerp.errors import ConfigError
from autointerp.hashing import read_sha256
from autointerp.resources import cache_dir, mirror_url

NOT_IN_KEYS = "it keeps what a stage wrote as it was written"

log = logging.getLogger("autointerp")

T = TypeVar("T")
How = Literal["read", "written"]

HOLDS = 60.0  # seconds for which a look at the mirror holds
REST = 600.0  # seconds for which a mirror that failed is left alone
PROBE, PROBED = "README.txt", b"A mirror of autointerp's store, which AUTOINTERP_MIRROR names.\n"
OTHERWISE: Mapping[How, str] = {
    "read": "the run goes on without it",
    "written": "what is made stays here, and a later run sends it",
}


class Unfit(Exception):
    """An artifact of the mirror that cannot be taken, and why."""


class Mirror:
    """What lies at a URL, as this process knows it. Threads share it."""

    def __init__(self, url: str, now: Callable[[], float] = time.monotonic) -> None:
        self.remote, self._now = Remote(url), now
        self._looks: dict[str, tuple[float, bytes | None]] = {}  # artifact -> when, and its manifest
        self._refused: set[str] = set()  # artifacts that this process does not take
        self._rests: dict[How, tuple[float, str]] = {}  # until when, and why
        self._sender = ThreadPoolExecutor(1, "autointerp-mirror")

    # --- reading

    def look(self, artifact: str) -> bytes | None:
        """The manifest of ``STAGE/KEY``; None where there is none, it is refused, or the mirror cannot be read."""
        if artifact in self._refused:
            return None
        then, manifest = self._looks.get(artifact, (float("-inf"), None))
        if self._now() - then >= HOLDS:
            manifest = self._tried("read", lambda: self.remote.read(f"{artifact}/{MANIFEST}"), None)
            self._looks[artifact] = self._now(), manifest
        return manifest

    def refuse(self, artifact: str) -> None:
        """This process looks for the artifact no more."""
        self._refused.add(artifact)

    def fetch(self, artifact: str, files: Mapping[str, str], folder: Path) -> None:
        """Write an artifact's files (name -> sha256) into `folder`; those that lie there already stay.

        Raises Unfit where one of them cannot be had; the artifact is refused from then on.
        """
        try:
            for name in map(PurePosixPath, files):
                if name.is_absolute() or ".." in name.parts:
                    raise Unfit(f"its manifest names a file elsewhere, {name}")
            side_by_side(lambda item: self._fetch(artifact, folder / item[0], item[1]), files.items())
        except Unfit:
            self.refuse(artifact)
            raise

    def _fetch(self, artifact: str, file: Path, sha256: str) -> None:
        if file.is_file() and read_sha256(file) == sha256:  # of an earlier try
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        name = f"{artifact}/{sha256}"

        def got() -> bool:
            self.remote.get(name, file)
            return True

        try:
            for _ in range(2):  # the byte may have been lost on the way
                if not self._tried("read", got, False):
                    raise Unfit(f"the mirror cannot be read: {self.rests('read')}")
                if read_sha256(file) == sha256:
                    return
        except FileNotFoundError:
            raise Unfit(f"{file.name} is not there") from None
        file.unlink()
        self._tried("written", lambda: self.remote.remove(name), None)  # so that who makes it again sends it again
        raise Unfit(f"{file.name} is damaged there")

    # --- writing

    def later(self, work: Callable[[], T]) -> Future[T]:
        """Do `work` in the thread that sends."""
        return self._sender.submit(work)

    def send(self, artifact: str, files: Mapping[str, Path], manifest: bytes) -> int | None:
        """Send what the mirror lacks of an artifact: its files (by sha256), and then its manifest. Returns the bytes
        that went over, None where the mirror does not take them."""

        def sent() -> int:
            there = self.remote.listed(artifact)
            sizes = {sha256: file.stat().st_size for sha256, file in files.items()}
            lacking = [sha256 for sha256, size in sizes.items() if sha256 not in there or there[sha256].size != size]
            side_by_side(lambda sha256: self.remote.put(files[sha256], f"{artifact}/{sha256}"), lacking)
            if MANIFEST not in there or self.remote.read(f"{artifact}/{MANIFEST}") != manifest:
                self.remote.write(f"{artifact}/{MANIFEST}", manifest)
            self._looks[artifact] = self._now(), manifest
            return sum(sizes[sha256] for sha256 in lacking)

        return self._tried("written", sent, None)

    # --- what is wrong with it

    def check_driver(self) -> None:
        """Raises ConfigError where there is none for the URL. Some connect when they begin."""
        self._tried("read", self.remote.check_driver, None)

    def trouble(self, *, probe: bool) -> str | None:
        """Why the mirror cannot be used, None where it can be read and, with `probe`, written: a small file is."""
        uses: dict[How, Callable[[], Any]] = {"read": lambda: self.remote.read(PROBE)}
        if probe:
            uses["written"] = lambda: self.remote.read(PROBE) or self.remote.write(PROBE, PROBED)
        for how, use in uses.items():
            self._tried(how, use, None)
            if (why := self.rests(how)) is not None:
                return f"{self.remote.shown} cannot be {how} ({why}): {OTHERWISE[how]}"
        return None

    def rests(self, how: How) -> str | None:
        """Why the mirror is left alone for a while, None where it is not. One that cannot be read is not written."""
        for failed in ("read", how):
            until, why = self._rests.get(failed, (float("-inf"), ""))
            if self._now() < until:
                return why
        return None

    def _tried(self, how: How, use: Callable[[], T], otherwise: T) -> T:
        """What `use` returns; `otherwise` where the mirror fails or rests."""
        if self.rests(how) is not None:
            return otherwise
        try:
            return use()
        except Unreachable as error:
            told, self._rests[how] = self.rests(how), (self._now() + REST, str(error))
            if told is None:  # by another thread
                log.warning("the mirror %s cannot be %s (%s): %s", self.remote.shown, how, error, OTHERWISE[how])
            return otherwise


@cache
def mirror_at(url: str) -> Mirror:
    return Mirror(url)


def mirror() -> Mirror | None:
    """The one that $AUTOINTERP_MIRROR names, the same for the whole process; None without. Raises ConfigError where
    there is no driver for its URL, or it is this machine's store."""
    url = mirror_url()
    if url is None:
        return None
    named, store = mirror_at(url), Path(os.path.abspath(cache_dir() / "store"))
    if named.remote.local is not None and named.remote.local.is_relative_to(store):
        raise ConfigError(f"AUTOINTERP_MIRROR: {named.remote.shown} lies in the store that it is to mirror, {store}")
    try:
        named.check_driver()
    except ConfigError as error:
        raise ConfigError(f"AUTOINTERP_MIRROR: {error}") from None
    return named
