"""Stage score/S/X[/C]: scorer S on the explanations of X, or on those that control C puts in their place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow.parquet as pq

from autointerp.config import Config, PluginConfig
from autointerp.engine import asking
from autointerp.engine.estimate import UNWRITTEN, Amount, Asks, Sample, Sizes, stand_ins
from autointerp.engine.executor import Rows, each_feature, forget_shards, merge_parts, part_files
from autointerp.engine.guard import guarded
from autointerp.engine.stage import Job, Stage, Use
from autointerp.plugins import bind_options, controls, explainers, needs, runs_again, scorers
from autointerp.progress import progress
from autointerp.records import LLM, Context, Judgement, Score
from autointerp.stages.constituents import reads
from autointerp.stages.contexts import held_out
from autointerp.stages.given import Maker, for_control, giver, makers_of, stages_of
from autointerp.stages.plugin_section import code_of, plugin_section
from autointerp.tables import compute

log = logging.getLogger("autointerp")


@dataclass(frozen=True)
class Scoring:
    """Which scorer, on whose explanations, and which control puts others in their place."""

    plugin: PluginConfig
    score: Callable[..., Any]
    options: Mapping[str, Any]
    makers: Mapping[str, Maker]
    explainer: str
    control: str | None = None
    pick: Callable[..., Mapping[int, str]] | None = None
    pick_options: Mapping[str, Any] | None = None


def uses(config: Config) -> Iterator[Use]:
    for explainer in config.explainers:
        explainers.get(explainer.name)
        for plugin in config.scorers:
            score = scorers.get(plugin.name)
            judged = plugin_section(config, scorers, plugin) | {"seed": config.seed}
            options = bind_options("scorer", plugin.name, score, plugin.options, config.seed)
            makers = makers_of(score)
            read = ("contexts", f"explain/{explainer.key}", *stages_of(needs(score)))
            read = tuple(dict.fromkeys(read))
            given = Scoring(plugin, score, options, makers, explainer.key)
            code = (*code_of(config, plugin, score), *makers.values())
            yield Use(name_of(plugin, explainer.key, None), read, judged | {"control": None}, given, code)
            for control in config.controls:
                section = judged | {"control": plugin_section(config, controls, control)}
                pick = controls.get(control.name)
                if runs_again(pick):
                    continue
                reencode = ("reencode",) if "constituents" in needs(pick) and config.composites.enabled else ()
                asked = (*stages_of(needs(pick) & {"frequencies"}), *reencode)
                asked += ("directions",) if "neighbours" in needs(pick) else ()
                chosen = bind_options("control", control.name, pick, control.options, config.seed)
                given = replace(given, control=control.key, pick=pick, pick_options=chosen)
                names = tuple(dict.fromkeys((*read, *asked)))
                yield Use(name_of(plugin, explainer.key, control), names, section, given, (*code, pick, for_control))


def name_of(scorer: PluginConfig, explainer: str, control: PluginConfig | None) -> str:
    return "/".join(["score", scorer.key, explainer] + ([control.key] if control else []))


def work(job: Job) -> None:
    """Write scores.parquet (a row a feature) and judgements.parquet (a row a judged example)."""
    given: Scoring = job.use.given
    texts, failures = _texts(job, given)
    read, give = held_out(job.inputs["contexts"]), giver(job, given.makers, "test", texts)
    llm = asking.client(job.session, given.plugin) if "llm" in needs(given.score) else None
    names = {"explainer": given.explainer, "scorer": given.plugin.key, "control": given.control}

    def with_needs(batch: Sequence[int]) -> dict[int, tuple[list[Context], Mapping[str, Any]]]:
        examples, others = read(batch), give(batch)
        return {feature: (examples[feature], others[feature]) for feature in batch}

    async def scored(feature: int, shown: tuple[list[Context], Mapping[str, Any]]) -> Rows:
        text, (examples, others) = texts[feature], shown
        with asking.asked(llm, job.use.name, feature) as meter:
            if text:
                options = {**given.options, **others}
                score = await guarded(lambda: given.score(text, examples, llm, **options), Score, _failed(examples))
            else:
                score = _failed(examples)(failures[feature])
        failed = (score.value is None) + sum(judgement.status == "failed" for judgement in score.judgements)
        return Rows(_rows({"feature": feature} | names, score), meter.retryable_failures, failed)

    width = asking.width(job.config, given.plugin)
    with progress(job.use.name, len(texts), "features") as bar:
        job.to_retry += each_feature(
            job.session,
            job.folder,
            sorted(texts),
            with_needs,
            scored,
            width=width,
            bar=bar,
        )
    _conclude(job, len(texts))


def _texts(job: Job, given: Scoring) -> tuple[dict[int, str | None], dict[int, str]]:
    """The text that each feature is judged by, and why one has none."""
    columns = ["feature", "explanation", "status", "failure"]
    table = pq.read_table(job.inputs[f"explain/{given.explainer}"] / "explanations.parquet", columns=columns)
    table = table.filter(compute().not_equal(table["status"], "not_composite"))
    written = [table[name].to_pylist() for name in ("feature", "explanation", "failure")]
    texts: dict[int, str | None] = dict(zip(*written[:2]))
    if given.pick is None:
        return texts, {feature: f"no explanation: {why}" for feature, text, why in zip(*written) if not text}
    known = {feature: text for feature, text in texts.items() if text}
    others: dict[int, str | None] = dict.fromkeys(texts)
    others |= given.pick(sorted(known), known, **(given.pick_options or {}), **for_control(job, given.pick))
    return others, dict.fromkeys(texts, "no other explanation to compare with")


def _rows(names: Mapping[str, Any], score: Score) -> dict[str, list[dict[str, Any]]]:
    row = {
        **names,
        "value": score.value,
        "low": score.low,
        "high": score.high,
        "n_scored": score.n_scored,
        "n_unscored": score.n_unscored,
        "base_rate": score.base_rate,
        "chance": score.chance,
        "corrected": score.corrected,
        "yes_rate": score.yes_rate,
        "ece": score.ece,
        "failure": score.failure,
        "metrics": dict(score.metrics),
    }
    fields = Judgement.__dataclass_fields__
    judgements = [{**names, **{name: getattr(judgement, name) for name in fields}} for judgement in score.judgements]
    return {"scores": [row], "judgements": judgements}


def _failed(examples: Sequence[Context]) -> Callable[[str], Score]:
    def make(reason: str) -> Score:
        judgements = tuple(
            replace(Judgement(e.example, e.kind, e.quantile, float(e.fires), None), status="failed", failure=reason)
            for e in examples
        )
        return Score(None, None, None, 0, len(judgements), None, {}, judgements, reason)

    return make


def _conclude(job: Job, features: int) -> None:
    reasons: list[str] = []
    unscored = 0
    for file in part_files(job.folder, "scores"):
        columns = pq.read_table(file, columns=["value", "failure", "n_unscored"])
        reasons += [row["failure"] for row in columns.to_pylist() if row["value"] is None]
        unscored += sum(columns["n_unscored"].to_pylist())
    merge_parts(job.folder, ["scores", "judgements"])
    forget_shards(job.folder, files=True)
    if reasons:
        lost = len(reasons)
        log.warning("%s: %d of %d features have no score, for example: %s", job.use.name, lost, features, reasons[0])
    job.facts |= {"features": features, "failed": len(reasons), "unscored_examples": unscored}


def asks(config: Config, use: Use) -> Asks | None:
    given: Scoring = use.given
    if "llm" not in needs(given.score):
        return None
    return Asks(
        asking.llm_config(config, given.plugin), "composites" if _composites_alone(config, given) else "features"
    )


def _composites_alone(config: Config, given: Scoring) -> bool:
    explainer = next(plugin for plugin in config.explainers if plugin.key == given.explainer)
    return reads(config, explainer) is not None


async def rehearse(use: Use, sample: Sample, llm: LLM) -> None:
    """A control puts another explanation in the place of the feature's own: as many requests, about as long."""
    given: Scoring = use.given
    text = sample.texts.get(given.explainer, UNWRITTEN)
    if not text or (given.control is not None and not sample.others):
        return
    await given.score(text, sample.examples, llm, **given.options, **stand_ins(given.makers, sample))


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    scored = sizes.composites if _composites_alone(config, use.given) else sizes.features
    return Amount(scored or 0, "features", use.given.plugin.name, guess=5e-3)


STAGE = Stage(
    "score",
    "scorer S on X's explanations, on held-out documents; `/CONTROL` is the same with another explanation",
    uses,
    work,
    tables=("scores", "judgements"),
    resumable=True,
    amount=amount,
    asks=asks,
    rehearse=rehearse,
)
