"""Usage: one journal line a request (stage, feature, tokens, seconds, outcome), and meters that add up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from autointerp.errors import AutointerpError

NOT_IN_KEYS = "it counts what was asked"

RequestKind = Literal["complete", "choose", "fill", "weigh"]


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One request of the pipeline. Tokens and seconds are those of the answer, also where it was `cached`; tokens of
    answers before it that could not be used are added in the run that asked."""

    stage: str | None
    feature: int | None
    model: str
    kind: RequestKind
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # prompt tokens that the endpoint's prefix cache served
    cached: bool  # answered from what was asked before: cost nothing now
    seconds: float
    outcome: str  # "ok" or "failed: <reason>"
    attempts: int  # 0 where cached
    prompt_hash: str

    @property
    def asked(self) -> bool:
        """Whether the endpoint answered it in this run, and wants to be paid for it."""
        return not self.cached and (self.outcome == "ok" or self.prompt_tokens + self.completion_tokens > 0)


_NAMES = [column.name for column in fields(UsageRow)]
_COLUMNS = set(_NAMES)


def read_usage(path: str | Path) -> Iterator[UsageRow]:
    """Rows of a journal, one by one, in the order of their answers; a line that a kill tore is left out."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        return
    with file:
        for line in file:
            try:
                raw = json.loads(line)
            except ValueError:
                continue
            if isinstance(raw, dict) and raw.keys() == _COLUMNS:
                yield UsageRow(**raw)


class Journal:
    """Appends a line a row, in one write each. Raises AutointerpError when the disk is full."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed by `close`
        if self._file.seek(0, 2) and self._file.seek(-1, 2) >= 0 and self._file.read(1) != b"\n":
            self._file.write(b"\n")  # a kill tore the last line: the next row must not be glued to it

    def add(self, row: UsageRow) -> None:
        try:
            self._file.write(json.dumps({name: getattr(row, name) for name in _NAMES}).encode() + b"\n")
        except OSError as error:
            raise AutointerpError(
                f"{self._path}: {error.strerror}; make room and run again, answers are kept"
            ) from error

    def close(self) -> None:
        self._file.close()


@dataclass
class Meter:
    """What the requests made inside one `Client.meter()` used; answers from the cache count as when asked."""

    prompt_hash: str | None = None  # of the first answered
    prompt_tokens: int = 0
    completion_tokens: int = 0
    requests: int = 0
    cached: int = 0
    failed: int = 0
    retryable_failures: int = 0  # of the failed, those that may succeed later

    def add(self, row: UsageRow, retryable: bool) -> None:
        self.prompt_hash = self.prompt_hash or row.prompt_hash
        self.prompt_tokens += row.prompt_tokens
        self.completion_tokens += row.completion_tokens
        self.requests += 1
        self.cached += row.cached
        self.failed += row.outcome != "ok"
        self.retryable_failures += retryable


_tags: ContextVar[tuple[str | None, int | None]] = ContextVar("autointerp_tags", default=(None, None))
_meters: ContextVar[tuple[Meter, ...]] = ContextVar("autointerp_meters", default=())


@contextmanager
def tag(*, stage: str | None = None, feature: int | None = None) -> Iterator[None]:
    """Label the requests made inside, in this task and those it starts; what is None stays as outside."""
    outer = _tags.get()
    token = _tags.set((outer[0] if stage is None else stage, outer[1] if feature is None else feature))
    try:
        yield
    finally:
        _tags.reset(token)


def tags() -> tuple[str | None, int | None]:
    """The stage and the feature that requests made here are for."""
    return _tags.get()


@contextmanager
def metered() -> Iterator[Meter]:
    """Adds up the requests made inside, in this task and those it starts, whichever client they go to."""
    meter = Meter()
    token = _meters.set((*_meters.get(), meter))
    try:
        yield meter
    finally:
        _meters.reset(token)


def count(row: UsageRow, retryable: bool) -> None:
    """Add `row` to every meter that runs here."""
    for meter in _meters.get():
        meter.add(row, retryable)
