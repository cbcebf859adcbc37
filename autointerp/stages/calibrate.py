"""Stage calibrate/S/X: what the judge of scorer S says of train windows of a few features, told X's explanations.

1. A few of the features that X explained are drawn by the seed.
2. The judge is asked about train windows of each as S asks about test windows, half of them true.
3. ``score/S/X`` fits the probability of a Yes (Platt's scaling) to the pairs of all these but the feature it scores.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow.parquet as pq

from autointerp import stats
from autointerp.config import Config, PluginConfig
from autointerp.engine import asking
from autointerp.engine.estimate import UNWRITTEN, Amount, Asks, Sample, Sizes, stand_ins
from autointerp.engine.executor import Read, Rows, Work, each_feature, forget_shards, merge_parts
from autointerp.engine.guard import guarded
from autointerp.engine.stage import Job, Stage, Use
from autointerp.plugins import bind_options, explainers, needs, pairs_of, scorers
from autointerp.progress import progress
from autointerp.records import LLM, Context
from autointerp.stages.constituents import about
from autointerp.stages.contexts import windows_of
from autointerp.stages.explained import Explained
from autointerp.stages.given import Maker, giver, makers_of, stages_of
from autointerp.stages.plugin_section import code_of, plugin_section

log = logging.getLogger("autointerp")

Shown = tuple[list[Context], Mapping[str, Any]]  # a feature's windows, and the scorer's keyword arguments
NOT_ASKED = {"calibration", "natural_rate"}  # what the scorer needs and its judge's pairs do not


@dataclass(frozen=True)
class Calibrating:
    """Which scorer's judge, and whose explanations it is told."""

    plugin: PluginConfig
    pairs: Callable[..., Any]
    options: Mapping[str, Any]
    makers: Mapping[str, Maker]
    explainer: str
    most: int  # windows of a feature


def name_of(scorer: PluginConfig, explainer: str) -> str:
    return f"calibrate/{scorer.key}/{explainer}"


def wanted(config: Config, score: Callable[..., Any]) -> bool:
    """Whether a scorer's judge is calibrated: it asks for that, and the config does not forbid it."""
    return "calibration" in needs(score) and config.calibration.features > 0


def uses(config: Config) -> Iterator[Use]:
    for explainer in config.explainers:
        explainers.get(explainer.name)
        for plugin in config.scorers:
            score = scorers.get(plugin.name)
            if not wanted(config, score):
                continue
            options = bind_options("scorer", plugin.name, score, plugin.options, config.seed)
            makers = {name: make for name, make in makers_of(score).items() if name not in NOT_ASKED}
            given = Calibrating(plugin, pairs_of(score), options, makers, explainer.key, config.calibration.windows)
            section = plugin_section(config, scorers, plugin)
            section |= {"seed": config.seed, "calibration": config.calibration.model_dump()}
            read = ("contexts", f"explain/{explainer.key}", *stages_of(needs(score) - NOT_ASKED))
            code = (*code_of(config, plugin, pairs_of(score)), *makers.values())
            yield Use(name_of(plugin, explainer.key), tuple(dict.fromkeys(read)), section, given, code)


def work(job: Job) -> None:
    """Write calibration.parquet: a row a judged window."""
    given: Calibrating = job.use.given
    texts = _texts(job, given)
    width = asking.width(job.config, given.plugin)
    with progress(job.use.name, len(texts), "features") as bar:
        prepare = partial(_judging, job, given, texts)
        job.to_retry += each_feature(job, sorted(texts), prepare, width=width, bar=bar)
    merge_parts(job.folder, ["calibration"])
    forget_shards(job.folder)
    table = pq.read_table(job.folder / "calibration.parquet", columns=["truth", "evidence"])
    fitted = stats.fit_calibration(table["truth"].to_numpy(), table["evidence"].to_numpy())
    job.facts |= {"features": len(texts), "pairs": len(table)}
    if fitted is not None:
        job.facts |= {"slope": fitted.slope, "offset": fitted.offset}


def _judging(job: Job, given: Calibrating, texts: Mapping[int, str]) -> tuple[Read[Shown], Work[Shown]]:
    read, give = windows_of(job.inputs["contexts"], "train"), giver(job, given.makers, "train", texts)
    llm = asking.client(job.session, given.plugin)
    names = {"explainer": given.explainer, "scorer": given.plugin.key}

    def with_needs(batch: Sequence[int]) -> dict[int, Shown]:
        windows, others = read(batch), give(batch)
        return {feature: (windows[feature], others[feature]) for feature in batch}

    async def judged(feature: int, shown: Shown) -> Rows:
        windows, others = shown
        options = {**given.options, **others, "most": given.most}

        def none(why: str) -> list[Any]:
            log.warning("%s: no pairs of feature %d: %s", job.use.name, feature, why)
            return []

        with asking.asked(llm, job.use.name, feature) as meter:
            pairs = await guarded(lambda: given.pairs(texts[feature], windows, llm, **options), list, none)
        rows = [{"feature": feature, **names, "truth": float(t), "evidence": e} for t, e in pairs]
        return Rows({"calibration": rows}, meter.retryable_failures)

    return with_needs, judged


def _texts(job: Job, given: Calibrating) -> dict[int, str]:
    """The features drawn and what is said of them; none where there is but one, whose own pairs would not count."""
    texts = Explained(job.inputs[f"explain/{given.explainer}"]).texts
    if len(texts) < 2:
        return {}
    drawn = random.Random(job.config.seed).sample(sorted(texts), min(job.config.calibration.features, len(texts)))
    return {feature: texts[feature] for feature in drawn}


def asks(config: Config, use: Use) -> Asks:
    given: Calibrating = use.given
    return Asks(
        asking.llm_config(config, given.plugin), about(config, given.explainer), most=config.calibration.features
    )


async def rehearse(use: Use, sample: Sample, llm: LLM) -> None:
    given: Calibrating = use.given
    text, shown = sample.texts.get(given.explainer, UNWRITTEN), sample.evidence
    if text and sample.others:
        windows = [*shown.activating, *shown.random, *shown.near]
        await given.pairs(text, windows, llm, most=given.most, **given.options, **stand_ins(given.makers, sample))


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    most = config.calibration.features
    return Amount(min(sizes.features or 0, most), "features", use.given.plugin.name, guess=5e-3)


STAGE = Stage(
    "calibrate",
    "what scorer S's judge says of train windows of a few features, for its threshold on the others",
    uses,
    work,
    tables=("calibration",),
    resumable=True,
    amount=amount,
    asks=asks,
    rehearse=rehearse,
)
