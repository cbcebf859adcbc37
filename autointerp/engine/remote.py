"""Files in a folder at a URL (``s3://…``, whatever fsspec has a driver for): tried a few times, a failure is one line.

Credentials and addresses of services are the driver's own business: it reads its usual variables and files.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import tenacity

from autointerp.errors import AutointerpError, ConfigError
from autointerp.hashing import digest
from autointerp.redact import hide, redact

NOT_IN_KEYS = "it carries files, and changes none"

T = TypeVar("T")
Item = TypeVar("Item")
ATTEMPTS, FIRST, LONGEST = 4, 0.5, 8.0  # tries, seconds before the second one, and before any at most
FULL = (errno.ENOSPC, errno.EDQUOT)
SIDE_BY_SIDE = 8  # files on their way
# where a file wants its folder to be there
FOLDERS = frozenset({"file", "sftp", "ssh", "smb", "ftp", "hdfs", "webhdfs"})
TOLD = 200  # characters of a driver's error


class Unreachable(AutointerpError):
    """What a URL's driver could not do, after a few tries, and why."""


@dataclass(frozen=True)
class Listed:
    size: int
    mark: str  # changes when the file does


def side_by_side(work: Callable[[Item], object], items: Iterable[Item]) -> None:
    """`work` for each item, several at a time. Where one fails, those that have not begun are left; it is raised."""
    with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
        for _ in threads.map(work, items):
            pass


def is_url(place: object) -> bool:
    """Whether a run, or where it is to be, is named by a URL."""
    return isinstance(place, str) and "://" in place


class Remote:
    """A folder at a URL. Names are relative to it, with slashes.

    Every method raises Unreachable where the driver fails, after a few tries where that may pass, and OSError where the
    disk of this machine is full. Threads may share it.
    """

    def __init__(self, url: str) -> None:
        kind, named, path = url.rpartition("://")
        self.url = f"{kind}{named}{path.rstrip('/') or path[:1]}"
        with suppress(ValueError):  # the driver says what is wrong with the URL
            hide(urlsplit(self.url).password or "")
        self.shown = redact(self.url)

    @property
    def local(self) -> Path | None:
        """The folder, where it is one of this machine's."""
        kind, _, path = self.url.rpartition("://")
        return Path(os.path.abspath(os.path.expanduser(path))) if kind in ("", "file", "local") else None

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The driver, and the folder as it calls it. Raises ConfigError where there is no driver for the URL."""
        import fsspec  # a tenth of a second, and most runs name no URL

        try:
            return fsspec.url_to_fs(self.url)
        except ImportError as error:
            raise ConfigError(f"{self.shown} needs a driver that is not installed here: {_line(error)}") from None
        except ValueError as error:
            raise ConfigError(f"{self.shown} is no URL that fsspec opens: {_line(error)}") from None

    def check_driver(self) -> None:
        """Raises ConfigError where there is none for the URL."""
        self._call(lambda files, path: None, "")

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file, None where there is none."""
        try:
            return self._call(lambda files, path: files.cat_file(path), name)
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """A small file: on an object store whole or as it was."""
        self._to(name, lambda files, path: files.pipe_file(path, content))

    def get(self, name: str, file: Path) -> None:
        """Raises FileNotFoundError where the URL has no such file."""
        try:
            self._call(lambda files, path: files.get_file(path, str(file)), name)
        except Unreachable as error:
            if getattr(error.__cause__, "errno", None) in FULL:  # of this machine: it is not the URL that fails
                raise OSError(error.__cause__.errno, error.__cause__.strerror, str(file)) from None  # type: ignore[union-attr]
            raise

    def put(self, file: Path, name: str) -> None:
        self._to(name, lambda files, path: files.put_file(str(file), path))

    def remove(self, name: str) -> None:
        """A file that is gone already is no error."""
        try:
            self._call(lambda files, path: files.rm_file(path), name)
        except FileNotFoundError:
            return

    def listed(self, name: str = "") -> dict[str, Listed]:
        """The files of a folder and of its folders by their names in it; {} where there are none. Raises Unreachable
        for a file, too."""

        def entries(files: Any, path: str) -> dict[str, Any]:
            files.invalidate_cache()  # what others wrote since is seen
            return files.find(path, detail=True)

        try:
            seen = self._call(entries, name)
        except FileNotFoundError:
            return {}
        if (whole := self._path(name).rstrip("/")) in seen:
            raise Unreachable("it is a file, and no folder")
        start = len(whole) + 1
        return {path[start:]: Listed(int(about["size"]), _mark(about)) for path, about in seen.items()}

    def _path(self, name: str) -> str:
        root = self._opened[1]
        return f"{root}/{name}" if name else root

    def _to(self, name: str, write: Callable[[Any, str], None]) -> None:
        def written(files: Any, path: str) -> None:
            names = {files.protocol} if isinstance(files.protocol, str) else {*files.protocol}
            if names & FOLDERS:
                files.makedirs(path.rpartition("/")[0], exist_ok=True)
            if "file" not in names:
                return write(files, path)
            folder, _, file = path.rpartition("/")  # whole or as it was, as on an object store
            temporary = f"{folder}/.{file}.{uuid4().hex[:8]}.tmp"
            try:
                write(files, temporary)
                files.mv(temporary, path)
            except BaseException:
                with suppress(OSError):
                    files.rm_file(temporary)
                raise

        try:
            self._call(written, name)
        except FileNotFoundError as error:
            raise Unreachable(f"it has no such bucket or folder ({_line(error)})") from None

    def _call(self, use: Callable[[Any, str], T], name: str) -> T:
        tries = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            wait=tenacity.wait_exponential_jitter(FIRST, LONGEST),
            retry=tenacity.retry_if_exception(_may_pass),
            reraise=True,
        )
        try:
            return tries(lambda: use(self._opened[0], self._path(name)))
        except (FileNotFoundError, AutointerpError):
            raise
        except Exception as error:  # whatever a driver raises: each has errors of its own
            raise Unreachable(_line(error)) from error


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, AutointerpError | FileNotFoundError | PermissionError | NotImplementedError):
        return False
    return isinstance(error, Exception) and getattr(error, "errno", None) not in FULL


def _mark(about: dict[str, Any]) -> str:
    """Of what a driver says of a file: size, time, ETag."""
    return digest({name: value for name, value in about.items() if name not in ("islink", "nlink", "mode")})


def _line(error: BaseException) -> str:
    reason = error.strerror if isinstance(error, OSError) else None
    text = " ".join((reason or str(error)).split()) or type(error).__name__
    if isinstance(error, PermissionError):
        text = f"access is refused: {text}"
    return redact(text[:TOLD])
