"""A worker on a cluster: it does a stage's work as the driver would, but of the shards alone that it draws.

1. A ticket names the stage's use, its folders and its shards. The worker calls the stage's own `work`.
2. Where that comes to its shards it draws one after the other from the keeper, until none is left.
3. It goes no further: merging is the driver's. Models, connections and what else the session keeps stay for the next
   ticket.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError

from autointerp.config import Config, LLMConfig, parse_config
from autointerp.engine.cluster.keeper import News
from autointerp.engine.executor import Seen, Shard
from autointerp.engine.session import Session
from autointerp.engine.stage import Job, Use
from autointerp.errors import AutointerpError, OutOfBudget
from autointerp.hashing import PACKAGE
from autointerp.llm import registry
from autointerp.llm.backend import Raw
from autointerp.llm.books import Books, Pace
from autointerp.llm.cache import Memory, hashed
from autointerp.llm.limiter import Budget, Limiter, Spent
from autointerp.llm.prices import Prices
from autointerp.llm.usage import UsageRow
from autointerp.plugins import controls, explainers, scorers
from autointerp.registry import Registry
from autointerp.sae.formats import FORMATS

NOT_IN_KEYS = "it works the shards that it is given, by the stage's own code"

REGISTRIES: Mapping[str, Registry[Any]] = {
    each.kind: each for each in (explainers, scorers, controls, registry.backends, FORMATS)
}
FLUSHED = 32  # usage rows that wait to be sent together
UNDER_WAY = 64  # answers that the keeper need not yet have written


@dataclass(frozen=True)
class Orders:
    """What every worker of a run is told when it begins."""

    keeper: Any  # handle of the `Keeper`
    config: Mapping[str, Any]
    journal: Path
    retry_failed: bool
    folder: Path  # the driver's working folder, to which relative paths belong
    path: Sequence[str]  # where Python looks for modules
    env: Mapping[str, str]  # variables that the config names, such as API keys; they are set, and written nowhere
    code: str  # hash of the package
    registered: bytes  # plug-ins that are registered in the driver, pickled


@dataclass(frozen=True)
class Ticket:
    """One use of a stage, or the shards of it that are not done."""

    stage: str
    use: bytes  # pickled, with what does its work
    folder: Path
    inputs: Mapping[str, Path]
    shards: Sequence[int]  # none: the use is done whole


def got(reference: Any) -> Any:
    """What another process answers, when it does."""
    return ray.get(reference)


def pickled(value: object) -> bytes:
    """What lies in a module that is no file here travels whole, anything else by its name."""
    return cloudpickle.dumps(value)  # pyright: ignore[reportPrivateImportUsage]


class Drained(Exception):
    """No shard is left: the stage's work ends here, before it merges."""


class Worker:
    """An actor."""

    def __init__(self, name: str, orders: Orders) -> None:
        self._name, self._orders = name, orders
        os.environ.update(orders.env)
        sys.path += [place for place in orders.path if place not in sys.path]
        if orders.folder.is_dir():
            os.chdir(orders.folder)
        if fingerprint_of_package() != orders.code:
            raise AutointerpError(f"{socket.gethostname()} has another version of autointerp than the driver")
        for kind, name_of, target in cloudpickle.loads(orders.registered):
            REGISTRIES[kind].register(name_of)(target)
        config: Config = parse_config(dict(orders.config))
        self._session = Session(config, orders.journal, retry_failed=orders.retry_failed)
        self._session.books = self._books
        self._limiters: list[tuple[LLMConfig, Limiter]] = []
        self._flushed: list[Callable[[], None]] = []
        self._heard = News()
        threading.Thread(target=self._listen, daemon=True).start()
        logging.getLogger("autointerp").addHandler(_ToDriver(orders.keeper))

    def hello(self) -> str:
        return socket.gethostname()

    def work(self, ticket: Ticket) -> tuple[int, Mapping[str, Any]]:
        """Draw shards until none is left, or do the whole use; `Job.to_retry` and its facts. Raises what it raises."""
        if not ticket.folder.is_dir():
            raise AutointerpError(
                f"{socket.gethostname()} does not see {ticket.folder}: on a cluster $AUTOINTERP_CACHE and the run's"
                " folder lie on a disk that all nodes share"
            )
        use: Use
        work: Callable[[Job], None]
        use, work = cloudpickle.loads(ticket.use)
        self._session.executor = Drawing(self._orders.keeper, ticket, self._name, self._flush)
        session = self._session if use.under is None else self._session.under(use.under)
        job = Job(session, use, ticket.folder, ticket.inputs)
        try:
            work(job)
        except Drained:
            return 0, {}
        if ticket.shards:
            raise AutointerpError(f"{use.name}: a worker found none of the shards that it was to draw")
        self._flush()
        return job.to_retry, job.facts

    # --- what is shared

    def _books(self, config: LLMConfig, model: str) -> Books:
        keeper, prices = self._orders.keeper, registry.prices(config)
        answers, ledger = RemoteAnswers(keeper), RemoteLedger(keeper)
        self._flushed += [answers.flush, ledger.flush]
        return Books(
            answers,
            ledger,
            RemoteBudget(config, model, prices, keeper, self._name),
            _SharedPace(self, config),
        )

    def _flush(self) -> None:
        for flush in self._flushed:
            flush()

    def join(self, config: LLMConfig, limiter: Limiter) -> None:
        self._limiters.append((config, limiter))
        self._divide(limiter, config)

    def limited(self, config: LLMConfig, seconds: float) -> None:
        self._orders.keeper.limited.remote(config.model, seconds)

    def _divide(self, limiter: Limiter, config: LLMConfig) -> None:
        """Workers share what may be in flight, of a model that each of them does not run itself."""
        if not registry.is_served_here(config):
            limiter.resize(max(1, config.concurrency // max(1, self._heard.workers)))

    def _listen(self) -> None:
        while True:
            try:
                self._heard = got(self._orders.keeper.news.remote(self._heard.version))
            except RayError:  # the run is over
                return
            self._session.wait(self._apply(self._heard))

    async def _apply(self, news: News) -> None:
        for config, limiter in self._limiters:
            self._divide(limiter, config)
            left = news.paused.get(config.model, 0.0) - time.time()
            if left > 0:
                limiter.pause(left)


class Drawing:
    """The executor of a worker."""

    def __init__(self, keeper: Any, ticket: Ticket, worker: str, flush: Callable[[], None]) -> None:
        self._keeper, self._ticket, self._worker, self._flush = keeper, ticket, worker, flush
        self.shards = frozenset(ticket.shards)
        self._drew = False

    def whole(self, job: Job) -> bool:
        return False

    def elsewhere(self, job: Job, shards: Sequence[Shard], seen: Seen) -> bool:
        """A stage that divides its work more than once: these are done, others are to be drawn."""
        return not self.shards.issubset(shard.number for shard in shards)

    def draw(self, job: Job, shards: Sequence[Shard], seen: Seen) -> Iterator[Shard]:
        self._drew, by_number = True, {shard.number: shard for shard in shards}
        while (number := got(self._keeper.draw.remote(self._ticket.stage, self._worker))) is not None:
            yield by_number[number]

    def kept(self, shard: Shard) -> None:
        self._flush()
        got(self._keeper.kept.remote(self._ticket.stage, shard.number))

    def over(self) -> None:
        raise Drained


class RemoteAnswers:
    """`llm.books.Answers` that the keeper has. What is put there is on its way when `put` returns, and has arrived when
    `flush` does, before a shard counts as kept."""

    def __init__(self, keeper: Any) -> None:
        self._keeper = keeper
        self._under_way: dict[str, tuple[Raw, float, Any]] = {}  # until the keeper says that it has them

    async def find(self, key: str) -> tuple[Raw, float] | None:
        if key not in self._under_way:
            kept = await self._keeper.get.remote(key)
            if kept is not None or key not in self._under_way:  # it may have been put meanwhile
                return kept
        raw, seconds, _ = self._under_way[key]
        return raw, seconds

    def put(self, key: str, raw: Raw, seconds: float) -> None:
        if len(self._under_way) >= UNDER_WAY:
            self.flush()
        self._under_way[key] = raw, seconds, self._keeper.put.remote(key, raw, seconds)

    def flush(self) -> None:
        """Raises where the keeper could not write, as on a full disk."""
        sent = dict(self._under_way)
        got([reference for _, _, reference in sent.values()])
        for key in sent:
            self._under_way.pop(key, None)

    def memory(self, identity: str) -> MutableMapping[str, Any]:
        return Memory(self, hashed(identity))

    def learnt(self, identity: str) -> dict[str, Any]:
        return got(self._keeper.learnt.remote(identity))

    def learn(self, identity: str, name: str, value: object) -> None:
        got(self._keeper.learn.remote(identity, name, value))

    def unlearn(self, identity: str, name: str) -> None:
        got(self._keeper.unlearn.remote(identity, name))

    def close(self) -> None: ...


class RemoteLedger:
    """`llm.books.Ledger`: rows go to the keeper some at a time, and all of a shard before it counts as kept."""

    def __init__(self, keeper: Any) -> None:
        self._keeper = keeper
        self._rows: list[UsageRow] = []

    def add(self, row: UsageRow) -> None:
        self._rows.append(row)
        if len(self._rows) >= FLUSHED:
            self._send()

    def _send(self) -> Any:
        rows, self._rows = self._rows, []
        return self._keeper.add_rows.remote(rows)

    def flush(self) -> None:
        got(self._send())

    def close(self) -> None:
        self._send()


class RemoteBudget:
    """`llm.books.Allowance`. Where the config limits nothing, nobody is asked."""

    def __init__(self, config: LLMConfig, model: str, prices: Prices | None, keeper: Any, worker: str) -> None:
        self._about, self._keeper, self._worker = (config, model, prices), keeper, worker
        self.price, self.spent = Budget(config, prices).price, Spent()
        limits = config.max_requests, config.max_tokens, config.max_cost
        self._limited = any(limit is not None for limit in limits)
        self._numbers = itertools.count()
        self._held: dict[int, list[str]] = {}  # by identity of what was set aside, which a request hands back

    async def reserve(self, most: Spent) -> None:
        if not self._limited:
            return
        number = f"{self._worker} {next(self._numbers)}"
        try:
            why = await self._keeper.reserve.remote(number, *self._about, most)
        except BaseException:
            self._keeper.settle.remote(number, None)
            raise
        if why:
            raise OutOfBudget(why)
        self._held.setdefault(id(most), []).append(number)

    def settle(self, most: Spent, used: Spent | None) -> None:
        if used is not None:
            self.spent.add(used)
        if self._limited:
            held = self._held[id(most)]
            self._keeper.settle.remote(held.pop(), used)
            if not held:
                del self._held[id(most)]


class _SharedPace(Pace):
    def __init__(self, worker: Worker, config: LLMConfig) -> None:
        self._worker, self._config = worker, config

    def join(self, limiter: Limiter) -> None:
        self._worker.join(self._config, limiter)

    def limited(self, seconds: float) -> None:
        self._worker.limited(self._config, seconds)


class _ToDriver(logging.Handler):
    """Warnings are told where the run was started."""

    def __init__(self, keeper: Any) -> None:
        super().__init__(logging.WARNING)
        self._keeper = keeper

    def emit(self, record: logging.LogRecord) -> None:
        self._keeper.warn.remote(f"{socket.gethostname()}: {record.getMessage()}")


def fingerprint_of_package() -> str:
    """Of the package's Python files."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
