"""What the clients of a run share: kept answers, the journal of requests, the budget, and when to hold back.

In one process these are files and counters (`of_this_process`). Where several processes ask, each is given faces of
the ones that one process keeps for all (`engine.cluster`).
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from autointerp.config import LLMConfig
from autointerp.llm.backend import Raw
from autointerp.llm.cache import RequestCache
from autointerp.llm.limiter import Budget, Limiter, Spent
from autointerp.llm.prices import Prices
from autointerp.llm.usage import Journal, UsageRow, read_usage

NOT_IN_KEYS = "it keeps what was answered as it was answered, and decides when a request is sent"


class Answers(Protocol):
    """Raw answers by request key, as `RequestCache` has them."""

    async def find(self, key: str) -> tuple[Raw, float] | None: ...

    def put(self, key: str, raw: Raw, seconds: float) -> None: ...

    def memory(self, identity: str) -> MutableMapping[str, Any]: ...

    def close(self) -> None: ...


class Ledger(Protocol):
    """Takes a row a request, as `Journal` does."""

    def add(self, row: UsageRow) -> None: ...

    def close(self) -> None: ...


class Allowance(Protocol):
    """What a run may spend, as `Budget` has it."""

    spent: Spent

    def price(self, prompt_tokens: int, completion_tokens: int) -> Spent: ...

    async def reserve(self, most: Spent) -> None: ...

    def settle(self, most: Spent, used: Spent | None) -> None: ...


class Pace:
    """Nobody else asks the endpoint: a client's limiter is all there is."""

    def join(self, limiter: Limiter) -> None:
        """A client asks within `limiter` from now on."""

    def limited(self, seconds: float) -> None:
        """The endpoint wants a pause."""


@dataclass(frozen=True)
class Books:
    answers: Answers
    ledger: Ledger
    allowance: Allowance
    pace: Pace = field(default_factory=Pace)


def of_this_process(config: LLMConfig, model: str, cache: Path, journal: Path, prices: Prices | None) -> Books:
    return Books(RequestCache(cache), Journal(journal), budget_of(config, model, journal, prices))


def budget_of(config: LLMConfig, model: str, journal: str | Path, prices: Prices | None) -> Budget:
    """The limits are those of the run, however often it is taken up again: what its journal holds is spent."""
    budget = Budget(config, prices)
    for row in read_usage(journal):
        if row.model == model and row.asked:
            budget.spent.add(budget.price(row.prompt_tokens, row.completion_tokens))
    return budget
