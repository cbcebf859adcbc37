"""What explanations say of composites: constituents as evidence for explainers, and a judge who compares them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.config import Config, PluginConfig
from autointerp.engine.executor import Rows, forget_parts, in_parts
from autointerp.engine.executor import parts as parts_of
from autointerp.errors import ConfigError
from autointerp.pipeline.composites import PAIRS, Pair
from autointerp.plugins import bind_options, explainers, needs_constituents
from autointerp.progress import progress
from autointerp.records import LLM, Constituent
from autointerp.registry import did_you_mean
from autointerp.stats import paired_difference
from autointerp.tables import write_rows

if TYPE_CHECKING:
    from autointerp.engine.dag import Job
    from autointerp.engine.session import Session

SEMANTIC_PROMPTS = ("judge_entails",)


@dataclass(frozen=True)
class Flagged:
    """The composites among a run's explained features, their parts, and the explanations of both."""

    parts: dict[Pair, dict[int, list[int]]]  # a control is absent where there is none
    coefficients: dict[int, list[float]]
    texts: dict[int, str]
    failures: dict[int, str]  # of the features without a text
    labels: dict[int, str]

    def why_not(self, feature: int) -> str | None:
        """Why a feature has no constituents to be explained by; None for a composite."""
        if feature in self.parts["own"]:
            return None
        label = self.labels[feature].replace("_", " ")
        return f"not a composite of this SAE's latents: its label is {label}"

    def missing(self, parts: Sequence[int]) -> list[str]:
        return [f"constituent {part}: {self.failure(part)}" for part in parts if part not in self.texts]

    def failure(self, feature: int) -> str:
        default = "not among the features that are explained; features.constituents selects it"
        return self.failures.get(feature, default)


def read_flagged(inputs: Mapping[str, Path], of: str | None, seed: int) -> Flagged:
    """From the folders of select and reencode, and of the explainer `of` (None: nothing is explained yet)."""
    import numpy as np
    import pyarrow.parquet as pq

    from autointerp.composites import FLAGGED
    from autointerp.composites.evidence import random_parts, swapped_parts

    seed %= 2**64
    selected = pq.read_table(inputs["select"] / "selection.parquet").to_pylist()
    explained = pq.read_table(inputs[f"explain/{of}"] / "explanations.parquet").to_pylist() if of else []
    names = ["feature", "label", "constituents", "coefficients", "union_constituents"]
    checked = pq.read_table(inputs["reencode"] / "composites.parquet", columns=names)
    texts = {row["feature"]: row["explanation"] for row in explained if row["explanation"]}
    failures = {row["feature"]: row["failure"] for row in (*selected, *explained) if row["failure"]}
    chosen = {row["feature"] for row in selected if row["status"] == "ok"}
    rows = [row for row in checked.to_pylist() if row["feature"] in chosen]
    flagged = [row for row in rows if row["label"] in FLAGGED and not row["union_constituents"]]
    own = {row["feature"]: row["constituents"] for row in flagged}
    counts = np.zeros(len(checked), np.int64)
    for row in selected:
        counts[row["feature"]] = row["firings"]
    whole = {f: parts for f, parts in own.items() if all(part in texts for part in parts)}
    random = {}
    for f, parts in whole.items():
        said = {texts[part] for part in parts}
        pool = np.array([g for g, text in texts.items() if text not in said], np.int64)
        if drawn := random_parts(f, parts, pool, counts, seed):
            random[f] = drawn
    return Flagged(
        {"own": own, "swapped": swapped_parts(whole, seed), "random": random},
        {row["feature"]: row["coefficients"] for row in flagged},
        texts,
        failures,
        {row["feature"]: row["label"] for row in rows},
    )


def constituents_of(flagged: Flagged, pair: Pair, contexts: Path) -> Callable[[int], tuple[Constituent, ...]]:
    """What an explainer is shown of a composite's parts, or of those that stand in for them; () where there is none."""
    from autointerp.activations.contexts import read_contexts

    def read(feature: int) -> tuple[Constituent, ...]:
        parts = flagged.parts[pair].get(feature, [])
        seen = read_contexts(contexts, parts)
        found = []
        for part, weight in zip(parts, flagged.coefficients.get(feature, [])):
            train = [c for c in seen[part] if c.split == "train" and c.fires]
            text = flagged.texts.get(part)
            why = None if text else flagged.failure(part)
            found.append(Constituent(part, weight, text, why, tuple(sorted(train, key=lambda c: -c.peak))))
        return tuple(found)

    return read


def explained_by(config: Config, named: str | None, who: str) -> str:
    """The key of the explainer whose explanations `who` reads: `named`, or the first that reads none itself."""
    first_hand = [p.key for p in config.explainers if not needs_constituents(explainers.get(p.name))]
    if not first_hand:
        raise ConfigError(f"{who} reads the explanations of another explainer, and the config has none: add default")
    if named is None:
        return first_hand[0]
    if named not in first_hand:
        raise ConfigError(
            f"{who} reads the explanations of {named!r}, which is no explainer of the config that explains single"
            f" features{did_you_mean(named, first_hand)}"
        )
    return named


def reads(config: Config, explainer: PluginConfig) -> str | None:
    """Whose explanations of the constituents an explainer is shown; None for one that asks for none."""
    if not needs_constituents(explainers.get(explainer.name)):
        return None
    if not config.composites.enabled:
        raise ConfigError(f"explainer {explainer.key!r} explains composites, and composites.enabled is false")
    return explained_by(config, explainer.options.get("of"), f"explainer {explainer.key!r}")


def pair_of(config: Config, explainer: PluginConfig) -> Pair:
    """Whose constituents: the plug-in's option `pair`, its own default where the config has none."""
    plugin = explainers.get(explainer.name)
    default = inspect.signature(plugin).parameters["pair"].default
    return bind_options("explainer", explainer.name, plugin, explainer.options, config.seed).get("pair", default)


def semantic_stage(session: Session, of: str, job: Job) -> None:
    """Write semantic.parquet: for every composite that is explained, as its parts are, whether a judge says that its
    explanation entails theirs, or theirs entail it; and the same of another composite's parts (swapped) and of latents
    that fire as often (random).

    `semantic` is the smallest probability of the first: "g and h" entails each of its parts. `semantic_either` is that
    of the second: each part of "g or h" entails it.
    """
    flagged = read_flagged(job.inputs, of, session.config.seed)
    plugin = semantic_judge(session.config)
    llm = session.llm(plugin)

    async def work(feature: int, _: None) -> Rows:
        with session.asked(llm, "semantic", feature) as meter:
            rows = [await judge_pair(feature, pair, flagged, llm) for pair in PAIRS]
        return Rows({"semantic": rows}, meter.passing_failures)

    composites = sorted(flagged.parts["own"])
    with progress("semantic", len(composites), "composites") as bar:
        session.wait(in_parts(job.folder, composites, dict.fromkeys, work, width=session.width(plugin), bar=bar))
    rows: list[dict[str, Any]] = []
    for part in parts_of(job.folder):
        rows += part.tables.get("semantic", [])
        job.to_retry += part.to_retry
    forget_parts(job.folder)
    write_rows(job.folder / "semantic.parquet", "semantic", rows)
    job.facts |= {"explainer": of} | _entailed(rows)


def semantic_judge(config: Config) -> PluginConfig:
    assert config.composites.semantic is not None
    return PluginConfig(name="semantic", llm=config.composites.semantic.llm)


async def judge_pair(feature: int, pair: Pair, flagged: Flagged, llm: LLM) -> dict[str, Any]:
    """One row of semantic.parquet."""
    from autointerp.composites.semantics import entails

    some = flagged.parts[pair].get(feature)
    row: dict[str, Any] = {"feature": feature, "pair": pair, "constituents": some or []}
    if not some:
        return row | {"failure": "no other composite to swap with" if pair == "swapped" else "too few other features"}
    if feature not in flagged.texts:
        return row | {"failure": f"not explained: {flagged.failure(feature)}"}
    if lacking := flagged.missing(some):
        return row | {"failure": "; ".join(lacking)}
    whole = flagged.texts[feature]
    texts = [flagged.texts[part] for part in some]
    forth = await asyncio.gather(*(entails(whole, text, llm) for text in texts))
    back = await asyncio.gather(*(entails(text, whole, llm) for text in texts))
    row |= {"probabilities": [one.probability for one in forth], "reverse": [one.probability for one in back]}
    for column, heard in (("semantic", forth), ("semantic_either", back)):
        known = [one.probability for one in heard if one.probability is not None]
        row[column] = min(known) if len(known) == len(some) else None
    lost = list(dict.fromkeys(one.failure for one in (*forth, *back) if one.failure))
    return row | ({"failure": "; ".join(lost)} if lost else {})


def _entailed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How often the explanation of a composite is the conjunction, or one of which either part is enough, and how far
    own pairs are above the controls."""
    own = sum(row["pair"] == "own" for row in rows)
    return {"composites": own} | _direction(rows, "semantic") | {"either": _direction(rows, "semantic_either")}


def _direction(rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, Any]:
    by_pair = {pair: {row["feature"]: row.get(column) for row in rows if row["pair"] == pair} for pair in PAIRS}
    own = by_pair["own"]
    judged = [p for p in own.values() if p is not None]
    facts: dict[str, Any] = {"judged": len(judged)}
    if judged:
        facts["entailed"] = sum(p >= 0.5 for p in judged) / len(judged)
    for pair in PAIRS:
        known = [p for p in by_pair[pair].values() if p is not None]
        facts[pair] = sum(known) / len(known) if known else None
        if pair != "own":
            difference = paired_difference(list(own.values()), [by_pair[pair].get(f) for f in own])
            facts[f"above_{pair}"] = asdict(difference)
    return facts
