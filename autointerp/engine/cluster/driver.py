"""The driver's side of a cluster: it starts a keeper and workers, hands out tickets, and replaces workers that die.

1. `on_cluster` connects to Ray when a stage first has shards to work, and ends what it started when the run ends.
2. A stage's shards are given to the keeper; workers draw them. The driver watches, and merges when all are kept.
3. A worker that is gone is replaced, and its shard drawn by another. A shard that ends `keeper.TRIES` workers ends the
   run. Whatever ends the run ends the workers; what was kept is there for the next.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autointerp.config import Config, ExecutorConfig
from autointerp.engine.cluster.keeper import TRIES, Keeper, Standing
from autointerp.engine.cluster.worker import REGISTRIES, Orders, Ticket, Worker, fingerprint_of_package, got, pickled
from autointerp.engine.executor import Seen, Shard, is_done
from autointerp.engine.session import Session
from autointerp.engine.stage import Job
from autointerp.errors import AutointerpError, ConfigError
from autointerp.registry import places
from autointerp.resources import cache_dir

NOT_IN_KEYS = "it decides who works a shard"

log = logging.getLogger("autointerp")

POLL = 0.2  # seconds between two looks at the workers
PATIENCE = 10.0  # seconds for workers to end when no shard is left


@contextmanager
def on_cluster(session: Session, work_of: Callable[[str], Callable[[Job], None]]) -> Iterator[None]:
    """`session.executor` is the cluster inside. `work_of`: the work of a use's stage, by the use's name."""
    cluster = session.executor = Cluster(session, work_of)
    try:
        yield
    finally:
        session.executor = None
        cluster.close()


@dataclass
class _Hand:
    """A worker as the driver knows it."""

    name: str
    actor: Any
    began: Any  # what `Worker.hello` will answer: it lives


class Cluster:
    """The executor of a driver."""

    def __init__(self, session: Session, work_of: Callable[[str], Callable[[Job], None]]) -> None:
        self._session, self._work_of = session, work_of
        self._config: ExecutorConfig = session.config.executor
        self._keeper: Any = None
        self._orders: Any = None  # handle of the `Orders`
        self._hands: list[_Hand] = []
        self._connected = False  # by us: then we also leave

    # --- engine.executor.Executor

    def elsewhere(self, job: Job, shards: Sequence[Shard], seen: Seen) -> bool:
        left: dict[int, Shard] = {}
        for shard in shards:
            if is_done(job.folder, shard):
                seen(shard, True)
            else:
                left[shard.number] = shard
        if left:
            self._connect()
            ticket = self._ticket(job, sorted(left))
            got(self._keeper.open.remote(ticket.stage, ticket.shards))
            try:
                self._supervise(ticket, left, seen)
            except BaseException:
                self._dismiss(self._hands)
                raise
            finally:
                with suppress(RayError):
                    got(self._keeper.close.remote(ticket.stage))
        return True

    def whole(self, job: Job) -> bool:
        self._connect()
        ticket = self._ticket(job, ())
        self._room()
        for _ in range(TRIES):
            hand = self._hands[0] if self._hands else self._hire()
            reference = hand.actor.work.remote(ticket)
            try:
                while not ray.wait([reference], timeout=POLL)[0]:
                    self._pass_on()
                self._ended(hand, reference)
                job.to_retry, facts = got(reference)
            except RayActorError:
                continue
            except BaseException:
                self._dismiss(self._hands)
                raise
            job.facts |= facts
            return True
        raise AutointerpError(f"{job.use.name}: {TRIES} workers died over it: it may need more memory than a node has")

    def draw(self, job: Job, shards: Sequence[Shard], seen: Seen) -> Iterator[Shard]:
        raise AssertionError("the driver works no shards")

    def kept(self, shard: Shard) -> None: ...

    def over(self) -> None: ...

    # --- a stage's work

    def _ticket(self, job: Job, shards: Sequence[int]) -> Ticket:
        return Ticket(
            f"{job.use.name} {secrets.token_hex(4)}",
            pickled((replace(job.use, section={}), self._work_of(job.use.name))),
            job.folder.resolve(),
            {name: folder.resolve() for name, folder in job.inputs.items()},
            shards,
        )

    def _pass_on(self) -> None:
        for text in self._asked("warnings"):
            log.warning("%s", text)

    def _supervise(self, ticket: Ticket, left: dict[int, Shard], seen: Seen) -> None:
        busy: dict[Any, _Hand] = {}
        known: set[int] = set()
        while True:
            standing: Standing = self._asked("standing", ticket.stage)
            self._pass_on()
            for number in standing.kept:
                if number not in known:
                    known.add(number)
                    seen(left[number], False)
            if len(known) == len(left):
                break
            if standing.hopeless is not None:
                raise AutointerpError(
                    f"{ticket.stage.split()[0]}: shard {standing.hopeless} ended each worker that had it: it may"
                    " need more memory than the nodes have (executor.shard_tokens makes shards smaller)"
                )
            self._staff(ticket, busy, standing.waiting)
            ended, _ = ray.wait(list(busy), timeout=POLL) if busy else ([], [])
            for reference in ended:
                self._ended(busy.pop(reference), reference)
        if busy:
            _, late = ray.wait(list(busy), num_returns=len(busy), timeout=PATIENCE)
            self._dismiss([busy[reference] for reference in late])

    def _staff(self, ticket: Ticket, busy: dict[Any, _Hand], waiting: int) -> None:
        """Give the ticket to workers, as many as there is room for and shards that wait."""
        at_work = {hand.name for hand in busy.values()}
        idle = [hand for hand in self._hands if hand.name not in at_work]
        begun = len(busy)
        not_there = sum(not _is_there(hand.began) for hand in busy.values())  # they will draw when they are there
        for _ in range(min(waiting - not_there, self._room() - len(busy))):
            hand = idle.pop() if idle else self._hire()
            busy[hand.actor.work.remote(ticket)] = hand
        if len(busy) != begun:
            self._keeper.staffed.remote(len(busy))

    def _ended(self, hand: _Hand, reference: Any) -> None:
        """A worker found no shard left, or died, or met an error."""
        try:
            got(reference)
        except RayTaskError as error:
            raise _cause(error) from None
        except RayActorError as error:
            if "creation task" in str(error):  # it never began: another would fare no better
                raise _cause(error) from None
            self._hands.remove(hand)
            numbers = self._asked("lost", hand.name)
            log.warning(
                "a worker is gone (%s): %s", hand.name, f"shard {numbers} goes to another" if numbers else "idle"
            )

    # --- workers

    def _room(self) -> int:
        """Workers that there may be, at most `executor.max_workers`."""
        room = _room(self._config)
        return min(room, self._config.max_workers or room)

    def _hire(self) -> _Hand:
        name, need = f"worker-{secrets.token_hex(4)}", _resources(self._config)
        remote: Any = ray.remote(Worker).options(num_cpus=need["CPU"], num_gpus=need["GPU"], max_restarts=0)
        actor = remote.remote(name, self._orders)
        hand = _Hand(name, actor, actor.hello.remote())
        self._hands.append(hand)
        return hand

    def _dismiss(self, hands: Sequence[_Hand]) -> None:
        for hand in list(hands):
            ray.kill(hand.actor)
            self._hands.remove(hand)
            with suppress(RayError):
                got(self._keeper.lost.remote(hand.name))

    def _asked(self, method: str, *given: Any) -> Any:
        try:
            return got(getattr(self._keeper, method).remote(*given))
        except RayTaskError as error:
            raise _cause(error) from None
        except RayActorError:
            raise AutointerpError(
                "the process that keeps this run's answers is gone: run again, it goes on from what is kept"
            ) from None

    # --- connecting

    def _connect(self) -> None:
        if self._keeper is not None:
            return
        if not ray.is_initialized():
            _connect(self._config)
            self._connected = True
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        keeper = ray.remote(Keeper).options(num_cpus=0, scheduling_strategy=here, max_concurrency=10_000)
        cache = cache_dir().resolve()
        cache.mkdir(parents=True, exist_ok=True)
        self._keeper = keeper.remote(cache / "requests.sqlite", self._session.journal.resolve())
        config = self._session.config
        registered = [(r.kind, name, target) for r in REGISTRIES.values() for name, target in r.decorated.items()]
        self._orders = ray.put(
            Orders(
                self._keeper,
                config.model_dump(mode="json"),
                self._session.journal.resolve(),
                self._session.retry_failed,
                Path.cwd(),
                [*sys.path, *map(str, places())],
                variables_of(config) | {"AUTOINTERP_CACHE": str(cache)},
                fingerprint_of_package(),
                pickled(registered),
            )
        )

    def close(self) -> None:
        if self._keeper is None:
            return
        with suppress(RayError):
            self._dismiss(self._hands)
            ray.kill(self._keeper)
        self._keeper = None
        if self._connected:
            ray.shutdown()


@contextmanager
def connected(config: ExecutorConfig) -> Iterator[tuple[str, int]]:
    """For several drivers on one cluster, which is started here where its address is local: its address, and how many
    workers it has room for."""
    ours = not ray.is_initialized()
    if ours:
        _connect(config)
    try:
        yield ray.get_runtime_context().gcs_address, _room(config)
    finally:
        if ours:
            ray.shutdown()


def _resources(config: ExecutorConfig) -> dict[str, float]:
    """Of a worker."""
    gpus = config.num_gpus
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
    return {"CPU": config.num_cpus, "GPU": gpus}


def _room(config: ExecutorConfig) -> int:
    """Workers that the cluster's nodes have room for."""
    wanted = _resources(config)
    room = 0
    for node in ray.nodes():
        if node["Alive"]:
            room += int(min(node["Resources"].get(name, 0.0) // need for name, need in wanted.items() if need))
    if not room:
        raise AutointerpError(
            f"no node of the Ray cluster has {wanted['CPU']:g} cores and {wanted['GPU']:g} GPUs for a worker:"
            " lower executor.num_cpus or executor.num_gpus"
        )
    return room


def _connect(config: ExecutorConfig) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = None if config.address == "local" else config.address
    if address and address.startswith("ray://"):
        raise ConfigError("executor.address: the driver runs on a machine of the cluster: give HOST:PORT, or auto")
    alone: dict[str, Any] = {"include_dashboard": False} if address is None else {}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **alone)
    except (ConnectionError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"no Ray cluster at executor.address {config.address!r} ({why}): start one with `ray start --head`, or set"
            " it to local"
        ) from None


def _is_there(reference: Any) -> bool:
    return bool(ray.wait([reference], timeout=0)[0])


def _cause(error: Exception) -> Exception:
    """What a worker raised, as it raised it where it is ours."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, AutointerpError):
        return cause
    text = str(error)
    for line in reversed(text.splitlines()):  # a constructor's error comes as text
        kind, colon, said = line.strip().partition(": ")
        if colon and kind.endswith(("AutointerpError", "ConfigError")):
            return AutointerpError(said)
    return error


def variables_of(config: Config) -> dict[str, str]:
    """Environment variables that the config's language models read, with their values here."""
    names: set[str] = {"HF_TOKEN", "HF_HOME", "HF_HUB_OFFLINE"}
    pending: list[Any] = [config.model_dump()]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if isinstance(value.get("api_key_env"), str):
                names.add(value["api_key_env"])
            pending += value.values()
        elif isinstance(value, list | tuple):
            pending += value
        elif isinstance(value, str) and value.startswith("$"):
            names.add(value[1:])
    return {name: os.environ[name] for name in names if name in os.environ}
