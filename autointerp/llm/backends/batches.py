"""Batch APIs, at half the price: requests are collected, submitted together, waited for, and outlive a kill.

1. `Batches.ask` looks whether a batch of this or an earlier run holds the request. Else the request waits for others.
2. When none has joined for `QUIET` seconds, those that wait are submitted. What is submitted is written down before,
   and the batch's id as soon as it is known. A run that was killed in between finds the batch in the provider's list.
3. The batch is looked at, ever more seldom, until it has ended. Each answer then goes to who asks for it.
4. A batch is forgotten when all its answers were handed over and the run ends. Failed requests leave it at once, so
   that they may be asked again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from autointerp.config import LLMConfig
from autointerp.llm.backend import FinalFailure, RequestFailed, RetryableFailure
from autointerp.llm.backends.http import HttpBackend
from autointerp.llm.prices import Prices
from autointerp.records import Capability

log = logging.getLogger("autointerp.llm")

QUIET = 2.0  # seconds without a new request, after which those that wait are submitted
FIRST_LOOK, LAST_LOOK = 1.0, 60.0  # seconds between two looks at a batch, at first and at most
MOST_REQUESTS = 10_000  # of a batch; the providers take more
MOST_BYTES = 90 << 20
KEPT = 28 * 86_400.0  # seconds for which providers keep a batch's answers
LONGEST = 26 * 3600.0  # seconds after which a batch that has not ended is given up
UPLOAD = 900.0  # seconds for sending a batch, and for fetching its answers
MOST_SAID = 8 << 20  # bytes of what is said of a batch
HALF = 0.5  # of the price

Answer = dict[str, Any] | RequestFailed


@dataclass(frozen=True)
class Intent:
    """What is about to be submitted: its mark, when, and how many requests."""

    mark: str
    created: float
    count: int


class Provider(Protocol):
    """One provider's batch API. Each method raises RequestFailed."""

    async def submit(self, requests: Sequence[tuple[str, dict[str, Any]]], mark: str) -> str:
        """Submit bodies by name; returns the batch's id."""
        ...

    async def find(self, intent: Intent, known: Sequence[str]) -> str | None:
        """The id of the batch that was made of `intent` but is not among those `known`."""
        ...

    async def ended(self, batch: str) -> bool: ...

    def answers(self, batch: str) -> AsyncIterator[tuple[str, Answer]]:
        """Name and answer, or why there is none, of each request of a batch that has ended."""
        ...


@dataclass
class _Batch:
    created: float
    names: set[str]  # of requests whose answers nobody has had
    looking: asyncio.Task[None] | None = None


@dataclass
class Batches:
    """The batches of one model at one provider. `memory` lasts from run to run."""

    provider: Provider
    memory: MutableMapping[str, Any]
    _batches: dict[str, _Batch] = field(default_factory=dict)
    _waiting: dict[str, dict[str, Any]] = field(default_factory=dict)
    _wanted: dict[str, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    _held: dict[str, Answer] = field(default_factory=dict)  # answers that came before they were asked for
    _collecting: asyncio.Task[None] | None = None

    async def recall(self) -> None:
        """Take up the batches of earlier runs, those too whose ids a kill kept from being written."""
        for key, kept in list(self.memory.items()):
            word, _, name = key.partition(" ")
            if word in ("batch", "submitting") and time.time() - kept["created"] > KEPT:
                del self.memory[key]
            elif word == "batch":
                self._batches[name] = _Batch(kept["created"], set(kept["names"]))
        await self._recall_submitted()
        if self._batches:
            log.info("%d batches of an earlier run are taken up", len(self._batches))

    async def _recall_submitted(self) -> None:
        """Of what may have been submitted, for nothing was heard of it, take up what the provider has."""
        for key, kept in list(self.memory.items()):
            word, _, mark = key.partition(" ")
            if word == "submitting":
                intent = Intent(mark, kept["created"], len(kept["names"]))
                if batch := await self.provider.find(intent, list(self._batches)):
                    self._note(batch, kept["names"], kept["created"])
                del self.memory[key]

    async def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to `body`; raises RequestFailed."""
        name = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        if name in self._wanted:  # the same is asked twice at one time
            return await asyncio.shield(self._wanted[name])
        future = self._wanted[name] = asyncio.get_running_loop().create_future()
        try:
            self._place(name, body)
            answer = await future
        finally:
            del self._wanted[name]
            self._waiting.pop(name, None)
        for batch in self._batches.values():
            batch.names.discard(name)
        return answer

    def _place(self, name: str, body: dict[str, Any]) -> None:
        """Where the answer will come from: it is here, a batch has it, or the next one will."""
        if name in self._held:
            self._give(name, self._held.pop(name))
            return
        if not self._comes(name):
            self._waiting[name] = body
            if self._collecting is None:
                self._collecting = asyncio.create_task(self._collect())

    def _comes(self, name: str) -> bool:
        """Whether a batch has the request; it is looked at then."""
        for identifier, batch in self._batches.items():
            if name in batch.names:
                if batch.looking is None:
                    batch.looking = asyncio.create_task(self._look(identifier, batch))
                return True
        return False

    def _give(self, name: str, answer: Answer) -> None:
        future = self._wanted.get(name)
        if future is None or future.done():
            self._held[name] = answer
        elif isinstance(answer, RequestFailed):
            future.set_exception(answer)
            for identifier, batch in self._batches.items():
                if name in batch.names:  # it may be asked again, in another batch
                    batch.names.discard(name)
                    self._write(identifier, batch)
        else:
            future.set_result(answer)

    async def close(self) -> None:
        """Batches go on at the provider; what was handed over is forgotten."""
        tasks = [batch.looking for batch in self._batches.values()] + [self._collecting]
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)
        for identifier, batch in self._batches.items():
            self._write(identifier, batch)

    def _write(self, identifier: str, batch: _Batch) -> None:
        if batch.names:
            self.memory[f"batch {identifier}"] = {"created": batch.created, "names": sorted(batch.names)}
        else:
            self.memory.pop(f"batch {identifier}", None)

    # --- submitting

    async def _collect(self) -> None:
        try:
            while self._waiting:
                count = 0
                while count != len(self._waiting) < MOST_REQUESTS:
                    count = len(self._waiting)
                    await asyncio.sleep(QUIET)
                await self._submit(_first(self._waiting))
        except Exception as error:
            self._fail(error)
        finally:
            self._collecting = None

    def _fail(self, error: Exception) -> None:
        """Nothing more can be noted, as on a full disk: nobody may wait for what does not come."""
        for future in self._wanted.values():
            if not future.done():
                future.set_exception(error)

    async def _submit(self, requests: dict[str, dict[str, Any]]) -> None:
        for name in requests:
            del self._waiting[name]
        try:
            await self._recall_submitted()
            requests = {name: body for name, body in requests.items() if not self._comes(name)}
            if not requests:
                return
            batch = await self._submitted(requests)
        except RequestFailed as error:
            for name in requests:
                self._give(name, error)
                self._held.pop(name, None)
            return
        log.info(
            "batch %s of %d requests is submitted: it may take hours, and goes on where this run is stopped",
            batch,
            len(requests),
        )
        self._batches[batch].looking = asyncio.create_task(self._look(batch, self._batches[batch]))

    async def _submitted(self, requests: dict[str, dict[str, Any]]) -> str:
        """The id of a new batch of `requests`, which is noted. Where it cannot be told whether there is one, what was
        written down stays, and is looked for before anything else is submitted."""
        created, names = time.time(), sorted(requests)
        mark = hashlib.sha256(json.dumps([created, *names]).encode()).hexdigest()[:32]
        key = f"submitting {mark}"
        self.memory[key] = {"created": created, "names": names}
        try:
            batch = await self.provider.submit(list(requests.items()), mark)
        except RetryableFailure:  # it may have been submitted, and only the answer been lost
            found = await self.provider.find(Intent(mark, created, len(names)), list(self._batches))
            if found is None:
                del self.memory[key]
                raise
            batch = found
        except RequestFailed:
            del self.memory[key]
            raise
        self._note(batch, names, created)
        del self.memory[key]
        return batch

    def _note(self, identifier: str, names: Sequence[str], created: float) -> None:
        self._batches[identifier] = _Batch(created, set(names))
        self._write(identifier, self._batches[identifier])

    # --- waiting

    async def _look(self, identifier: str, batch: _Batch) -> None:
        pause = FIRST_LOOK
        try:
            while not await self._ended(identifier, batch):
                await asyncio.sleep(pause)
                pause = min(LAST_LOOK, 1.5 * pause)
            async for name, answer in self._fetched(identifier):
                if name in batch.names:
                    self._give(name, answer)
            lost: Answer = RetryableFailure(f"batch {identifier} ended without an answer to this request")
        except RequestFailed as error:
            lost = error
        except Exception as error:
            self._fail(error)
            return
        finally:
            batch.looking = None
        for name in [name for name in batch.names if name in self._wanted]:
            self._give(name, lost)

    async def _ended(self, identifier: str, batch: _Batch) -> bool:
        if time.time() - batch.created > LONGEST:
            raise RetryableFailure(f"batch {identifier} has not ended after {LONGEST / 3600:.0f} hours")
        try:
            return await self.provider.ended(identifier)
        except FinalFailure:
            raise
        except RequestFailed as error:  # a rate limit, a lost connection: the batch goes on
            log.info("batch %s could not be looked at: %s", identifier, error)
            return False

    async def _fetched(self, identifier: str) -> AsyncIterator[tuple[str, Answer]]:
        """The answers; from the beginning again where the connection is lost on the way."""
        for attempt in range(5):
            try:
                async for name, answer in self.provider.answers(identifier):
                    yield name, answer
                return
            except FinalFailure:
                raise
            except RequestFailed as error:
                if attempt == 4:
                    raise
                log.info("the answers of batch %s could not be fetched: %s", identifier, error)
                await asyncio.sleep(FIRST_LOOK * 2**attempt)


def _first(waiting: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """As many as one batch takes."""
    chosen: dict[str, dict[str, Any]] = {}
    size = 0
    for name, body in waiting.items():
        size += len(json.dumps(body)) + 200
        if chosen and (size > MOST_BYTES or len(chosen) == MOST_REQUESTS):
            break
        chosen[name] = body
    return chosen


def text_of(said: Any, key: str) -> str:
    """What a provider says of a batch under `key`. Raises RetryableFailure where it does not."""
    if not isinstance(said, dict) or not isinstance(said.get(key), str):
        raise RetryableFailure(f"what is said of a batch has no {key!r}")
    return said[key]


# --- a backend by batches ---------------------------------------------------------------------

_live: ContextVar[bool] = ContextVar("autointerp_live", default=False)


@contextmanager
def live() -> Iterator[None]:
    """What is asked inside is asked at once, as probes are."""
    token = _live.set(True)
    try:
        yield
    finally:
        _live.reset(token)


class BatchBackend(HttpBackend):
    """Goes before a backend over HTTP among the bases of a class: what that one sends goes into batches.

    Probes are sent at once. Answers are those of the same model asked live: its kept answers count, and the other way
    round. `alone` is the word before the colon, `of` that of the backend that asks live.
    """

    collects = True
    alone: str
    of: str

    def provider(self) -> Provider:
        raise NotImplementedError

    @classmethod
    def live_config(cls, config: LLMConfig) -> LLMConfig:
        name = config.model.removeprefix(f"{cls.alone}:")
        return config.model_copy(update={"model": f"{cls.of}:{name}"})

    @classmethod
    def open(cls, config: LLMConfig, resolve_model: Callable[[str], Path] | None) -> Any:
        return cls(cls.live_config(config))  # type: ignore[call-arg]

    @classmethod
    def identify(cls, config: LLMConfig, identify_model: Callable[[str], str]) -> dict[str, Any]:
        return super().identify(cls.live_config(config), identify_model)  # type: ignore[misc]

    @classmethod
    def expected(cls, config: LLMConfig) -> frozenset[Capability]:
        return super().expected(cls.live_config(config))  # type: ignore[misc]

    @classmethod
    def prices(cls, config: LLMConfig) -> Prices | None:
        """Half the listed ones."""
        listed = super().prices(cls.live_config(config))  # type: ignore[misc]
        return None if listed is None else Prices(HALF * listed.tokens_in, HALF * listed.tokens_out)

    @classmethod
    def check(cls, config: LLMConfig, catalogue: Sequence[str]) -> None:
        super().check(cls.live_config(config), catalogue)  # type: ignore[misc]

    _batches: Batches | None = None

    async def start(self) -> None:
        with live():
            await super().start()  # type: ignore[misc]
        if self._batches is None:
            batches = Batches(self.provider(), self.memory)
            await batches.recall()
            self._batches = batches

    async def close(self) -> None:
        if self._batches is not None:
            await self._batches.close()
            self._batches = None
        await super().close()

    async def probe(self) -> None:
        with live():
            await super().probe()  # type: ignore[misc]

    async def _answered(self, body: dict[str, Any], most_bytes: int) -> dict[str, Any]:
        if self._batches is None or _live.get():
            return await super()._answered(body, most_bytes)
        return await self._batches.ask(body)
