"""The keeper: the one process of a run on a cluster that holds answers, the journal, budgets, and which shard is whose.

It lives on the driver's machine, so that what it writes (SQLite, the journal) is written by one process to one disk.
A worker that dies loses the shard in its hands, which another draws; what its requests were answered is kept here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autointerp.config import LLMConfig
from autointerp.errors import OutOfBudget
from autointerp.llm.backend import Raw
from autointerp.llm.books import budget_of
from autointerp.llm.cache import RequestCache
from autointerp.llm.limiter import Budget, Spent
from autointerp.llm.prices import Prices
from autointerp.llm.usage import Journal, UsageRow

NOT_IN_KEYS = "it decides who works a shard and when a request is sent"

TRIES = 3  # workers that a shard may end before that is an error


@dataclass(frozen=True)
class News:
    """What workers hear of each other."""

    version: int = 0
    workers: int = 1  # that are at work, and share what may be in flight
    paused: dict[str, float] = field(default_factory=dict)  # model -> until then, in seconds since 1970


@dataclass(frozen=True)
class Standing:
    """How far the shards of a stage are."""

    kept: Sequence[int]  # all that are
    waiting: int  # for a worker to draw them
    hopeless: int | None  # a shard that was lost `TRIES` times


@dataclass
class _Shards:
    waiting: list[int]
    drawn: dict[int, str] = field(default_factory=dict)  # -> worker
    kept: list[int] = field(default_factory=list)
    lost: dict[int, int] = field(default_factory=dict)  # -> how often


class Keeper:
    """An actor; each method is called from other processes."""

    def __init__(self, cache: Path, journal: Path) -> None:
        self._path, self._answers, self._journal = journal, RequestCache(cache), Journal(journal)
        self._budgets: dict[str, Budget] = {}
        self._reserved: dict[str, tuple[Budget, Spent] | None] = {}  # by reservation; None: given up before it was made
        self._stages: dict[str, _Shards] = {}
        self._news, self._changed = News(), asyncio.Condition()
        self._warnings: list[str] = []

    # --- answers and the journal

    async def get(self, key: str) -> tuple[Raw, float] | None:
        return self._answers.get(key)

    async def put(self, key: str, raw: Raw, seconds: float) -> None:
        self._answers.put(key, raw, seconds)

    async def learnt(self, identity: str) -> dict[str, Any]:
        return self._answers.learnt(identity)

    async def learn(self, identity: str, name: str, value: object) -> None:
        self._answers.learn(identity, name, value)

    async def unlearn(self, identity: str, name: str) -> None:
        self._answers.unlearn(identity, name)

    async def add_rows(self, rows: Sequence[UsageRow]) -> None:
        for row in rows:
            self._journal.add(row)

    async def warn(self, text: str) -> None:
        self._warnings.append(text)

    async def warnings(self) -> list[str]:
        """What workers had to say since the last call."""
        warnings, self._warnings = self._warnings, []
        return warnings

    # --- what may be spent, and when

    async def reserve(self, number: str, config: LLMConfig, model: str, prices: Prices | None, most: Spent) -> str:
        """Set `most` aside under `number`, ``WORKER COUNT``; why not, where there is no room, else ''."""
        name = config.model_dump_json()
        if name not in self._budgets:
            self._budgets[name] = budget_of(config, model, self._path, prices)
        budget = self._budgets[name]
        try:
            await budget.reserve(most)
        except OutOfBudget as error:
            return str(error)
        if self._reserved.get(number, most) is None:  # whoever asked is gone
            del self._reserved[number]
            budget.settle(most, None)
        else:
            self._reserved[number] = budget, most
        return ""

    async def settle(self, number: str, used: Spent | None) -> None:
        held = self._reserved.pop(number, None)
        if held is None:
            self._reserved[number] = None
        else:
            held[0].settle(held[1], used)

    async def limited(self, model: str, seconds: float) -> None:
        """An endpoint wants a pause: all workers hear of it."""
        until = max(self._news.paused.get(model, 0.0), time.time() + seconds)
        await self._tell(paused={**self._news.paused, model: until})

    async def staffed(self, workers: int) -> None:
        if workers != self._news.workers:
            await self._tell(workers=workers)

    async def news(self, version: int) -> News:
        """Once there is a later one than `version`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._news.version != version)
            return self._news

    async def _tell(self, **changes: Any) -> None:
        async with self._changed:
            paused = {model: until for model, until in self._news.paused.items() if until > time.time()}
            given = {"workers": self._news.workers, "paused": paused} | changes
            self._news = News(self._news.version + 1, **given)
            self._changed.notify_all()

    # --- shards

    async def open(self, stage: str, shards: Sequence[int]) -> None:
        self._stages[stage] = _Shards(list(shards))

    async def draw(self, stage: str, worker: str) -> int | None:
        """The next shard that nobody has in hand; None where none is left."""
        shards = self._stages.get(stage)
        if shards is None or not shards.waiting:
            return None
        number = shards.waiting.pop(0)
        shards.drawn[number] = worker
        return number

    async def kept(self, stage: str, number: int) -> None:
        shards = self._stages.get(stage)
        if shards is not None and shards.drawn.pop(number, None) is not None:
            shards.kept.append(number)

    async def lost(self, worker: str) -> list[int]:
        """A worker died: its shards are drawn again, and what was set aside for its requests is given back."""
        numbers: list[int] = []
        for shards in self._stages.values():
            mine = sorted(number for number, owner in shards.drawn.items() if owner == worker)
            for number in mine:
                del shards.drawn[number]
                shards.lost[number] = shards.lost.get(number, 0) + 1
            shards.waiting = mine + shards.waiting
            numbers += mine
        for reservation in [name for name in self._reserved if name.startswith(f"{worker} ")]:
            await self.settle(reservation, None)
            self._reserved.pop(reservation, None)
        return numbers

    async def standing(self, stage: str) -> Standing:
        shards = self._stages[stage]
        hopeless = next((number for number, times in shards.lost.items() if times >= TRIES), None)
        return Standing(tuple(shards.kept), len(shards.waiting), hopeless)

    async def close(self, stage: str) -> None:
        self._stages.pop(stage, None)
