"""Stage semantic: whether the explanations of composites entail those of their constituents, by a judge."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow.parquet as pq

from autointerp.composites.concepts import SHORTLIST, nearest_texts, searched, with_search
from autointerp.composites.entailment import PROMPTS, entailed, judge_pair
from autointerp.composites.evidence import PAIRS
from autointerp.composites.flagged import read_flagged
from autointerp.composites.semantics import entails
from autointerp.config import Config, PluginConfig
from autointerp.engine import asking, models
from autointerp.engine.estimate import UNWRITTEN, Amount, Asks, Sample, Sizes
from autointerp.engine.executor import Read, Rows, Work, each_feature, forget_shards, merge_parts
from autointerp.engine.stage import Job, Stage, Use
from autointerp.llm.registry import backend_of
from autointerp.progress import progress
from autointerp.records import LLM
from autointerp.stages.branches import of_union
from autointerp.stages.constituents import explained_by
from autointerp.stages.plugin_section import llm_section


def uses(config: Config) -> Iterator[Use]:
    if config.composites.semantic is not None:
        explainer = explained_by(config, config.composites.semantic.explainer, "composites.semantic")
        embedder = {"embedder": models.identity(models.EMBEDDER)} if config.composites.semantic.search else {}
        section = {"of": explainer} | embedder | llm_section(config, judge(config), PROMPTS) | {"seed": config.seed}
        explained = ("select", f"explain/{explainer}")
        read = (*explained, "reencode", *of_union(config, *explained))
        backend = backend_of(asking.llm_config(config, judge(config)))
        yield Use("semantic", read, section, explainer, plugins=(backend,))


def judge(config: Config) -> PluginConfig:
    """The judge as a plug-in's config: whose language model it asks."""
    assert config.composites.semantic is not None
    return PluginConfig(name="semantic", llm=config.composites.semantic.llm)


def work(job: Job) -> None:
    """Write semantic.parquet: for every composite that is explained, as its parts are, whether a judge says that its
    explanation entails theirs, or theirs entail it; and the same of another composite's parts (swapped) and of latents
    that fire as often (random)."""
    explainer, plugin, wanted = job.use.given, judge(job.config), job.config.composites.semantic
    assert wanted is not None
    flagged = read_flagged(job.inputs, explainer, job.config.seed)
    composites, width = sorted(flagged.parts["own"]), asking.width(job.config, plugin)

    def prepare() -> tuple[Read[None], Work[None]]:
        llm = asking.client(job.session, plugin)
        near = nearest_texts(flagged, models.embedder(job.session)) if wanted.search else None

        async def judged(feature: int, _: None) -> Rows:
            with asking.asked(llm, "semantic", feature) as counts:
                rows = [await judge_pair(feature, pair, flagged, llm) for pair in PAIRS]
                if near is not None:
                    chosen = await searched(feature, near, flagged, llm)
                    rows = [with_search(row, chosen.get(row["pair"], {})) for row in rows]
            return Rows({"semantic": rows}, counts.retryable_failures, sum("failure" in row for row in rows))

        return dict.fromkeys, judged

    with progress("semantic", len(composites), "composites") as bar:
        job.to_retry += each_feature(job, composites, prepare, width=width, bar=bar)
    merge_parts(job.folder, ["semantic"])
    forget_shards(job.folder)
    rows = pq.read_table(job.folder / "semantic.parquet").to_pylist()
    job.facts |= {"explainer": explainer, "failed": sum(row["failure"] is not None for row in rows)} | entailed(rows)


def asks(config: Config, use: Use) -> Asks:
    return Asks(asking.llm_config(config, judge(config)), "composites")


async def rehearse(use: Use, sample: Sample, llm: LLM) -> None:
    whole = sample.texts.get(use.given, UNWRITTEN)
    for pair in PAIRS:
        texts = [part.explanation for part in sample.parts(use.given, pair)]
        if whole and all(texts):
            for text in texts:
                await entails(whole, text or "", llm)
                await entails(text or "", whole, llm)
    if whole and "embedder" in use.section:
        for _ in range(SHORTLIST):  # of explanations as long as its own
            await entails(whole, whole, llm)


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    return Amount(sizes.composites or 0, "composites")


STAGE = Stage(
    "semantic",
    "whether the explanations of composites entail those of their constituents, and of two controls",
    uses,
    work,
    tables=("semantic",),
    resumable=True,
    amount=amount,
    asks=asks,
    rehearse=rehearse,
)
