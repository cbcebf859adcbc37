"""Stage explain/X: one explanation of each feature, by explainer X, from the train split."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from autointerp.artifacts import Corpus, Firings
from autointerp.composites.evidence import Pair
from autointerp.config import Config, PluginConfig
from autointerp.engine import asking, executor, models
from autointerp.engine.estimate import Amount, Asks, Sample, Sizes, stand_ins
from autointerp.engine.executor import Rows, each_feature, forget_shards, merge_parts, part_files
from autointerp.engine.guard import guarded
from autointerp.engine.session import Session
from autointerp.engine.stage import Job, Stage, Use
from autointerp.errors import AutointerpError
from autointerp.plugins import bind_options, explainers, needs
from autointerp.progress import progress
from autointerp.records import LLM, Explanation, FeatureEvidence
from autointerp.stages.branches import of_union
from autointerp.stages.constituents import pair_of, reads
from autointerp.stages.contexts import windows_of
from autointerp.stages.given import Maker, giver, makers_of, nearby_windows, nearest_of, stages_of
from autointerp.stages.plugin_section import code_of, plugin_section
from autointerp.stages.select import ready
from autointerp.tables import FeatureRows, append_rows

log = logging.getLogger("autointerp")

Read = Callable[[Sequence[int]], dict[int, FeatureEvidence]]
Shown = tuple[FeatureEvidence, Mapping[str, Any]]  # what an explainer is given of a feature, and its keyword arguments


@dataclass(frozen=True)
class Explaining:
    """Which explainer, and of composites alone: whose explanations of the constituents it reads, and which ones."""

    plugin: PluginConfig
    explain: Callable[..., Any]
    options: Mapping[str, Any]
    makers: Mapping[str, Maker]
    neighbours: int = 0  # shown beside each feature's own evidence, as its option of that name says
    of: str | None = None
    pair: Pair = "own"


def uses(config: Config) -> Iterator[Use]:
    for plugin in config.explainers:
        section = plugin_section(config, explainers, plugin) | {"seed": config.seed}
        explain = explainers.get(plugin.name)
        options = bind_options("explainer", plugin.name, explain, plugin.options, config.seed)
        asked = stages_of(needs(explain) - {"constituents"})
        evidence = ["corpus", "harvest", "select", "directions", "contexts", *asked]
        source = reads(config, plugin)
        makers = makers_of(explain)
        given = Explaining(plugin, explain, options, makers, _neighbours_shown(explain, options), source)
        if source is not None:
            evidence += ["reencode", f"explain/{source}", *of_union(config, "select", "contexts", f"explain/{source}")]
            given = replace(given, pair=pair_of(config, plugin))
        names = tuple(dict.fromkeys(evidence))
        yield Use(
            f"explain/{plugin.key}",
            names,
            section,
            given,
            plugins=(*code_of(config, plugin, explain), *makers.values()),
        )


def _neighbours_shown(explain: Callable[..., Any], options: Mapping[str, Any]) -> int:
    """The explainer's option `neighbours`, where it has one; what it needs by that name it is given by keyword."""
    if "neighbours" in needs(explain) or "neighbours" not in inspect.signature(explain).parameters:
        return 0
    return int(options.get("neighbours", inspect.signature(explain).parameters["neighbours"].default))


def work(job: Job) -> None:
    """Write explanations.parquet: a row a feature."""
    given: Explaining = job.use.given
    features, skipped, evidence_for = _asked_about(job, given)
    width = asking.width(job.config, given.plugin)

    def prepare() -> tuple[executor.Read[Shown], executor.Work[Shown]]:
        return _explaining(job, given, evidence_for())

    with progress(job.use.name, len(features), "features") as bar:
        job.to_retry += each_feature(job, features, prepare, width=width, bar=bar)
    _conclude(job, given.plugin.key, skipped)


def _explaining(job: Job, given: Explaining, read: Read) -> tuple[executor.Read[Shown], executor.Work[Shown]]:
    give = giver(job, given.makers, "train", {})
    llm = asking.client(job.session, given.plugin) if "llm" in needs(given.explain) else None

    def with_needs(batch: Sequence[int]) -> dict[int, Shown]:
        evidence, others = read(batch), give(batch)
        return {feature: (evidence[feature], others[feature]) for feature in batch}

    async def explained(feature: int, shown: Shown) -> Rows:
        options = {**given.options, **shown[1]}
        with asking.asked(llm, job.use.name, feature) as meter:
            explanation = await guarded(
                lambda: given.explain(shown[0], llm, **options), Explanation, lambda why: Explanation(None, failure=why)
            )
        if not (explanation.text or "").strip():
            why = explanation.failure or "the explainer returned no text and no reason"
            explanation = replace(explanation, text=None, failure=why)
        row = {
            "feature": feature,
            "explainer": given.plugin.key,
            "explanation": explanation.text,
            "model": llm.model if llm else None,
            "prompt_hash": meter.prompt_hash,
            "prompt_tokens": meter.prompt_tokens,
            "completion_tokens": meter.completion_tokens,
            "status": explanation.status,
            "failure": explanation.failure,
            "raw": explanation.raw,
        }
        return Rows({"explanations": [row]}, meter.retryable_failures, explanation.text is None)

    return with_needs, explained


def _conclude(job: Job, explainer: str, skipped: Mapping[int, str]) -> None:
    """Merge the shards, with a row for each feature that the explainer was not asked about."""
    rows, failures = 0, []
    for file in part_files(job.folder, "explanations"):
        columns = pq.read_table(file, columns=["status", "failure"])
        rows += len(columns)
        failures += [row["failure"] for row in columns.to_pylist() if row["status"] == "failed"]
    if rows > 1 and len(failures) == rows and len(set(failures)) == 1:
        forget_shards(job.folder)  # asked again by the next run
        raise AutointerpError(f"{job.use.name}: all {rows} features failed: {failures[0]}")
    merge_parts(job.folder, ["explanations"])
    forget_shards(job.folder)
    if skipped:
        names = {"explainer": explainer, "status": "not_composite"}
        lines = [{"feature": feature, "failure": why, **names} for feature, why in skipped.items()]
        append_rows(job.folder / "explanations.parquet", "explanations", lines, sort_by="feature")
    job.facts |= {"features": rows, "failed": len(failures)}
    if failures:
        log.warning("%s: %d of %d features have no explanation; their rows say why", job.use.name, len(failures), rows)


def _asked_about(job: Job, given: Explaining) -> tuple[list[int], dict[int, str], Callable[[], Read]]:
    """The features that the explainer is asked about, why the others are left out, and how to read what it may see of
    each."""
    features = ready(job.inputs["select"])

    def evidence_for() -> Read:
        return evidence_of(job.session, job.inputs, given.neighbours)

    if given.of is None:
        return features, {}, evidence_for
    from autointerp.activations.contexts import apart
    from autointerp.composites.flagged import constituents_of, read_flagged

    flagged = read_flagged(job.inputs, given.of, job.config.seed)
    skipped = {feature: why for feature in features if (why := flagged.why_not(feature))}

    def with_parts() -> Read:
        read, parts = evidence_for(), constituents_of(flagged, given.pair, job.inputs)
        scored = windows_of(job.inputs["contexts"], "test")

        def with_constituents(batch: Sequence[int]) -> dict[int, FeatureEvidence]:
            evidence, own = read(batch), scored(batch)
            return {
                f: replace(
                    each,
                    constituents=tuple(replace(part, contexts=apart(part.contexts, own[f])) for part in parts(f)),
                )
                for f, each in evidence.items()
            }

        return with_constituents

    return [f for f in features if f not in skipped], skipped, with_parts


def evidence_of(session: Session, inputs: Mapping[str, Path], neighbours: int = 0) -> Read:
    """What an explainer may see of each feature: contexts of the train split, token statistics, logit weights, and
    the first `neighbours` of its decoder neighbours."""
    from autointerp.activations.contexts import read_contexts
    from autointerp.activations.evidence import EvidenceReader

    config = session.config
    logits = FeatureRows(inputs["directions"] / "logits.parquet")
    reader = EvidenceReader(
        Firings(inputs["harvest"]),
        Corpus(inputs["corpus"]),
        models.token_strings(session),
        test_share=config.contexts.test_share,
        seed=config.seed,
    )

    def read(features: Sequence[int]) -> dict[int, FeatureEvidence]:
        contexts = read_contexts(inputs["contexts"] / "contexts.parquet", features)
        weights: dict[str, dict[int, list[tuple[str, float]]]] = {"up": {}, "down": {}}
        for row in logits.read(features).to_pylist():
            weights[row["direction"]].setdefault(row["feature"], []).append((row["token"], row["weight"]))
        shown = {feature: contexts.get(feature, []) for feature in features}
        evidence = reader.read(shown, logits_up=weights["up"], logits_down=weights["down"])
        return {each.feature: each for each in evidence}

    if not neighbours:
        return read
    nearest, windows = nearest_of(inputs), nearby_windows(session, inputs)

    def with_neighbours(features: Sequence[int]) -> dict[int, FeatureEvidence]:
        near = windows.of({f: near[:neighbours] for f, near in nearest(features).items()}, "train")
        return {f: replace(each, neighbours=near[f]) for f, each in read(features).items()}

    return with_neighbours


def asks(config: Config, use: Use) -> Asks | None:
    given: Explaining = use.given
    if "llm" not in needs(given.explain):
        return None
    return Asks(asking.llm_config(config, given.plugin), "features" if given.of is None else "composites")


async def rehearse(use: Use, sample: Sample, llm: LLM) -> None:
    await explained(use, sample, llm)


async def explained(use: Use, sample: Sample, llm: LLM | None) -> Explanation:
    """What the explainer says of a sample; it is given stand-ins for what must be loaded."""
    given: Explaining = use.given
    evidence = sample.evidence
    if given.of is not None:
        evidence = replace(evidence, constituents=sample.parts(given.of, given.pair))
    if given.neighbours:
        shown = evidence.activating[:4]  # stand-ins for windows that are drawn when the stage runs
        near = tuple(replace(each, contexts=shown) for each in sample.neighbours[: given.neighbours])
        evidence = replace(evidence, neighbours=near)
    return await given.explain(evidence, llm, **given.options, **stand_ins(given.makers, sample))


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    asked_about = sizes.features if use.given.of is None else sizes.composites
    return Amount(asked_about or 0, "features", use.given.plugin.name, guess=2e-3)


STAGE = Stage(
    "explain",
    "one explanation of each feature, by explainer X, from the train split",
    uses,
    work,
    tables=("explanations",),
    resumable=True,
    amount=amount,
    asks=asks,
    rehearse=rehearse,
)
