"""The LLM client that explainers and scorers use: cache, retries, limits, budget and usage around a backend."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import tenacity

from autointerp.answers import clean, sendable
from autointerp.config import LLMConfig
from autointerp.errors import AutointerpError
from autointerp.llm.again import renewal
from autointerp.llm.backend import (
    Backend,
    Choose,
    Complete,
    Fill,
    FinalFailure,
    RateLimited,
    Raw,
    Remembers,
    Reply,
    Request,
    RequestFailed,
    RetryableFailure,
    Weigh,
)
from autointerp.llm.books import Books
from autointerp.llm.cache import prompt_hash, request_key
from autointerp.llm.health import Health
from autointerp.llm.limiter import Limiter, Slot, Spent
from autointerp.llm.usage import Meter, UsageRow, count, metered, tags
from autointerp.records import Capability, Choices, Completion, Message, Weight

log = logging.getLogger("autointerp.llm")

_LONGEST_PAUSE = 60.0  # seconds, where the endpoint does not say how long
MOST_CHARACTERS = 500_000  # of an answer; a longer one is no explanation and no judgement


@dataclass(frozen=True, slots=True)
class _Outcome:
    reply: Reply
    seconds: float
    attempts: int
    spoilt: tuple[Reply, ...] = ()  # answers before it that could not be used, and are paid for all the same


@dataclass(slots=True)
class _Flight:
    """A request on its way, how many askers wait for it, and whether the endpoint has it."""

    task: asyncio.Task[_Outcome]
    waiting: int = 0
    sent: bool = False


class Client:
    """`autointerp.records.LLM` over one backend.

    1. A request is looked up in the cache. What the endpoint said then is read anew.
    2. Else it is set against the budget, and given its turn by the limiter.
    3. It is tried until it is answered or given up, and the answer is stored before it is handed back.

    Equal requests that are on their way together are asked once. The backend starts at the first request that
    must be asked, or on entering when nobody has yet found out what it can do.

    A request that fails is a value (`Completion.failure`). Raised are only AutointerpErrors that end
    the run: OutOfBudget, EndpointDown, a wrong key or model, no credit, a full disk.
    """

    def __init__(
        self,
        backend: Backend,
        config: LLMConfig,
        books: Books,
        *,
        seed: int = 0,
        backoff: float = 1.0,
    ) -> None:
        """`backoff`: seconds of the first pause between attempts, doubling from there, with full jitter."""
        self._backend, self._config, self._seed, self._backoff = backend, config, seed, backoff
        self._cache, self._journal, self._budget, self._pace = books.answers, books.ledger, books.allowance, books.pace
        self._renewed: set[str] = set()  # keys of requests that were asked again
        self._limiter = Limiter(config.concurrency)
        self._pace.join(self._limiter)
        self._capabilities: frozenset[Capability] | None = None
        self._memory: MutableMapping[str, Any] = {}
        self._starting = asyncio.Lock()
        self._started = False
        self._flights: dict[str, _Flight] = {}  # by request key
        self._tasks: set[asyncio.Task[_Outcome]] = set()
        self._lands = not getattr(backend, "collects", False)  # soon: a batch may take hours
        self._health = Health(backend.model, backend.probe, pause=2 * backoff, longest=config.max_retry_after)

    @property
    def model(self) -> str:
        return self._backend.model

    @property
    def spent(self) -> Spent:
        """What the run has spent on this model so far."""
        return self._budget.spent

    @property
    def capabilities(self) -> frozenset[Capability]:
        if self._capabilities is None:
            raise RuntimeError("what the model can do is known inside `async with`")
        return self._capabilities

    async def __aenter__(self) -> Client:
        try:
            self._memory = self._cache.memory(f"{self._backend.identity} logprobs={self._config.logprobs}")
            if isinstance(self._backend, Remembers):
                self._backend.memory = self._memory
            if "capabilities" in self._memory:
                self._capabilities = frozenset(self._memory["capabilities"])
            else:
                await self._start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await self._backend.close()
        finally:
            self._cache.close()
            self._journal.close()

    def meter(self) -> AbstractContextManager[Meter]:
        """Adds up the requests made inside, in this task and those it starts, whichever client they go to."""
        return metered()

    # --- what can be asked

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        schema: Mapping[str, object] | None = None,
        stop: Sequence[str] = (),
        attempt: int = 0,
    ) -> Completion:
        """`llm.answer_tokens` of the config goes before `max_tokens`."""
        # greedy answers do not hang on the run's seed, so that runs share them; a repeat differs by its number
        seed = attempt if temperature == 0 else 1000 * self._seed + attempt
        most = self._config.answer_tokens or max_tokens
        turns = _sendable(messages)
        reply = await self._answer(Complete(turns, most, float(temperature), seed, schema, tuple(stop), attempt), most)
        if reply.failure is not None:
            return Completion(None, failure=reply.failure, retryable=reply.retryable)
        return Completion(reply.text, truncated=reply.truncated)

    async def choose(self, messages: Sequence[Message], answers: Sequence[str]) -> Choices:
        reply = await self._answer(Choose(_sendable(messages), tuple(answers)), 1)
        if reply.failure is not None:
            return Choices(None, failure=reply.failure, retryable=reply.retryable)
        return reply.choices[0]

    async def fill(
        self, messages: Sequence[Message], segments: Sequence[str], filler: str, answers: Sequence[str]
    ) -> Sequence[Choices]:
        turns = _sendable(messages)
        reply = await self._answer(Fill(turns, tuple(map(sendable, segments)), filler, tuple(answers)), 1)
        if reply.failure is not None:
            return tuple(Choices(None, failure=reply.failure, retryable=reply.retryable) for _ in segments)
        return reply.choices

    async def weigh(self, messages: Sequence[Message], text: str) -> Weight:
        reply = await self._answer(Weigh(_sendable(messages), sendable(text)), 1)
        if reply.failure is not None or reply.weight is None:
            return Weight(None, failure=reply.failure or "no probabilities", retryable=reply.retryable)
        return reply.weight

    # --- how it is asked

    async def _answer(self, request: Request, most_tokens: int) -> Reply:
        """The answer kept for an equal request, else a new one."""
        key = request_key(self._backend.identity, request)
        kept = await self._cache.find(key)
        if kept is not None:
            raw, seconds = kept
            reply = self._read(raw, request)
            if not (reply.retryable or self._renews(key, request, reply)):
                self._count(request, _Outcome(reply, seconds, 0), cached=True)
                return reply
        flight = self._flights.get(key)
        first = flight is None or flight.task.cancelled()  # given up a moment ago, and not yet landed
        if flight is None or first:
            flight = self._take_off(key, request, most_tokens)
        flight.waiting += 1
        try:
            outcome = await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            # nobody else wants the answer; one that the endpoint is giving is paid for, and is kept
            if flight.waiting == 1 and not (flight.sent and self._lands):
                flight.task.cancel()
                self._flights.pop(key, None)
            raise
        finally:
            flight.waiting -= 1
        if not first:
            self._count(request, replace(outcome, attempts=0), cached=True)
        return outcome.reply

    def _renews(self, key: str, request: Request, reply: Reply) -> bool:
        """Whether a kept answer is asked for again: once a run, where a failed row is made anew."""
        wanted = renewal()
        if wanted is None or key in self._renewed or not wanted.wants(request, reply):
            return False
        self._renewed.add(key)
        wanted.asked += 1
        return True

    def _take_off(self, key: str, request: Request, most_tokens: int) -> _Flight:
        texts = [message.content for message in request.messages]
        texts += [request.turn] if isinstance(request, Fill | Weigh) else []
        most = self._budget.price(_most_tokens("".join(texts)) + 8 * len(request.messages) + 8, most_tokens)
        flight = _Flight(asyncio.create_task(self._ask(key, request, most)))
        self._flights[key] = flight
        self._tasks.add(flight.task)
        flight.task.add_done_callback(lambda task: self._landed(key, task))
        return flight

    def _landed(self, key: str, task: asyncio.Task[_Outcome]) -> None:
        self._tasks.discard(task)
        if key in self._flights and self._flights[key].task is task:
            del self._flights[key]
        if not task.cancelled():
            task.exception()  # seen, also when every asker was cancelled meanwhile

    async def _ask(self, key: str, request: Request, most: Spent) -> _Outcome:
        """In a task of its own, with the tags and meters of the first asker."""
        await self._start()
        await self._budget.reserve(most)
        used: Spent | None = None
        attempts, seconds = 0, 0.0
        spoilt: list[Reply] = []

        async def once(slot: Slot) -> tuple[Raw, Reply]:
            nonlocal attempts, seconds
            await slot.renew()
            if self._health.over is not None:
                raise self._health.over
            flight = self._flights[key]
            if attempts and not flight.waiting:  # whoever asked is gone
                raise asyncio.CancelledError
            attempts += 1
            begun = time.perf_counter()
            flight.sent = True
            try:
                raw = await self._backend.ask(request)
                seconds = time.perf_counter() - begun
                reply = self._read(raw, request)
                if reply.retryable:
                    spoilt.append(reply)
                    raise RetryableFailure(reply.failure or "no answer")
            except RequestFailed as error:
                seconds = time.perf_counter() - begun
                self._slow_down(error, slot)
                flight.sent = False
                await self._health.failed(error, self._limiter.in_flight)
                raise
            self._health.answered()
            self._limiter.succeeded()
            return raw, reply

        try:
            async with self._limiter.slot() as slot:
                raw, reply = await self._attempts()(once, slot)
            used = self._budget.price(*_paid(reply, *spoilt)) if reply.counted else most
            self._cache.put(key, raw, seconds)
        except RequestFailed as error:
            reply = Reply(failure=clean(str(error)), retryable=_retryable(error))
            used = self._budget.price(*_paid(*spoilt)) if spoilt else None
        finally:
            self._budget.settle(most, used)
        self._notice_capabilities()
        outcome = _Outcome(reply, seconds, attempts, tuple(spoilt))
        self._count(request, outcome, cached=False)
        return outcome

    def _read(self, raw: Raw, request: Request) -> Reply:
        """What the backend reads, in text that every file and terminal can hold."""
        reply = self._backend.read(raw, request)
        if reply.text is not None and len(reply.text) > MOST_CHARACTERS:
            why = f"an answer of {len(reply.text):,} characters, more than {MOST_CHARACTERS:,} are not read"
            return replace(reply, text=None, failure=why)
        text = None if reply.text is None else clean(reply.text)
        return replace(reply, text=text, failure=None if reply.failure is None else clean(reply.failure))

    def _attempts(self) -> tenacity.AsyncRetrying:
        """Attempts at one request. Rate limits have four times the patience of other failures: the endpoint lives."""
        growing = tenacity.wait_random_exponential(multiplier=self._backoff, max=_LONGEST_PAUSE)
        lost, limited = 0, 0

        def give_up(state: tenacity.RetryCallState) -> bool:
            nonlocal lost, limited
            error = state.outcome.exception() if state.outcome else None
            if isinstance(error, RateLimited):
                limited += 1
            else:
                lost += 1
            return lost > self._config.retries or limited > 4 * self._config.retries

        def pause(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            if isinstance(error, RateLimited) and error.retry_after and limited < self._config.retries:
                return 0.0  # the limiter holds every request back until then
            return growing(state)  # also where that was not enough, or the endpoint says "now"

        return tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type((RateLimited, RetryableFailure)),
            stop=give_up,
            wait=pause,
            reraise=True,
        )

    def _slow_down(self, error: RequestFailed, slot: Slot) -> None:
        if not isinstance(error, RateLimited):
            return
        wait = self._patience(error)
        if wait and slot.epoch == self._limiter.epoch:  # said once, not by each request that was on its way
            if error.retry_after is not None and wait < error.retry_after:
                asked = f"the endpoint asks for a pause of {error.retry_after:.3g} s: "
                log.warning("%s: rate limit, %swaiting %.3g s (llm.max_retry_after)", self.model, asked, wait)
            elif wait > 30:
                log.warning("%s: rate limit, waiting %.0f s as the endpoint asks", self.model, wait)
        self._limiter.limited(slot, wait)
        if wait:
            self._pace.limited(wait)

    def _patience(self, error: RateLimited) -> float | None:
        return None if error.retry_after is None else min(error.retry_after, self._config.max_retry_after)

    # --- starting

    async def _start(self) -> None:
        async with self._starting:
            if self._started:
                return
            if self._health.over is not None:
                raise self._health.over
            try:
                await self._attempts()(self._start_once)
            except RequestFailed as error:
                self._health.over = AutointerpError(str(error))
                raise self._health.over from error
            except AutointerpError as error:
                self._health.over = error
                raise
            self._started = True
            self._capabilities = self._backend.capabilities
            self._memory["capabilities"] = sorted(self._capabilities)

    async def probe(self) -> None:
        """A request of a few tokens, tried as often as any other. Raises AutointerpError where it is not answered."""
        await self._start()
        try:
            await self._attempts()(self._backend.probe)
        except RequestFailed as error:
            raise AutointerpError(str(error)) from error

    async def _start_once(self) -> None:
        try:
            await self._backend.start()
        except RateLimited as error:
            await asyncio.sleep(self._patience(error) or 0)
            raise

    def _notice_capabilities(self) -> None:
        """What the endpoint has refused meanwhile, a later run does not count on. This one goes on as it began."""
        able = sorted(self._backend.capabilities)
        if able != self._memory.get("capabilities"):
            self._memory["capabilities"] = able

    def _count(self, request: Request, outcome: _Outcome, *, cached: bool) -> None:
        reply = outcome.reply
        stage, feature = tags()
        row = UsageRow(
            stage=stage,
            feature=feature,
            model=self.model,
            kind=request.kind,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            cached_tokens=reply.cached_tokens,
            cached=cached,
            seconds=round(outcome.seconds, 4),
            outcome="ok" if reply.failure is None else f"failed: {reply.failure}",
            attempts=outcome.attempts,
            prompt_hash=prompt_hash(request.messages, request.turn if isinstance(request, Fill | Weigh) else None),
        )
        prompt, completion = _paid(reply, *(() if cached else outcome.spoilt))
        self._journal.add(replace(row, prompt_tokens=prompt, completion_tokens=completion))
        count(row, reply.retryable)


def _paid(*replies: Reply) -> tuple[int, int]:
    """Tokens of prompts and of answers."""
    return sum(reply.prompt_tokens for reply in replies), sum(reply.completion_tokens for reply in replies)


def _most_tokens(text: str) -> int:
    """More tokens than any usual text needs, which are not known before: three letters of ASCII each, and two bytes of
    UTF-8 elsewhere, where a tokenizer may have no words, as of Chinese."""
    plain = len(text.encode("ascii", "ignore"))
    return plain // 3 + (len(text.encode("utf-8", "replace")) - plain) // 2


def _retryable(error: RequestFailed) -> bool:
    return isinstance(error, RateLimited | RetryableFailure) or (isinstance(error, FinalFailure) and error.retryable)


def _sendable(messages: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(Message(message.role, sendable(message.content)) for message in messages)
