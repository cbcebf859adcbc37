"""``autointerp plan``: what a run would do and cost (requests, tokens, money, time), without doing it.

1. Each stage is done, stale (and why) or to do, as the store says.
2. `known` tells how many features there will be, and what a few of them are like.
3. Each use that asks a language model makes its requests for those features to a recorder; their number and tokens
   are multiplied up to all features. Answers that are kept from earlier runs are not taken off.
4. The time is what this machine took for such work before (`engine.speeds`), else a rough guess.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from autointerp.commands import rehearsal
from autointerp.commands.doctor import ALL, examine, raise_for
from autointerp.commands.folder import previous_stages, run_folder
from autointerp.commands.known import Certainty, Known
from autointerp.config import Config, LLMConfig
from autointerp.engine import speeds
from autointerp.engine.dag import Dag, Standing
from autointerp.engine.estimate import Asks, Machines, Population, Sample
from autointerp.engine.executor import feature_shards, records
from autointerp.engine.mirrored import open_store
from autointerp.engine.session import Session
from autointerp.engine.speeds import Speeds
from autointerp.engine.stage import Use, plain
from autointerp.errors import ConfigError
from autointerp.llm import registry
from autointerp.stages import nodes, stage_of, uses

log = logging.getLogger("autointerp")

SAMPLED = 48  # features whose requests are made to estimate the rest
FEW = 8  # the same, for the time alone
# Stands for an explanation that is not written yet: as long as they usually are.
TYPICAL = "words that name animals or people in a story, most of all as subject of a sentence"

# Rough speeds, for the estimate of time only, where this machine's were never measured.
PROMPT_TOKENS = 110.0  # a second and core, in-process, a 1.5B model in bfloat16
ANSWER_TOKENS = 20.0
API_SECONDS = 2.0  # an answer
GPU = 20.0  # times as fast as a core


@dataclass(frozen=True)
class PlannedStage:
    """One use of a stage. Figures are 0 where it is done; `calls` is None where nothing tells how many there will be,
    `money` where the price is not known."""

    name: str
    state: str  # done, retry, stale or to do
    why: str | None
    calls: int | None = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0  # at most
    certainty: Certainty = "known"  # of the number of features
    money: float | None = 0.0
    seconds: float = 0.0
    measured: bool = True  # the time, on this machine
    bytes: float = 0.0  # that it will write, where its stage can tell
    workers: int = 1  # side by side, of the machines that the plan is for
    lineage: str = ""  # stages with the same make the same artifact

    @property
    def cost(self) -> str | None:
        """The requests in words."""
        if self.calls is None:
            return "LLM calls: not known before the SAE is there"
        if not self.calls:
            return None
        how = {"known": "", "at most": "at most ", "guessed": "about "}[self.certainty]
        tokens = f"{self.prompt_tokens:,} prompt and ≤ {self.answer_tokens:,} answer tokens"
        return f"{how}{self.calls:,} LLM calls, {tokens}"


@dataclass(frozen=True)
class Plan:
    stages: Sequence[PlannedStage]
    problems: Sequence[str] = ()  # what is wrong with the config, a line each
    machines: Machines | None = None  # None: this one alone

    @property
    def llm_calls(self) -> int | None:
        """None where they are not known for one of the stages."""
        calls = [stage.calls for stage in self.stages]
        return None if None in calls else sum(n or 0 for n in calls)

    @property
    def prompt_tokens(self) -> int:
        return sum(stage.prompt_tokens for stage in self.stages)

    @property
    def completion_tokens(self) -> int:
        """At most."""
        return sum(stage.answer_tokens for stage in self.stages)

    @property
    def certainty(self) -> Certainty:
        of_calls = {stage.certainty for stage in self.stages if stage.calls != 0}
        return "guessed" if "guessed" in of_calls else "at most" if "at most" in of_calls else "known"

    @property
    def money(self) -> float | None:
        """At most; None where a price is not known."""
        costs = [stage.money for stage in self.stages]
        return None if None in costs else sum(cost or 0.0 for cost in costs)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def bytes(self) -> float:
        return sum(stage.bytes for stage in self.stages)

    @property
    def measured(self) -> bool:
        """Whether this machine's own speeds tell most of the time."""
        return sum(stage.seconds for stage in self.stages if stage.measured) >= 0.5 * self.seconds


def seconds_per_use(plan: Plan) -> Mapping[str, float]:
    """Seconds that each use is expected to take, 0 for what is done: for a run's progress over all stages."""
    return {stage.name: stage.seconds for stage in plan.stages}


def plan(
    config: Config,
    out: str | Path | None = None,
    *,
    retry_failed: bool = False,
    machines: tuple[int, int] | None = None,
    targets: Sequence[str] = ALL,
) -> Plan:
    """The DAG of `targets` with each stage's standing and what the part still to do will cost. Nothing is sent, nothing
    is written. With `retry_failed` failed rows are to do, whatever their reason. With `machines`, (nodes, GPUs of
    each), the time is that of such a cluster, from the speeds of this machine.

    Raises what is wrong with a config of which no plan can be made; `Plan.problems` is what else is wrong.
    """
    folder = run_folder(config, out)
    with Session(config, folder / "usage.jsonl", retry_failed=retry_failed) as session:
        try:
            dag = Dag(nodes(config, session, targets), open_store(), retry_failed=retry_failed)
        except ConfigError:
            raise_for(examine(config, session, targets, deep=False))
            raise
        previous = {name: stage.get("key", "") for name, stage in previous_stages(folder).items()}
        standings = dag.standings(previous)
        if all(standing.state == "done" for standing in standings.values()):
            return Plan([PlannedStage(name, "done", None) for name in standings])
        seen = examine(config, session, targets, standings, deep=False)
        made = plan_of(config, session, dag, standings, machines=Machines(*machines) if machines else None)
        return replace(made, problems=list(dict.fromkeys(check.text for check in seen if check.wrong)))


def plan_of(
    config: Config,
    session: Session,
    dag: Dag,
    standings: Mapping[str, Standing],
    *,
    sampled: int = SAMPLED,
    machines: Machines | None = None,
) -> Plan:
    """The plan of a DAG that is at hand, as a run's own. `sampled`: features whose requests are made."""
    estimate = _Estimate(config, session, dag, standings, sampled, machines)
    lineages = dag.lineages(standings)
    return Plan([replace(estimate.stage(name), lineage=lineages[name]) for name in standings], machines=machines)


@dataclass(frozen=True)
class _Requests:
    """What a use will ask: numbers over all features."""

    calls: float
    prompt: float
    answer: float


class _Estimate:
    def __init__(
        self,
        config: Config,
        session: Session,
        dag: Dag,
        standings: Mapping[str, Standing],
        sampled: int,
        machines: Machines | None,
    ) -> None:
        self.sampled = sampled
        self.workers = machines.workers(config.executor) if machines else 1
        self.config, self.session, self.dag, self.standings = config, session, dag, standings
        targets = tuple(name for name in standings if not any(name in s.node.needs for s in standings.values()))
        self.uses = uses(config, targets)
        inputs = dag.here(standings)
        self.speeds = Speeds.read()
        self.known = Known(config, session, self.uses, inputs, TYPICAL, lengths=self._lengths())
        wanted = "cuda" if machines and machines.gpus else config.subject.device
        self.device = speeds.likely_device(wanted)
        self._samples: dict[Population, list[Sample]] = {}

    def stage(self, name: str) -> PlannedStage:
        standing, use, declared = self.standings[name], self.uses[name], stage_of(name)
        if standing.state == "done":
            return PlannedStage(name, "done", None)
        asks = declared.asks(use.config(self.config), use) if declared.asks else None
        if asks is None:
            return self._working(use, PlannedStage(name, standing.state, standing.why))
        count = self.known.count(use, asks.about)
        if count.number is None:
            return PlannedStage(name, standing.state, standing.why, None, certainty="guessed", measured=False)
        features = count.number if asks.most is None else min(count.number, asks.most)
        asked = self._requests(use, standing, asks, features)
        seconds, measured = self._asking(name, asks.llm, asked)
        # an endpoint is no faster for being asked by more workers; a model that each of them runs is there more often
        divided = registry.is_served_here(asks.llm) and self.workers > 1
        workers = min(self.workers, len(feature_shards(range(features)))) if divided else 1
        return PlannedStage(
            name,
            standing.state,
            standing.why,
            round(asked.calls),
            round(asked.prompt),
            round(asked.answer),
            count.certainty,
            _money(asks.llm, asked),
            seconds / max(workers, 1),
            measured,
            workers=max(workers, 1),
        )

    def _lengths(self) -> dict[str, float]:
        """Words of the explanations that each explainer wrote in earlier runs."""
        lengths: dict[str, float] = {}
        for name, use in self.uses.items():
            asks = stage_of(name).asks
            asked = asks(self.config, use) if asks and name.startswith("explain/") else None
            words = self.speeds.of(speeds.of_length(name, asked.llm.model)) if asked else None
            if words is not None:
                lengths[name] = words
        return lengths

    # --- requests

    def _requests(self, use: Use, standing: Standing, asks: Asks, features: int) -> _Requests:
        samples = self.samples(asks.about)
        if not samples or not features:
            return _Requests(0, 0, 0)
        count = self._counter(asks.llm)
        calls = prompt = answer = 0.0
        for sample in samples:
            for request in rehearsal.rehearse(self.session, use, sample, asks.llm):
                calls, answer = calls + 1, answer + (asks.llm.answer_tokens or request.most)
                prompt += count(request.messages)
        prompt *= self._counted(use.name, asks.llm)
        scale = (features - self._kept(standing)) / len(samples)
        if standing.state == "retry" and standing.manifest is not None and calls:
            scale = self.dag.to_ask_again(standing.manifest) / calls
        return _Requests(calls * scale, prompt * scale, answer * scale)

    def samples(self, about: Population) -> list[Sample]:
        if about not in self._samples:
            self._samples[about] = self.known.samples(about, self.sampled)
        return self._samples[about]

    def _kept(self, standing: Standing) -> int:
        """Features of a use that was begun, whose shards are done."""
        if standing.key is None or not self.dag.store.begun(standing.node.name, standing.key):
            return 0
        partial = self.dag.folder(standing).with_name(f"{standing.key}.partial")
        return sum(len(about["items"]) for about in records(partial) if not about.get("to_retry"))

    @cached_property
    def _counters(self) -> dict[str, rehearsal.Counter]:
        return {}

    def _counter(self, llm: LLMConfig) -> rehearsal.Counter:
        if llm.model not in self._counters:
            self._counters[llm.model] = rehearsal.counter(llm)
        return self._counters[llm.model]

    def _counted(self, name: str, llm: LLMConfig) -> float:
        """Tokens that the endpoint counted in earlier runs for each that we count; 1 where the tokenizer is here."""
        if rehearsal.own_folder(llm) is not None:
            return 1.0
        return self.speeds.of(speeds.of_counting(_kind(name), llm.model)) or 1.0

    # --- time

    def _working(self, use: Use, stage: PlannedStage) -> PlannedStage:
        """With the time of a use that asks no language model, and what it writes."""
        declared = stage_of(use.name)
        if declared.amount is None:
            return stage
        amount = declared.amount(use.config(self.config), use, self.known.sizes)
        workers = max(1, min(self.workers, amount.shards))
        a_unit = self.speeds.of(speeds.of_amount(declared.kind, amount, self.device))
        guess = amount.guess / (GPU if self.device != "cpu" else os.cpu_count() or 1)
        seconds = (guess if a_unit is None else a_unit) * amount.number / workers
        return replace(stage, seconds=seconds, measured=a_unit is not None, bytes=amount.bytes, workers=workers)

    def _asking(self, name: str, llm: LLMConfig, asked: _Requests) -> tuple[float, bool]:
        """The same of one that does."""
        model = rehearsal.named(llm)
        a_request = self.speeds.of(speeds.of_requests(_kind(name), model))
        if a_request is not None:
            return a_request * asked.calls, True
        a_token = self.speeds.of(speeds.of_prompt_tokens(model))
        if a_token is not None:
            return a_token * asked.prompt, True
        if not registry.is_served_here(llm):
            return asked.calls * API_SECONDS / llm.concurrency, False
        # The shared beginning is read once; what is left of a prompt is about a third.
        fresh = asked.prompt if plain(name).startswith("explain/") else asked.prompt / 3
        faster = GPU if speeds.likely_device(llm.device) != "cpu" else os.cpu_count() or 1
        return (fresh / PROMPT_TOKENS + asked.answer / ANSWER_TOKENS) / faster, False


def _kind(name: str) -> str:
    """Without the explainer and the control: ``score/detection``."""
    return "/".join(plain(name).split("/")[:2])


def _money(llm: LLMConfig, asked: _Requests) -> float | None:
    """At most: every answer as long as it may be. None where the price is not known."""
    prices = registry.prices(llm)
    if prices is None:
        return None if asked.calls else 0.0
    return prices.cost(asked.prompt, asked.answer)
