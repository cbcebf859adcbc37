"""Adaptive concurrency (falls and rises with rate limits), and the budget: requests, tokens, money."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from autointerp.config import LLMConfig
from autointerp.errors import OutOfBudget
from autointerp.llm.prices import FREE, Prices, check_limits

NOT_IN_KEYS = "it decides when a request is sent"


class Limiter:
    """Additive increase, multiplicative decrease of the requests in flight, as TCP does with its window.

    It begins at `maximum`. A rate limit halves it, once for all requests that were on their way when it
    was last halved; each window of successes adds an eighth of the maximum back.
    """

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self.limit = float(maximum)
        self.in_flight = 0
        self._step = max(1.0, maximum / 8)
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.epoch = 0  # how often it was halved
        self._closed_until = 0.0  # in the loop's time
        self._alarm: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """A place among those in flight, kept through the pauses between a request's attempts."""
        slot = Slot(self)
        await slot.take(self.waiting.append)
        try:
            yield slot
        finally:
            slot.leave()

    def succeeded(self) -> None:
        self.limit = min(self.maximum, self.limit + self._step / self.limit)

    def limited(self, slot: Slot, retry_after: float | None) -> None:
        """The request in `slot` was told to slow down; nothing is sent for `retry_after` seconds."""
        if slot.epoch == self.epoch:
            self.epoch += 1
            self.limit = max(1.0, self.limit / 2)
        if retry_after:
            self.pause(retry_after)

    def pause(self, seconds: float) -> None:
        """Nothing is sent for so long."""
        now = asyncio.get_running_loop().time()
        self._closed_until = max(self._closed_until, now + seconds)

    def resize(self, maximum: int) -> None:
        """Others ask the same endpoint, more or fewer than before: this one's share of what may be in flight."""
        self.limit = max(1.0, self.limit * maximum / self.maximum)
        self.maximum, self._step = maximum, max(1.0, maximum / 8)
        self.admit()

    @property
    def yields(self) -> bool:
        """Whether a request must give its place back before it is sent again."""
        return self.in_flight > int(self.limit) or asyncio.get_running_loop().time() < self._closed_until

    def admit(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._closed_until:
            if self._alarm is None:
                self._alarm = loop.call_at(self._closed_until, self._open)
            return
        while self.waiting and self.in_flight < int(self.limit):
            turn = self.waiting.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)

    def _open(self) -> None:
        self._alarm = None
        self.admit()


class Slot:
    """One request's place. `epoch` tells which halvings it was sent before."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._held = False
        self.epoch = 0

    async def renew(self) -> None:
        """Before each attempt: wait a pause out, and give way where fewer may be in flight now."""
        if self._limiter.yields:
            self.leave()
            await self.take(self._limiter.waiting.appendleft)  # before those that were never sent
        self.epoch = self._limiter.epoch

    async def take(self, queue: Callable[[asyncio.Future[None]], None]) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue(turn)
        self._limiter.admit()
        try:
            await turn
            self._held = True
        except asyncio.CancelledError:
            self._held = not turn.cancelled()  # cancelled between its turn and its waking
            self.leave()
            raise

    def leave(self) -> None:
        if self._held:
            self._held = False
            self._limiter.in_flight -= 1
            self._limiter.admit()


@dataclass
class Spent:
    requests: int = 0
    tokens: int = 0
    cost: float = 0.0

    def add(self, other: Spent, sign: int = 1) -> None:
        self.requests += sign * other.requests
        self.tokens += sign * other.tokens
        self.cost += sign * other.cost


class Budget:
    """`llm.max_requests`, `llm.max_tokens` and `llm.max_cost` (in the unit of the prices), over a whole run.

    A request sets aside what it may cost at most and gives back what it did not use. One that does not
    fit waits while others may still give something back, and is refused when none can.
    """

    def __init__(self, config: LLMConfig, prices: Prices | None = None) -> None:
        self._config = config
        self._prices = prices or FREE
        self.spent = Spent()
        self._aside = Spent()
        self._waiting: deque[tuple[Spent, asyncio.Future[None]]] = deque()
        check_limits(config, prices)

    def price(self, prompt_tokens: int, completion_tokens: int) -> Spent:
        """What one request of that size spends."""
        return Spent(1, prompt_tokens + completion_tokens, self._prices.cost(prompt_tokens, completion_tokens))

    async def reserve(self, most: Spent) -> None:
        """Set `most` aside, or raise OutOfBudget."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((most, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.settle(most, None)
            raise

    def settle(self, most: Spent, used: Spent | None) -> None:
        """Give `most` back; `used` is what was really spent, None when nothing was answered."""
        self._aside.add(most, -1)
        if used:
            self.spent.add(used)
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            most, turn = self._waiting[0]
            if not turn.done():
                over = self._over(most)
                if over is None:
                    self._aside.add(most)
                    turn.set_result(None)
                elif self._aside.requests:
                    return
                else:
                    turn.set_exception(OutOfBudget(over))
            self._waiting.popleft()

    def _over(self, most: Spent) -> str | None:
        limits = self._config
        for name, limit, spent, aside, wanted in (
            ("max_requests", limits.max_requests, self.spent.requests, self._aside.requests, most.requests),
            ("max_tokens", limits.max_tokens, self.spent.tokens, self._aside.tokens, most.tokens),
            ("max_cost", limits.max_cost, self.spent.cost, self._aside.cost, most.cost),
        ):
            if limit is not None and spent + aside + wanted > limit:
                figures = f"{spent:.6g} spent, the next request may need {wanted:.6g}"
                return f"llm.{name}={limit:g} is reached ({figures}): all answers are kept; raise it and run again"
        return None
