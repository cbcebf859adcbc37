"""``autointerp plan``: what a run would do and cost (requests, tokens, money, time), without doing it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autointerp.commands.prompts import UNWRITTEN, record_entails, record_explain, record_score, token_counter
from autointerp.commands.run import previous_stages, run_folder, store
from autointerp.config import Config, PluginConfig
from autointerp.engine.dag import Dag, Standing
from autointerp.engine.session import Session, llm_config
from autointerp.pipeline.composites import PAIRS
from autointerp.pipeline.semantic import read_flagged, reads, semantic_judge
from autointerp.plugins import explainers, needs_llm, scorers
from autointerp.records import Constituent, Context, FeatureEvidence

SAMPLED = 3  # features whose prompts are rendered to estimate the rest
WORD = " example"  # stands for a token of a context that is not there yet
COMPOSITES = 0.05  # of the features, before the check has told
CONSTITUENTS = 2  # of a composite

# Rough speeds of one core, for the estimate of time only; measured on 2 cores of a 2024 server CPU.
HARVEST_TOKENS = 5_000.0  # a second and core, a 15M-parameter subject
PROMPT_TOKENS = 110.0  # a second and core, in-process, a 1.5B model in bfloat16
ANSWER_TOKENS = 20.0
API_SECONDS = 2.0  # an answer


@dataclass(frozen=True)
class PlannedStage:
    name: str
    state: str  # done, retry, stale or to do
    why: str | None
    cost: str | None


@dataclass(frozen=True)
class Plan:
    stages: list[PlannedStage]
    llm_calls: int
    prompt_tokens: int
    completion_tokens: int  # at most
    money: float | None  # None where a price is not known
    seconds: float | None  # rough


@dataclass
class _Cost:
    calls: float = 0
    prompt: float = 0
    answer: float = 0
    money: float | None = 0.0  # None: asked of an endpoint whose price is not known
    seconds: float = 0.0

    def text(self) -> str | None:
        if not self.calls:
            return None
        return f"{self.calls:,.0f} LLM calls, {self.prompt:,.0f} prompt and ≤ {self.answer:,.0f} answer tokens"


def plan(config: Config, out: str | Path | None = None) -> Plan:
    """The DAG with each stage's standing and what the part still to do will cost.

    LLM calls and tokens come from rendering the prompts of a few features: from the run's own contexts
    where they are there, else from contexts of the configured size filled with a common word. Cached
    answers are not looked up, so the true figure can be lower.
    """
    from autointerp.pipeline.stages import build_stages

    folder = run_folder(config, out)
    with Session(config, folder / "usage.jsonl") as session:
        dag = Dag(build_stages(config, session), store())
        previous = {name: stage.get("key", "") for name, stage in previous_stages(folder).items()}
        standings = dag.standings(previous)
        sampled = _samples(config, session, dag, standings)
        costs = {
            name: _cost(config, name, sampled) if standing.state != "done" else _Cost()
            for name, standing in standings.items()
        }
    return Plan(
        [PlannedStage(n, s.state, s.why, costs[n].text()) for n, s in standings.items()],
        round(sum(cost.calls for cost in costs.values())),
        round(sum(cost.prompt for cost in costs.values())),
        round(sum(cost.answer for cost in costs.values())),
        None if any(cost.money is None for cost in costs.values()) else sum(cost.money or 0 for cost in costs.values()),
        sum(cost.seconds for cost in costs.values()),
    )


@dataclass(frozen=True)
class _Sampled:
    few: list[tuple[FeatureEvidence, list[Context]]]  # evidence and held-out examples
    features: int  # that there will be
    composites: int  # among them


def _samples(config: Config, session: Session, dag: Dag, standings: Mapping[str, Standing]) -> _Sampled:
    """A few features' evidence and held-out examples, and how many features and composites there will be."""
    from autointerp.pipeline.stages import evidence_of, held_out, selected

    needed = ("corpus", "harvest", "select", "directions", "contexts")
    if any(standings[name].manifest is None for name in needed):
        count = len(config.features.ids) if config.features.ids else config.features.count
        composites = count if config.features.select == "composites" else math.ceil(COMPOSITES * count)
        return _Sampled(
            [_imagined(config)], count + CONSTITUENTS * composites * config.features.constituents, composites
        )
    inputs = {name: dag.store.folder(name, standings[name].key or "") for name in needed}
    features = [row["feature"] for row in selected(inputs["select"]) if row["status"] == "ok"]
    some = features[:SAMPLED]
    evidence = evidence_of(session, inputs)(some)
    examples = held_out(inputs["contexts"] / "contexts.parquet")(some)
    composites = math.ceil(COMPOSITES * len(features))
    if "reencode" in standings and standings["reencode"].manifest is not None:
        inputs["reencode"] = dag.store.folder("reencode", standings["reencode"].key or "")
        composites = len(read_flagged(inputs, None, config.seed).parts["own"])
    return _Sampled([(evidence[feature], examples[feature]) for feature in some], len(features), composites)


def _imagined(config: Config) -> tuple[FeatureEvidence, list[Context]]:
    sizes = config.contexts
    tokens = (WORD,) * sizes.window

    def make(example: int, split: Any, kind: Any) -> Context:
        activations = (1.0,) + (0.0,) * (sizes.window - 1) if kind == "activating" else (0.0,) * sizes.window
        quantile = example % sizes.quantiles if kind == "activating" else None
        return Context(0, example, split, kind, quantile, example, 0, tokens, activations)

    train = tuple(make(i, "train", "activating") for i in range(sizes.train))
    silent = tuple(make(1000 + i, "train", "random") for i in range(sizes.train))
    kinds = {"activating": sizes.test_activating, "random": sizes.test_random, "near": sizes.test_near}
    test = [make(2000 + 100 * k + i, "test", kind) for k, kind in enumerate(kinds) for i in range(kinds[kind])]
    return FeatureEvidence(0, 100, 0.001, 1.0, train, silent, ()), test


def _cost(config: Config, stage: str, sampled: _Sampled) -> _Cost:
    import os

    cores = os.cpu_count() or 1
    if stage == "harvest":
        return _Cost(seconds=config.corpus.tokens / HARVEST_TOKENS / cores)
    kind, *rest = stage.split("/")
    few, count = sampled.few, sampled.features
    if kind == "semantic":
        plugin, few, count = semantic_judge(config), few[:1], sampled.composites
    elif kind in ("explain", "score"):
        registry, plugins = (explainers, config.explainers) if kind == "explain" else (scorers, config.scorers)
        plugin = next(p for p in plugins if p.key == rest[0])
        explainer = next(p for p in config.explainers if p.key == rest[kind == "score"])
        if not needs_llm(registry.get(plugin.name)):
            return _Cost()
        if reads(config, explainer) is not None:
            few, count = [(_with_parts(evidence), examples) for evidence, examples in few], sampled.composites
    else:
        return _Cost()
    llm = llm_config(config, plugin)
    tokens = token_counter(llm)
    total = _Cost()
    for evidence, examples in few:
        asked = _asked(config, kind, plugin, evidence, examples)
        total.calls += len(asked)
        total.prompt += sum(tokens(messages) for _, messages, _ in asked)
        total.answer += sum(most for _, _, most in asked)
    scale = count / len(few)
    total.calls, total.prompt, total.answer = (x * scale for x in (total.calls, total.prompt, total.answer))
    if llm.base_url is None:
        # The shared prefix is read once; what is left of a prompt is about a third.
        fresh = total.prompt / 3 if kind != "explain" else total.prompt
        total.seconds = (fresh / PROMPT_TOKENS + total.answer / ANSWER_TOKENS) / cores
    else:
        total.seconds = total.calls * API_SECONDS / llm.concurrency
        known = llm.price_in is not None and llm.price_out is not None
        total.money = (total.prompt * llm.price_in + total.answer * llm.price_out) / 1e6 if known else None  # type: ignore[operator]
    return total


def _with_parts(evidence: FeatureEvidence) -> FeatureEvidence:
    part = Constituent(evidence.feature, 1 / CONSTITUENTS, UNWRITTEN, contexts=evidence.activating)
    return replace(evidence, constituents=(part,) * CONSTITUENTS)


def _asked(config: Config, kind: str, plugin: PluginConfig, evidence: FeatureEvidence, examples: list[Context]) -> Any:
    if kind == "semantic":
        return record_entails(config, [(UNWRITTEN, UNWRITTEN)] * CONSTITUENTS * len(PAIRS))
    if kind == "explain":
        return record_explain(config, plugin, evidence)
    return record_score(config, plugin, UNWRITTEN, examples)
