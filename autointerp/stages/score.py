"""Stage score/S/X[/C]: scorer S on the explanations of X, or on those that control C puts in their place."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow.parquet as pq

from autointerp import stats
from autointerp.config import Config, PluginConfig
from autointerp.engine import asking
from autointerp.engine.estimate import UNWRITTEN, Amount, Asks, Sample, Sizes, stand_ins
from autointerp.engine.executor import Read, Rows, Work, each_feature, forget_shards, merge_parts, part_files
from autointerp.engine.guard import guarded
from autointerp.engine.stage import Job, Stage, Use
from autointerp.plugins import bind_options, controls, explainers, needs, runs_again, scorers
from autointerp.progress import progress
from autointerp.records import LLM, Context, Judgement, Score
from autointerp.stages import calibrate
from autointerp.stages.constituents import about
from autointerp.stages.contexts import windows_of
from autointerp.stages.explained import Explained
from autointerp.stages.given import Maker, for_control, giver, makers_of, stages_of
from autointerp.stages.plugin_section import code_of, plugin_section

log = logging.getLogger("autointerp")

Shown = tuple[list[Context], Mapping[str, Any]]  # a feature's windows, and the scorer's keyword arguments


@dataclass(frozen=True)
class Scoring:
    """Which scorer, on whose explanations, and which control puts others in their place."""

    plugin: PluginConfig
    score: Callable[..., Any]
    options: Mapping[str, Any]
    makers: Mapping[str, Maker]
    explainer: str
    control: str | None = None
    pick: Callable[..., Mapping[int, str | Sequence[str]]] | None = None
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
            read += (calibrate.name_of(plugin, explainer.key),) if calibrate.wanted(config, score) else ()
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
                asked += ("near",) if "neighbours" in needs(pick) else ()
                chosen = bind_options("control", control.name, pick, control.options, config.seed)
                given = replace(given, control=control.key, pick=pick, pick_options=chosen)
                names = tuple(dict.fromkeys((*read, *asked)))
                yield Use(name_of(plugin, explainer.key, control), names, section, given, (*code, pick, for_control))


def name_of(scorer: PluginConfig, explainer: str, control: PluginConfig | None) -> str:
    return "/".join(["score", scorer.key, explainer] + ([control.key] if control else []))


def work(job: Job) -> None:
    """Write scores.parquet (a row a feature) and judgements.parquet (a row a judged example)."""
    given: Scoring = job.use.given
    explained = Explained(job.inputs[f"explain/{given.explainer}"])
    width = asking.width(job.config, given.plugin)
    with progress(job.use.name, len(explained.features), "features") as bar:
        prepare = partial(_scoring, job, given, explained)
        job.to_retry += each_feature(job, explained.features, prepare, width=width, bar=bar)
    _conclude(job, len(explained.features))


def _scoring(job: Job, given: Scoring, explained: Explained) -> tuple[Read[Shown], Work[Shown]]:
    told = _told(job, given, explained.texts)
    read, give = windows_of(job.inputs["contexts"], "test"), giver(job, given.makers, "test", explained.texts)
    llm = asking.client(job.session, given.plugin) if "llm" in needs(given.score) else None
    names = {"explainer": given.explainer, "scorer": given.plugin.key, "control": given.control}
    whose = {text: feature for feature, text in sorted(explained.texts.items(), reverse=True)} if given.pick else {}

    def with_needs(batch: Sequence[int]) -> dict[int, Shown]:
        examples, others = read(batch), give(batch)
        return {feature: (examples[feature], others[feature]) for feature in batch}

    async def scored(feature: int, shown: Shown) -> Rows:
        examples, others = shown
        options = {**given.options, **others}

        async def by(text: str) -> Score:
            return await guarded(lambda: given.score(text, examples, llm, **options), Score, _failed(examples))

        with asking.asked(llm, job.use.name, feature) as meter:
            texts = told(feature)
            scores = await asyncio.gather(*map(by, texts))
            known = feature in explained.texts  # then it is a control that has none
            why = "no other explanation to compare with" if known else explained.why_none(feature)
            score = mean_of(scores) if scores else _failed(examples)(why)
            score = replace(score, metrics={**score.metrics, **lent_by(texts, whose)})
        failed = (score.value is None) + sum(judgement.status == "failed" for judgement in score.judgements)
        return Rows(_rows({"feature": feature} | names, score), meter.retryable_failures, failed)

    return with_needs, scored


def lent_by(texts: Sequence[str], whose: Mapping[str, int]) -> dict[str, float | None]:
    """Columns that say which feature lent each text, of several that say the same the first: a mean over features is
    less certain where one lends to several (`stats.shared_interval`)."""
    known = (whose[text] for text in texts if text in whose)
    return {f"lent_by_{number}": float(feature) for number, feature in enumerate(known, start=1)}


def mean_of(scores: Sequence[Score]) -> Score:
    """Of one feature's scores with several explanations the mean, over those that have a value; all judgements.

    The interval is the mean of theirs: they share their examples, so it is not narrowed by their number.
    """
    if len(scores) == 1:
        return scores[0]

    def mean(values: Iterable[float | None]) -> float | None:
        present = [value for value in values if value is not None]
        return sum(present) / len(present) if present else None

    fields = ("value", "low", "high", "base_rate", "chance", "corrected", "yes_rate", "ece")
    valued = [score for score in scores if score.value is not None]
    names = dict.fromkeys(name for score in valued for name in score.metrics)
    metrics = {name: mean(score.metrics.get(name) for score in valued) for name in names}
    if "n_saved" in metrics:
        metrics["n_saved"] = sum(score.metrics.get("n_saved") or 0.0 for score in valued)
    return Score(
        **{name: mean(getattr(score, name) for score in valued) for name in fields},
        n_scored=sum(score.n_scored for score in scores),
        n_unscored=sum(score.n_unscored for score in scores),
        metrics=metrics,
        judgements=tuple(judgement for score in scores for judgement in score.judgements),
        failure=None if valued else scores[0].failure,
    )


def _told(job: Job, given: Scoring, known: Mapping[int, str]) -> Callable[[int], Sequence[str]]:
    """Of a feature, the texts that its judge is told: its own, or those that a control puts in its place."""
    if given.pick is None:
        return lambda feature: (known[feature],) if feature in known else ()
    lent = given.pick(sorted(known), known, **(given.pick_options or {}), **for_control(job, given.pick))
    return lambda feature: (texts,) if isinstance(texts := lent.get(feature, ()), str) else texts


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
    yes: list[float] = []
    unscored = saved = asked = untold = 0
    for file in part_files(job.folder, "scores"):
        wanted = ["value", "failure", "n_scored", "n_unscored", "yes_rate", "n_saved", "yes_rate_calibrated"]
        rows = pq.read_table(file, columns=[c for c in wanted if c in pq.read_schema(file).names]).to_pylist()
        reasons += [row["failure"] for row in rows if row["value"] is None]
        yes += [row["yes_rate"] for row in rows if row["yes_rate"] is not None]
        untold += sum(row["value"] is not None and row.get("yes_rate_calibrated", 0.0) is None for row in rows)
        unscored += sum(row["n_unscored"] for row in rows)
        asked += sum(row["n_scored"] + row["n_unscored"] for row in rows)
        saved += sum(int(row.get("n_saved") or 0) for row in rows)
    merge_parts(job.folder, ["scores", "judgements"])
    forget_shards(job.folder)
    if reasons:
        lost = len(reasons)
        log.warning("%s: %d of %d features have no score, for example: %s", job.use.name, lost, features, reasons[0])
    job.facts |= {"features": features, "failed": len(reasons), "unscored_examples": unscored}
    if yes and "llm" in needs(job.use.given.score):
        job.facts["yes_rate"] = sum(yes) / len(yes)
        doubt = stats.by_habit(job.facts["yes_rate"])
        if doubt and job.use.given.control is None:
            log.warning("%s: %s", job.use.name, doubt)
    if untold:
        job.facts["uncalibrated"] = untold
        why = "on other features' windows the judge's evidence does not tell true from false"
        log.warning("%s: no calibrated answers for %d of %d features: %s", job.use.name, untold, features, why)
    if saved:
        job.facts["saved_examples"] = saved
        log.info("%s: intervals were narrow enough without %d of %d examples", job.use.name, saved, saved + asked)


def asks(config: Config, use: Use) -> Asks | None:
    given: Scoring = use.given
    if "llm" not in needs(given.score):
        return None
    return Asks(asking.llm_config(config, given.plugin), about(config, given.explainer))


def _donors(pick: Callable[..., Any], options: Mapping[str, Any]) -> int:
    """How many explanations a control lends to a feature, as its option `donors` says; 1 of one that has none."""
    declared = inspect.signature(pick).parameters.get("donors")
    return options.get("donors", declared.default if declared else 1)


async def rehearse(use: Use, sample: Sample, llm: LLM) -> None:
    """A control puts others' explanations in the place of the feature's own: as many requests for each, as long."""
    given: Scoring = use.given
    text = sample.texts.get(given.explainer, UNWRITTEN)
    told = 1 if given.pick is None else min(_donors(given.pick, given.pick_options or {}), sample.others)
    for _ in range(told if text else 0):
        await given.score(text, sample.examples, llm, **given.options, **stand_ins(given.makers, sample))


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    scored = sizes.composites if about(config, use.given.explainer) == "composites" else sizes.features
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
