"""The store of artifacts: one folder for each stage and key, whole or absent, checked by hash, damaged ones set aside.

``STORE/STAGE/KEY/`` holds what a stage wrote and ``manifest.json``, written last. Until then the folder
is called ``KEY.partial``: a stage that can go on where it was finds its earlier files there. Nothing
but the manifest decides what is done, and what the manifest says of a file is compared before the file is read.
`engine.mirrored` is a store whose artifacts are kept at a URL too.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from autointerp.artifacts import write_atomically
from autointerp.hashing import digest, read_sha256

NOT_IN_KEYS = "it keeps what a stage wrote as it was written"

log = logging.getLogger("autointerp")

LOG = "log"  # files in this subfolder of an artifact are kept but are no part of its content
RECORDS = ".shards"  # those in this one say which shards are done (`engine.executor`), until the artifact is whole
LONGEST = 240  # bytes of a stage's folder name; three labels and a branch may come to more
MANIFEST = "manifest.json"
KEPT_ASIDE = ".damaged"  # the end of the name of a folder that was found damaged


@dataclass(frozen=True)
class Manifest:
    stage: str
    key: str
    content: str  # hash of the files' hashes; what stages downstream depend on
    files: Mapping[str, str]  # relative path -> sha256
    seconds: float
    to_retry: int = 0  # items that failed for a reason that may pass; a later run tries the stage again
    facts: Mapping[str, Any] = field(default_factory=dict)  # small numbers for run.json
    sizes: Mapping[str, int] = field(default_factory=dict)  # relative path -> bytes
    parts: Mapping[str, str] = field(default_factory=dict)  # what the key was made of, by name
    check: str = ""  # hash of all the above


class Store:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._verified: dict[tuple[str, str], str] = {}  # of stage and key the manifest whose files this process hashed

    def folder(self, stage: str, key: str) -> Path:
        return self.root / artifact_name(stage, key)

    def find(self, stage: str, key: str) -> Manifest | None:
        """The manifest of an artifact that is there. One with a wrong manifest or wrong file sizes is set aside."""
        folder = self.folder(stage, key)
        if (text := _read(folder)) is None:
            return None
        manifest, wrong = _looked_at(folder, text, stage, key)
        if wrong is None:
            return manifest
        if _read(folder) != text:  # another process has put its own there meanwhile
            return self.find(stage, key)
        return self.set_aside(stage, key, wrong)

    def begun(self, stage: str, key: str) -> bool:
        return self.folder(stage, key).with_name(f"{key}.partial").exists()

    def verify(self, manifest: Manifest) -> str | None:
        """What is wrong with an artifact's files, None where each has the hash of the manifest.

        Every file is hashed once a process, whatever its age: memory and disks flip bits without touching a file's
        time.
        """
        if self._verified.get((manifest.stage, manifest.key)) == manifest.check:
            return None
        folder = self.folder(manifest.stage, manifest.key)
        for name, sha256 in manifest.files.items():
            try:
                if read_sha256(folder / name) != sha256:
                    return f"{name} has changed"
            except OSError as error:
                return f"{name} cannot be read ({error.strerror})"
        self._verified[manifest.stage, manifest.key] = manifest.check
        return None

    def set_aside(self, stage: str, key: str, wrong: str) -> None:
        """Move an artifact out of the way, with one line that says why; it is then made again."""
        self._verified.pop((stage, key), None)
        folder = self.folder(stage, key)
        aside = folder.with_name(f"{key}{KEPT_ASIDE}")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            folder.rename(aside)
        except FileNotFoundError:  # another process was first
            return
        log.warning("%s: %s is damaged (%s): set aside as %s, made again", stage, folder.name, wrong, aside.name)

    def bring(self, manifest: Manifest, *, kept: bool = True) -> bool:
        """Whether this very artifact lies in the store now: another process may have put its own in the place of one
        with something to retry. One of a mirror is fetched. `kept`: a mirror has the files of such artifacts, beside
        their manifests."""
        return self._is_here(manifest)

    def _is_here(self, manifest: Manifest) -> bool:
        here = Store.find(self, manifest.stage, manifest.key)
        return here is not None and here.check == manifest.check

    def share(self, manifest: Manifest, *, made: bool = False, kept: bool = True) -> None:
        """Send an artifact to the mirror where there is one that lacks it. `made`: just now."""

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Inside, artifacts are shared; at the end they have arrived."""
        yield

    @contextmanager
    def writing(self, stage: str, key: str, *, resumable: bool) -> Iterator[Path]:
        """The folder to write into. One process at a time; others wait and then find it done, as is what a process left
        that was killed between the manifest and the renaming."""
        with self._locked(stage, key) as final:
            partial = final.with_name(f"{key}.partial")
            if (text := _read(partial)) is not None and _looked_at(partial, text, stage, key)[1] is None:
                self._place(partial, final)
            if partial.exists() and not resumable:
                shutil.rmtree(partial)
            partial.mkdir(exist_ok=True)
            try:
                yield partial
            finally:  # nothing was written: another process had done it, or the stage failed at once
                with suppress(OSError):
                    partial.rmdir()

    @contextmanager
    def _locked(self, stage: str, key: str) -> Iterator[Path]:
        """An artifact's folder, which no other process makes or fetches meanwhile."""
        from filelock import FileLock, Timeout

        final = self.folder(stage, key)
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(final.with_name(f"{key}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("%s: another process makes it; waiting for that", stage)
            lock.acquire()
        try:
            yield final
        finally:
            lock.release()

    def complete(
        self,
        stage: str,
        key: str,
        seconds: float,
        to_retry: int,
        facts: Mapping[str, Any],
        parts: Mapping[str, str] | None = None,
    ) -> Manifest:
        """Hash what lies in the partial folder, write the manifest, rename into place. Shards' records stay until then:
        of many gigabytes the hashes take minutes, in which a kill must not cost the shards."""
        final = self.folder(stage, key)
        partial = final.with_name(f"{key}.partial")
        for torn in partial.rglob(".*.tmp"):  # of a process that was killed while it wrote, here or on another node
            torn.unlink()
        paths = {str(path.relative_to(partial)): path for path in sorted(partial.rglob("*")) if path.is_file()}
        paths = {name: path for name, path in paths.items() if name != MANIFEST and Path(name).parts[0] != RECORDS}
        files = {name: read_sha256(path) for name, path in paths.items()}
        sizes = {name: path.stat().st_size for name, path in paths.items()}
        content = digest({name: sha for name, sha in files.items() if not name.startswith(f"{LOG}/")})
        made = Manifest(stage, key, content, files, round(seconds, 3), to_retry, dict(facts), sizes, dict(parts or {}))
        text = text_of(replace(made, check=_check(made)))
        write_atomically(partial / MANIFEST, lambda path: path.write_text(text))
        self._place(partial, final)
        told = Manifest(**json.loads(text))
        self._verified[stage, key] = told.check  # hashed a moment ago
        return told

    @staticmethod
    def _place(made: Path, final: Path) -> None:
        shutil.rmtree(made / RECORDS, ignore_errors=True)
        if final.exists():  # an earlier attempt with items to retry, or one whose manifest is gone
            stale = final.with_name(f"{final.name}.old")
            shutil.rmtree(stale, ignore_errors=True)
            final.rename(stale)
            made.rename(final)
            shutil.rmtree(stale)
        else:
            made.rename(final)


def _read(folder: Path) -> bytes | None:
    """The text of a folder's manifest; None where it has none."""
    try:
        return (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        return None


def _looked_at(folder: Path, text: bytes, stage: str, key: str) -> tuple[Manifest | None, str | None]:
    """A manifest by its text, and what is wrong with it or its files in `folder`, as far as their sizes tell."""
    manifest = parsed(text, stage, key)
    if manifest is None:
        return None, "its manifest is damaged"
    for name, size in manifest.sizes.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            return manifest, f"{name} is {'cut' if file.is_file() else 'gone'}"
    return manifest, None


def _check(manifest: Manifest) -> str:
    """Of a manifest's own words, as they are after JSON."""
    return digest({name: value for name, value in asdict(manifest).items() if name != "check"})


def parsed(text: bytes, stage: str, key: str) -> Manifest | None:
    """None where the text is no manifest of this artifact, or is damaged."""
    try:
        manifest = Manifest(**json.loads(text))
    except (ValueError, TypeError):
        return None
    same = (manifest.stage, manifest.key) == (stage, key)
    return manifest if same and manifest.check == _check(manifest) else None


def artifact_name(stage: str, key: str) -> str:
    """Its folder in a store or a mirror. Names of files have 255 bytes at most: of a longer one its hash is a part."""
    name = stage.replace("/", "__")
    if len(name.encode()) > LONGEST:
        name = f"{name[: LONGEST // 8]}-{digest(name)}"
    return f"{name}/{key}"


def text_of(manifest: Manifest) -> str:
    return json.dumps(asdict(manifest), indent=2)
