"""A store with a mirror: what lies in the mirror alone is done too, and what is made here goes there.

1. `find` looks at the manifest in the mirror; no file comes for it.
2. `bring` fetches the files into ``KEY.coming``, compares their hashes, and renames the folder, under the artifact's
   lock. What cannot be taken is made here.
3. `share` sends in a thread, and `sharing` waits at its end.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

from autointerp.artifacts import write_atomically
from autointerp.engine.mirror import Mirror, Unfit, mirror
from autointerp.engine.store import MANIFEST, Manifest, Store, artifact_name, parsed, text_of
from autointerp.resources import cache_dir

NOT_IN_KEYS = "it keeps what a stage wrote as it was written"

log = logging.getLogger("autointerp")


def open_store() -> Store:
    """The artifacts of all runs of a user, so that a second config reuses a first one's harvest; with the mirror that
    $AUTOINTERP_MIRROR names."""
    root, kept_at = cache_dir() / "store", mirror()
    return Store(root) if kept_at is None else MirroredStore(root, kept_at)


class MirroredStore(Store):
    def __init__(self, root: Path, mirror: Mirror) -> None:
        super().__init__(root)
        self._mirror = mirror
        self._going: list[Future[int | None]] = []  # bytes of artifacts on their way; None: it was not taken

    def find(self, stage: str, key: str) -> Manifest | None:
        """The manifest of an artifact that is in the store, or else in the mirror."""
        here, name = super().find(stage, key), artifact_name(stage, key)
        if here is not None or (text := self._mirror.look(name)) is None:
            return here
        there = parsed(text, stage, key)
        if there is None:
            self._mirror.refuse(name)
            log.warning("%s: its manifest in the mirror is damaged: it is made here", stage)
        return there

    def bring(self, manifest: Manifest, *, kept: bool = True) -> bool:
        stage, key = manifest.stage, manifest.key
        if self._is_here(manifest):
            return True
        if not kept:
            self._mirror.refuse(artifact_name(stage, key))
            log.info("%s: a mirror does not keep its files, so they are made again", stage)
            return False
        with self._locked(stage, key) as final:
            if (final / MANIFEST).exists():  # of another process, which fetched it or made its own
                return self._is_here(manifest)
            return self._fetched(manifest, final)

    def _fetched(self, manifest: Manifest, final: Path) -> bool:
        coming = final.with_name(f"{manifest.key}.coming")  # what came before a kill lies there
        coming.mkdir(exist_ok=True)
        try:
            self._mirror.fetch(artifact_name(manifest.stage, manifest.key), manifest.files, coming)
        except Unfit as error:
            log.warning("%s: what the mirror has cannot be taken (%s): it is made here", manifest.stage, error)
            return False
        for path in coming.rglob("*"):
            if path.is_file() and str(path.relative_to(coming)) not in manifest.files:  # of an earlier one of this key
                path.unlink()
        write_atomically(coming / MANIFEST, lambda path: path.write_text(text_of(manifest)))
        self._place(coming, final)
        self._verified[manifest.stage, manifest.key] = manifest.check
        log.info("%s: %s from the mirror", manifest.stage, _size(sum(manifest.sizes.values())))
        return True

    def share(self, manifest: Manifest, *, made: bool = False, kept: bool = True) -> None:
        """In a thread. One that is `made` just now takes the place of the mirror's."""
        if self._is_here(manifest):
            self._going.append(self._mirror.later(lambda: self._sent(manifest, made, kept)))

    def _sent(self, manifest: Manifest, made: bool, kept: bool) -> int | None:
        artifact, folder = artifact_name(manifest.stage, manifest.key), self.folder(manifest.stage, manifest.key)
        if not made and self._mirror.look(artifact) is not None:
            return 0
        if self._mirror.rests("written") is not None:
            return None
        if self.verify(manifest) is not None:  # who reads it sets it aside
            return 0
        files = {sha256: folder / name for name, sha256 in manifest.files.items()} if kept else {}
        try:
            return self._mirror.send(artifact, files, text_of(manifest).encode())
        except FileNotFoundError:  # it was set aside meanwhile
            return 0
        except OSError as error:
            log.warning("%s cannot be read, so it is not sent to the mirror (%s)", manifest.stage, error.strerror)
            return None

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Who stops the run with Ctrl-C does not wait."""
        wait = False
        try:
            yield
            wait = True
        except Exception:
            wait = True
            raise
        finally:
            going, self._going = self._going, []
            if wait:
                _wait(going)
            else:
                for future in going:
                    future.cancel()


def _wait(going: Sequence[Future[int | None]]) -> None:
    if not all(future.done() for future in going):
        log.info("waiting until the mirror has what is new")
    sent = [future.result() for future in going]
    if total := sum(size or 0 for size in sent):
        log.info("%s went to the mirror", _size(total))
    if None in sent:
        log.warning("%d artifacts are not in the mirror: a later run sends them", sent.count(None))


def _size(size: float) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e7 else f"{size / 1e3:,.0f} kB"
