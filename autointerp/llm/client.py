"""The language model as explainers and scorers see it: cached, retried, limited, counted and within budget."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, runtime_checkable

import tenacity

from autointerp.config import LLMConfig
from autointerp.errors import AutointerpError, EndpointDown
from autointerp.llm.backend import Backend, FinalFailure, PassingFailure, RateLimited, Reply, RequestFailed
from autointerp.llm.cache import RequestCache, canonical, request_key
from autointerp.llm.limiter import Budget, Limiter, Slot, Spent
from autointerp.records import Capability, Choices, Completion, Message

log = logging.getLogger("autointerp.llm")

RequestKind = Literal["complete", "choose", "fill"]
_LONGEST_PAUSE = 60.0  # seconds, where the endpoint does not say how long


# --- usage ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One request of the pipeline. Tokens and seconds are those of the answer, also where it was `cached`."""

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


_COLUMNS = {column.name for column in fields(UsageRow)}


def read_usage(path: str | Path) -> list[UsageRow]:
    """Rows of a journal, in the order of their answers; a line that a kill tore is left out."""
    path = Path(path)
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            raw = json.loads(line)
        except ValueError:
            continue
        if isinstance(raw, dict) and raw.keys() == _COLUMNS:
            rows.append(UsageRow(**raw))
    return rows


class _Journal:
    """Appends a line a row, in one write each."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed by `close`
        if self._file.seek(0, 2) and self._file.seek(-1, 2) >= 0 and self._file.read(1) != b"\n":
            self._file.write(b"\n")  # a kill tore the last line: the next row must not be glued to it

    def add(self, row: UsageRow) -> None:
        try:
            self._file.write(json.dumps(asdict(row)).encode() + b"\n")
        except OSError as error:
            raise AutointerpError(
                f"{self._path}: {error.strerror}; make room and run again, answers are kept"
            ) from error

    def close(self) -> None:
        self._file.close()


@dataclass
class Meter:
    """What the requests made inside one `Client.meter()` used; answers from the cache count as when asked."""

    prompt_hashes: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    requests: int = 0
    cached: int = 0
    failed: int = 0
    passing_failures: int = 0  # of the failed, those that may succeed later

    def add(self, row: UsageRow, passing: bool) -> None:
        self.prompt_hashes.append(row.prompt_hash)
        self.prompt_tokens += row.prompt_tokens
        self.completion_tokens += row.completion_tokens
        self.requests += 1
        self.cached += row.cached
        self.failed += row.outcome != "ok"
        self.passing_failures += passing


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


# --- the client -------------------------------------------------------------------------------


@runtime_checkable
class Remembers(Protocol):
    """A backend that finds things out about its endpoint, to be kept from run to run."""

    memory: MutableMapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Outcome:
    answer: Reply | RequestFailed
    seconds: float
    attempts: int


@dataclass(slots=True)
class _Flight:
    """A request on its way, and how many askers wait for it."""

    task: asyncio.Task[_Outcome]
    waiting: int = 0


class Client:
    """`autointerp.records.LLM` over one backend.

    A request is looked up in the cache, set against the budget, given its turn by the limiter, tried
    until it is answered or given up, and stored before it is handed back. Equal requests that are on
    their way together are asked once. The backend starts at the first request that must be asked, or
    on entering when nobody has yet found out what it can do.

    A request that fails is a value (`Completion.failure`). Raised are only AutointerpErrors that end
    the run: OutOfBudget, EndpointDown, a wrong key or model, a full disk.
    """

    def __init__(
        self,
        backend: Backend,
        config: LLMConfig,
        *,
        cache: RequestCache,
        journal: str | Path,
        seed: int = 0,
        backoff: float = 1.0,
    ) -> None:
        """`backoff`: seconds of the first pause between attempts, doubling from there, with full jitter."""
        self._backend, self._config, self._cache, self._seed, self._backoff = backend, config, cache, seed, backoff
        self._limiter = Limiter(config.concurrency)
        self._budget = Budget(config)
        for row in read_usage(journal):  # the limits are those of the run, however often it is taken up again
            if row.model == backend.model and row.outcome == "ok" and not row.cached:
                self._budget.spent.add(self._budget.price(row.prompt_tokens, row.completion_tokens))
        self._journal = _Journal(Path(journal))
        self._capabilities: frozenset[Capability] | None = None
        self._memory: MutableMapping[str, Any] = {}
        self._starting = asyncio.Lock()
        self._started = False
        self._flights: dict[str, _Flight] = {}  # by request key
        self._tasks: set[asyncio.Task[_Outcome]] = set()
        self._passing_in_a_row = 0
        self._failed_in_a_row = 0  # rate limits too
        self._over: AutointerpError | None = None  # why nothing more is asked

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

    @contextmanager
    def meter(self) -> Iterator[Meter]:
        """Adds up the requests made inside, in this task and those it starts, whichever client they go to."""
        meter = Meter()
        token = _meters.set((*_meters.get(), meter))
        try:
            yield meter
        finally:
            _meters.reset(token)

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
        # greedy answers do not hang on the run's seed, so that runs share them; a repeat differs by its number
        seed = attempt if temperature == 0 else 1000 * self._seed + attempt
        asked = {
            "max_tokens": max_tokens,
            "temperature": float(temperature),
            "seed": seed,
            "schema": schema,
            "stop": list(stop),
            "attempt": attempt,
        }

        async def ask() -> Reply:
            return await self._backend.complete(
                messages, max_tokens=max_tokens, temperature=temperature, seed=seed, schema=schema, stop=stop
            )

        answer = await self._answer("complete", messages, asked, ask, max_tokens)
        if isinstance(answer, Reply):
            return Completion(answer.text, truncated=answer.truncated)
        return Completion(None, failure=str(answer), passing=_passes(answer))

    async def choose(self, messages: Sequence[Message], answers: Sequence[str]) -> Choices:
        async def ask() -> Reply:
            return await self._backend.choose(messages, answers)

        answer = await self._answer("choose", messages, {"answers": list(answers)}, ask, 1)
        if isinstance(answer, Reply):
            return answer.choices[0]
        return Choices(None, failure=str(answer), passing=_passes(answer))

    async def fill(
        self, messages: Sequence[Message], segments: Sequence[str], filler: str, answers: Sequence[str]
    ) -> Sequence[Choices]:
        async def ask() -> Reply:
            return await self._backend.fill(messages, segments, filler, answers)

        asked = {"segments": list(segments), "filler": filler, "answers": list(answers)}
        answer = await self._answer("fill", messages, asked, ask, 1)
        if isinstance(answer, Reply):
            return answer.choices
        return tuple(Choices(None, failure=str(answer), passing=_passes(answer)) for _ in segments)

    # --- how it is asked

    async def _answer(
        self,
        kind: RequestKind,
        messages: Sequence[Message],
        asked: Mapping[str, object],
        ask: Callable[[], Awaitable[Reply]],
        max_tokens: int,
    ) -> Reply | RequestFailed:
        said = canonical([[m.role, m.content] for m in messages] + [asked.get("segments"), asked.get("filler")])
        prompt_hash = hashlib.sha256(said.encode()).hexdigest()[:16]
        key = request_key(self._backend.identity, kind, messages, asked)
        kept = self._cache.get(key)
        if kept is not None:
            self._count(kind, prompt_hash, _Outcome(kept[0], kept[1], 0), cached=True)
            return kept[0]
        flight = self._flights.get(key)
        first = flight is None
        if flight is None:
            # prompt tokens are not known before: three characters each is more than any usual text needs
            most = self._budget.price(len(said) // 3 + 8 * len(messages), max_tokens)
            flight = _Flight(asyncio.create_task(self._ask(kind, key, prompt_hash, ask, most)))
            self._flights[key] = flight
            self._tasks.add(flight.task)
            flight.task.add_done_callback(lambda task: self._landed(key, task))
        flight.waiting += 1
        try:
            outcome = await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            if flight.waiting == 1:  # nobody else wants the answer
                flight.task.cancel()
                self._flights.pop(key, None)
            raise
        finally:
            flight.waiting -= 1
        if not first:
            self._count(kind, prompt_hash, _Outcome(outcome.answer, outcome.seconds, 0), cached=True)
        return outcome.answer

    def _landed(self, key: str, task: asyncio.Task[_Outcome]) -> None:
        self._tasks.discard(task)
        if key in self._flights and self._flights[key].task is task:
            del self._flights[key]
        if not task.cancelled():
            task.exception()  # seen, also when every asker was cancelled meanwhile

    async def _ask(
        self, kind: RequestKind, key: str, prompt_hash: str, ask: Callable[[], Awaitable[Reply]], most: Spent
    ) -> _Outcome:
        """In a task of its own, with the tags and meters of the first asker."""
        await self._start()
        await self._budget.reserve(most)
        used, attempts, seconds = None, 0, 0.0

        async def once(slot: Slot) -> Reply:
            nonlocal attempts, seconds
            await slot.renew()
            if self._over is not None:
                raise self._over
            attempts += 1
            begun = time.perf_counter()
            try:
                reply = await ask()
            except RequestFailed as error:
                self._failed(error, slot)
                raise
            finally:
                seconds = time.perf_counter() - begun
            self._passing_in_a_row = self._failed_in_a_row = 0
            self._limiter.succeeded()
            return reply

        try:
            async with self._limiter.slot() as slot:
                answer = await self._attempts()(once, slot)
            used = self._budget.price(answer.prompt_tokens, answer.completion_tokens)
            self._cache.put(key, answer, seconds)
        except RequestFailed as error:
            answer = error
        finally:
            self._budget.settle(most, used)
        outcome = _Outcome(answer, seconds, attempts)
        self._count(kind, prompt_hash, outcome, cached=False)
        return outcome

    def _attempts(self) -> tenacity.AsyncRetrying:
        """Attempts at one request. Rate limits have four times the patience of other failures: the endpoint lives."""
        growing = tenacity.wait_random_exponential(multiplier=self._backoff, max=_LONGEST_PAUSE)
        passing, limited = 0, 0

        def give_up(state: tenacity.RetryCallState) -> bool:
            nonlocal passing, limited
            error = state.outcome.exception() if state.outcome else None
            if isinstance(error, RateLimited):
                limited += 1
            else:
                passing += 1
            return passing > self._config.retries or limited > 4 * self._config.retries

        def pause(state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            if isinstance(error, RateLimited) and error.retry_after is not None:
                return 0.0  # the limiter holds every request back until then
            return growing(state)

        return tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type((RateLimited, PassingFailure)),
            stop=give_up,
            wait=pause,
            reraise=True,
        )

    def _failed(self, error: RequestFailed, slot: Slot) -> None:
        """Slow down, or raise when no other request will fare better."""
        self._failed_in_a_row += 1
        if isinstance(error, RateLimited):
            self._passing_in_a_row = 0
            if error.retry_after and error.retry_after > 30:
                log.warning("%s: rate limit, waiting %.0f s as the endpoint asks", self.model, error.retry_after)
            self._limiter.limited(slot, error.retry_after)
        elif isinstance(error, PassingFailure):
            self._passing_in_a_row += 1
        else:
            self._passing_in_a_row = self._failed_in_a_row = 0  # a refusal is an answer
            if isinstance(error, FinalFailure) and error.fatal:
                self._over = AutointerpError(str(error))
        # every request on its way must have failed several times, so that a hiccup which drops all of them at once
        # is no death; rate limits come from a living endpoint, and only very many in a row mean a spent quota
        on_their_way = self._limiter.in_flight
        if self._passing_in_a_row >= max(20, 4 * on_their_way) or self._failed_in_a_row >= max(100, 20 * on_their_way):
            self._over = EndpointDown(
                f"{self.model} does not answer any more, {self._failed_in_a_row} failures in a row, the last: {error}; "
                "all answers are kept: see that the endpoint runs and run again"
            )
        if self._over is not None:
            raise self._over from error

    async def _start(self) -> None:
        async with self._starting:
            if self._started:
                return
            if self._over is not None:
                raise self._over
            try:
                await self._attempts()(self._start_once)
            except RequestFailed as error:
                self._over = AutointerpError(str(error))
                raise self._over from error
            except AutointerpError as error:
                self._over = error
                raise
            self._started = True
            self._capabilities = self._backend.capabilities
            self._memory["capabilities"] = sorted(self._capabilities)

    async def _start_once(self) -> None:
        try:
            await self._backend.start()
        except RateLimited as error:
            await asyncio.sleep(error.retry_after or 0)
            raise

    def _count(self, kind: RequestKind, prompt_hash: str, outcome: _Outcome, *, cached: bool) -> None:
        reply = outcome.answer if isinstance(outcome.answer, Reply) else Reply()
        stage, feature = _tags.get()
        row = UsageRow(
            stage=stage,
            feature=feature,
            model=self.model,
            kind=kind,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            cached_tokens=reply.cached_tokens,
            cached=cached,
            seconds=round(outcome.seconds, 4),
            outcome="ok" if isinstance(outcome.answer, Reply) else f"failed: {outcome.answer}",
            attempts=outcome.attempts,
            prompt_hash=prompt_hash,
        )
        self._journal.add(row)
        for meter in _meters.get():
            meter.add(row, isinstance(outcome.answer, RequestFailed) and _passes(outcome.answer))


def _passes(error: RequestFailed) -> bool:
    return isinstance(error, RateLimited | PassingFailure)
