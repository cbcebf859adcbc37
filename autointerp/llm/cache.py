"""Answered requests on disk: what was answered once is never asked, or paid for, again."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections import UserDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autointerp.errors import AutointerpError
from autointerp.llm.backend import Reply
from autointerp.records import Choices, Message

_PATIENCE = 60.0  # seconds to wait for another process' write


def canonical(value: object) -> str:
    """JSON in which equal requests are equal texts: keys sorted, tuples as lists, no spaces, ASCII."""

    def plain(other: object) -> object:
        if isinstance(other, Mapping):
            return dict(other)
        raise TypeError(f"{type(other).__name__} has no place in a request")

    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=plain)


def request_key(identity: str, kind: str, messages: Sequence[Message], request: Mapping[str, object]) -> str:
    """sha256, in hex, of who is asked and all that is asked."""
    said = [[message.role, message.content] for message in messages]
    return hashlib.sha256(canonical(["1", identity, kind, said, request]).encode()).hexdigest()


class RequestCache:
    """SQLite file of replies by request key, committed one by one; several processes and threads may share it.

    Holds neither prompts nor keys. Raises AutointerpError when the file is damaged or the disk is full.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise self._said(error) from error
        self._use_wal()
        self._run("PRAGMA synchronous=NORMAL")
        self._run("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, reply TEXT, seconds REAL) WITHOUT ROWID")
        self._run(
            "CREATE TABLE IF NOT EXISTS known "
            "(identity TEXT, name TEXT, value TEXT, PRIMARY KEY (identity, name)) WITHOUT ROWID"
        )

    def get(self, key: str) -> tuple[Reply, float] | None:
        """The reply and the seconds it took when it was asked."""
        rows = self._run("SELECT reply, seconds FROM answers WHERE key = ?", key)
        return (_reply(json.loads(rows[0][0])), rows[0][1]) if rows else None

    def put(self, key: str, reply: Reply, seconds: float) -> None:
        """On disk when this returns: a killed process loses nothing that was put."""
        self._run("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", key, json.dumps(asdict(reply)), seconds)

    def memory(self, identity: str) -> Memory:
        return Memory(self, hashlib.sha256(identity.encode()).hexdigest())

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _use_wal(self) -> None:
        # SQLite does not wait its timeout out for this one statement when several processes open a new file
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.Error as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise self._said(error) from error
                time.sleep(0.01)

    def _run(self, statement: str, *values: object) -> list[Any]:
        with self._lock:
            try:
                return self._db.execute(statement, values).fetchall()
            except sqlite3.Error as error:
                raise self._said(error) from error

    def _said(self, error: Exception) -> AutointerpError:
        text = str(error)
        if "full" in text:
            remedy = "make room on the disk and run again; what was answered before is kept"
        elif "not a database" in text or "malformed" in text or "no such column" in text:
            remedy = "the file is damaged: move it away and run again"
        elif "locked" in text:
            remedy = f"another process held it for {_PATIENCE:.0f} s: wait for it and run again"
        else:
            remedy = "see that its folder exists and can be written"
        return AutointerpError(f"cache of answered requests {self.path}: {text}; {remedy}")


class Memory(UserDict[str, Any]):
    """What was found out about one endpoint or model (JSON values): on disk at each change, kept from run to run."""

    def __init__(self, cache: RequestCache, identity: str) -> None:
        super().__init__()
        self._cache, self._identity = cache, identity
        rows = cache._run("SELECT name, value FROM known WHERE identity = ?", identity)
        self.data = {name: json.loads(value) for name, value in rows}

    def __setitem__(self, key: str, item: Any) -> None:
        self._cache._run("INSERT OR REPLACE INTO known VALUES (?, ?, ?)", self._identity, key, json.dumps(item))
        super().__setitem__(key, item)


def _reply(raw: dict[str, Any]) -> Reply:
    choices = tuple(
        Choices(**{**each, "probabilities": each["probabilities"] and tuple(each["probabilities"])})
        for each in raw.pop("choices")
    )
    return Reply(**raw, choices=choices)
