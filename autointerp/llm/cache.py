"""Request cache: raw answers on disk (SQLite); what was answered once is never asked, or paid for, again.

What is kept is the endpoint's own answer; a backend's `read` makes a reply of it each time. A row carries a
checksum, so that a damaged one counts as not there, and a file that SQLite cannot read is set aside.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import threading
import time
import zlib
from collections import UserDict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from autointerp.errors import AutointerpError
from autointerp.llm.backend import Raw, Request
from autointerp.records import Message

log = logging.getLogger("autointerp.llm")

_PATIENCE = 60.0  # seconds to wait for another process' write
_NO_DAMAGE = (  # kinds of SQLite's errors that leave the file as it was
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH),
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_INTERRUPT),
)
_DAMAGE = (sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS)  # of these kinds, and damage all the same
_TABLES = (
    "CREATE TABLE IF NOT EXISTS raw_answers (key TEXT PRIMARY KEY, answer BLOB, seconds REAL, checksum BLOB)",
    "CREATE TABLE IF NOT EXISTS learnt "
    "(identity TEXT, name TEXT, value TEXT, checksum BLOB, PRIMARY KEY (identity, name))",
)


def canonical(value: object) -> str:
    """JSON in which equal requests are equal texts: keys sorted, tuples as lists, no spaces, ASCII."""

    def plain(other: object) -> object:
        if isinstance(other, Mapping):
            return dict(other)
        raise TypeError(f"{type(other).__name__} has no place in a request")

    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=plain)


def request_key(identity: str, request: Request) -> str:
    """sha256, in hex, of who is asked and all that is asked."""
    asked = {field.name: getattr(request, field.name) for field in fields(request) if field.name != "messages"}
    turns = [[message.role, message.content] for message in request.messages]
    return hashlib.sha256(canonical(["2", identity, request.kind, turns, asked]).encode()).hexdigest()


def prompt_hash(messages: Sequence[Message], turn: str | None = None) -> str:
    """Sixteen hex digits of all the text that is sent."""
    turns = [[message.role, message.content] for message in messages] + [turn]
    return hashlib.sha256(canonical(turns).encode()).hexdigest()[:16]


def _checksum(*parts: object) -> bytes:
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=12).digest()


class RequestCache:
    """SQLite file of raw answers by request key, committed one by one; several processes and threads may share it.

    Holds neither prompts nor keys. Raises AutointerpError when the disk is full or its place cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._closed = False
        with self._lock:
            self._db = self._connected()

    def get(self, key: str) -> tuple[Raw, float] | None:
        """The endpoint's answer and the seconds it took when it was asked; None for a damaged row too."""
        rows = self._run("SELECT answer, seconds, checksum FROM raw_answers WHERE key = ?", key)
        if not rows:
            return None
        answer, seconds, checksum = rows[0]
        if checksum != _checksum(key, answer, seconds):
            log.warning("%s: one kept answer is damaged and is asked for again", self.path)
            return None
        return json.loads(zlib.decompress(answer)), seconds

    async def find(self, key: str) -> tuple[Raw, float] | None:
        """`get`, for who may have to wait for another process' answer."""
        return self.get(key)

    def put(self, key: str, raw: Raw, seconds: float) -> None:
        """On disk when this returns: a killed process loses nothing that was put."""
        answer = zlib.compress(json.dumps(raw, separators=(",", ":")).encode())
        checksum = _checksum(key, answer, float(seconds))
        self._run("INSERT OR REPLACE INTO raw_answers VALUES (?, ?, ?, ?)", key, answer, float(seconds), checksum)

    def memory(self, identity: str) -> Memory:
        return Memory(self, hashed(identity))

    def learnt(self, identity: str) -> dict[str, Any]:
        """What is known of an endpoint, by name; damaged rows left out."""
        rows = self._run("SELECT name, value, checksum FROM learnt WHERE identity = ?", identity)
        return {name: json.loads(value) for name, value, sum_ in rows if sum_ == _checksum(identity, name, value)}

    def learn(self, identity: str, name: str, value: object) -> None:
        text = json.dumps(value)
        checksum = _checksum(identity, name, text)
        self._run("INSERT OR REPLACE INTO learnt VALUES (?, ?, ?, ?)", identity, name, text, checksum)

    def unlearn(self, identity: str, name: str) -> None:
        self._run("DELETE FROM learnt WHERE identity = ? AND name = ?", identity, name)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._db.close()

    # --- SQLite

    def _run(self, statement: str, *values: object) -> list[Any]:
        with self._lock:
            try:
                return self._db.execute(statement, values).fetchall()
            except (sqlite3.Error, MemoryError) as error:
                if self._closed or not self._is_damage(error):
                    raise self._as_one_line(error) from error
                self._set_aside(error)
            try:
                return self._db.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise self._as_one_line(error) from error

    def _connected(self) -> sqlite3.Connection:
        """An open file with its tables; one that is damaged is set aside and begun anew."""
        try:
            return self._open()
        except (sqlite3.Error, MemoryError) as error:
            if not self._is_damage(error):
                raise self._as_one_line(error) from error
            self._move(error)
        except OSError as error:
            raise self._as_one_line(error) from error
        try:
            return self._open()
        except sqlite3.Error as error:
            raise self._as_one_line(error) from error

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            _use_wal(db)
            db.execute("PRAGMA synchronous=NORMAL")
            for table in _TABLES:
                db.execute(table)
            # statements that name every column: a table whose definition is damaged shows here
            db.execute("SELECT key, answer, seconds, checksum FROM raw_answers LIMIT 0")
            db.execute("SELECT identity, name, value, checksum FROM learnt LIMIT 0")
            self._inode = self.path.stat().st_ino
        except BaseException:
            db.close()
            raise
        return db

    def _set_aside(self, error: BaseException) -> None:
        self._db.close()
        try:
            replaced = self.path.stat().st_ino != self._inode  # another process was faster
        except OSError:
            replaced = True
        if not replaced:
            self._move(error)
        self._db = self._connected()

    def _move(self, error: BaseException) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        log.warning("%s is damaged (%s): moved to %s, going on with a new one", self.path, error, aside.name)
        for suffix in ("", "-wal", "-shm"):
            old = self.path.with_name(self.path.name + suffix)
            if old.exists():
                old.rename(aside.with_name(aside.name + suffix))

    def _is_damage(self, error: BaseException) -> bool:
        """What SQLite says of a file whose bytes were changed, and not of a full disk, a lock, or a disk that fails."""
        code = getattr(error, "sqlite_errorcode", 0)  # its low byte is the kind
        if code & 0xFF == sqlite3.SQLITE_READONLY:  # so it calls a file of an unknown version too
            return os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK)
        if code & 0xFF in _NO_DAMAGE and code not in _DAMAGE:
            return False
        return isinstance(error, sqlite3.DatabaseError | MemoryError) and not isinstance(
            error, sqlite3.ProgrammingError
        )

    def _as_one_line(self, error: BaseException) -> AutointerpError:
        text = str(error)
        if "full" in text:
            remedy = "make room on the disk and run again; what was answered before is kept"
        elif "I/O" in text:  # so SQLite calls a used-up quota too
            remedy = "see to the disk, or the quota on it, and run again; what was answered before is kept"
        elif "locked" in text:
            remedy = f"another process held it for {_PATIENCE:.0f} s: wait for it and run again"
        else:
            remedy = "see that its folder exists and can be written"
        return AutointerpError(f"cache of answered requests {self.path}: {text}; {remedy}")


def _use_wal(db: sqlite3.Connection) -> None:
    # SQLite does not wait its timeout out for this one statement when several processes open a new file
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


def hashed(identity: str) -> str:
    """Under which name it is kept what was learnt of an endpoint."""
    return hashlib.sha256(identity.encode()).hexdigest()


class Learnt(Protocol):
    """Where that is kept: a `RequestCache`, or one of another process."""

    def learnt(self, identity: str) -> dict[str, Any]: ...

    def learn(self, identity: str, name: str, value: object) -> None: ...

    def unlearn(self, identity: str, name: str) -> None: ...


class Memory(UserDict[str, Any]):
    """What was found out about one endpoint or model (JSON values): on disk at each change, kept from run to run."""

    def __init__(self, cache: Learnt, identity: str) -> None:
        super().__init__()
        self._cache, self._identity = cache, identity
        self.data = cache.learnt(identity)

    def __setitem__(self, key: str, item: Any) -> None:
        self._cache.learn(self._identity, key, item)
        super().__setitem__(key, item)

    def __delitem__(self, key: str) -> None:
        self._cache.unlearn(self._identity, key)
        super().__delitem__(key)
