"""Artifacts: a folder a stage and key, whole or absent.

``STORE/STAGE/KEY/`` holds what a stage wrote and ``manifest.json``, written last. Until then the folder
is called ``KEY.partial``: a stage that can go on where it was finds its earlier files there. Nothing
but the manifest decides what is done.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autointerp.artifacts import write_atomically
from autointerp.errors import AutointerpError
from autointerp.hashing import digest, file_sha256

LOG = "log"  # files in this subfolder of an artifact are kept but are no part of its content


@dataclass(frozen=True)
class Manifest:
    stage: str
    key: str
    content: str  # hash of the files' hashes; what stages downstream depend on
    files: Mapping[str, str]  # relative path -> sha256
    seconds: float
    to_retry: int = 0  # items that failed for a reason that may pass; a later run tries the stage again
    facts: Mapping[str, Any] = field(default_factory=dict)  # small numbers for run.json


class Store:
    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, stage: str, key: str) -> Path:
        return self.root / stage.replace("/", "__") / key

    def find(self, stage: str, key: str) -> Manifest | None:
        path = self.folder(stage, key) / "manifest.json"
        try:
            return Manifest(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise AutointerpError(f"{path} cannot be read ({error}); delete the folder {path.parent}") from error

    @contextmanager
    def writing(self, stage: str, key: str, *, resumable: bool) -> Iterator[Path]:
        """The folder to write into. One process at a time; others wait and then find it done."""
        from filelock import FileLock

        final = self.folder(stage, key)
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(final.with_name(f"{key}.lock")):
            partial = final.with_name(f"{key}.partial")
            if partial.exists() and not resumable:
                shutil.rmtree(partial)
            partial.mkdir(exist_ok=True)
            yield partial

    def complete(self, stage: str, key: str, seconds: float, to_retry: int, facts: Mapping[str, Any]) -> Manifest:
        """Hash what lies in the partial folder, write the manifest, rename into place."""
        final = self.folder(stage, key)
        partial = final.with_name(f"{key}.partial")
        files = {
            str(path.relative_to(partial)): file_sha256(path)
            for path in sorted(partial.rglob("*"))
            if path.is_file() and path.name != "manifest.json"
        }
        content = digest({name: sha for name, sha in files.items() if not name.startswith(f"{LOG}/")})
        manifest = Manifest(stage, key, content, files, round(seconds, 3), to_retry, dict(facts))
        text = json.dumps(asdict(manifest), indent=2)
        write_atomically(partial / "manifest.json", lambda path: path.write_text(text))
        if final.exists():  # an earlier attempt with items to retry
            stale = final.with_name(f"{key}.old")
            shutil.rmtree(stale, ignore_errors=True)
            final.rename(stale)
            partial.rename(final)
            shutil.rmtree(stale)
        else:
            partial.rename(final)
        return manifest
