"""What the output-side scorers are given: what a feature does to the subject's output, beside what others do.

The others are features of the run that are not near by decoder cosine, drawn anew for each feature. What steering and
ablation show of a feature is computed when it is first asked for, and kept for the run: it serves as the feature's own
and among the others'.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from autointerp.activations.contexts import read_contexts
from autointerp.activations.steering import Steering
from autointerp.artifacts import Corpus, Firings
from autointerp.engine import models
from autointerp.engine.stage import Job
from autointerp.records import OutputEffects
from autointerp.tables import FeatureRows

OTHERS = 12  # features that a feature's effects are shown beside, a few at a time

Near = Mapping[int, Collection[int]]  # feature -> those that are near it
Tried = Callable[[], Awaitable[OutputEffects]]


def direct(job: Job, features: Collection[int], near: Near) -> Callable[[Sequence[int]], dict[int, OutputEffects]]:
    """By the decoder row's product with the unembedding: the tokens that each feature raises, the most first."""
    rows = FeatureRows(job.inputs["directions"] / "logits.parquet")

    def make(wanted: Sequence[int]) -> dict[int, OutputEffects]:
        others = _others(job, wanted, features, near)
        raised: dict[int, list[str]] = {}
        for row in rows.read({*wanted, *(o for each in others.values() for o in each)}).to_pylist():
            if row["direction"] == "up" and row["token"].strip():
                raised.setdefault(row["feature"], []).append(row["token"].strip())
        return {f: effects(raised.get(f, ()), [raised.get(o, ()) for o in others[f]]) for f in wanted}

    return make


def tried(job: Job, features: Collection[int], near: Near, what: str) -> Callable[[Sequence[int]], dict[int, Tried]]:
    """By running the subject. `what`: ``texts`` written while it is steered, or tokens ``lost`` by ablation."""
    steering = _steering(job)

    def seen(feature: int) -> Sequence[str]:
        return steering.texts(feature) if what == "texts" else steering.lost(feature)

    def reader(feature: int, others: Sequence[int]) -> Tried:
        def read() -> OutputEffects:
            return effects(seen(feature), [seen(other) for other in others])

        return lambda: asyncio.to_thread(read)

    def make(wanted: Sequence[int]) -> dict[int, Tried]:
        return {feature: reader(feature, others) for feature, others in _others(job, wanted, features, near).items()}

    return make


def effects(own: Sequence[str], others: Sequence[Sequence[str]]) -> OutputEffects:
    """`others` that share nothing with `own` go first; those without any effect are left out."""
    known = [tuple(other) for other in others if other]
    return OutputEffects(tuple(own), tuple(sorted(known, key=lambda other: len({*other} & {*own}))))


def _others(job: Job, wanted: Sequence[int], features: Collection[int], near: Near) -> dict[int, list[int]]:
    population = sorted(features)
    chosen = {}
    for feature in wanted:
        rng, close = random.Random(f"{job.config.seed}:{feature}:others"), {feature, *near[feature]}
        drawn = rng.sample(population, min(len(population), 3 * OTHERS))
        chosen[feature] = [o for o in drawn if o not in close][:OTHERS]
    return chosen


def _steering(job: Job) -> Steering:
    """Kept for the run: scores of several explainers and of controls ask for the same."""
    folder, contexts, session = job.inputs["sae"], job.inputs["contexts"] / "contexts.parquet", job.session

    def firing(feature: int) -> list[str]:
        return [c.text for c in read_contexts(contexts, [feature]).get(feature, ()) if c.split == "test" and c.fires]

    def make() -> Any:
        sae = models.kept_sae(session, folder)
        reads, writes = models.subject(session, sae.cfg.hook_name), models.written(session, sae)
        threshold = Firings(job.inputs["harvest"]).info.outlier_threshold
        corpus = Corpus(job.inputs["corpus"])
        return Steering(reads, writes, sae, corpus, firing, outlier_threshold=threshold, seed=job.config.seed)

    return session.once(f"steering {folder} {contexts}", make)
