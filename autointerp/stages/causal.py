"""Stage causal: what ablating and steering composites does to the subject, beside their constituents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from autointerp.artifacts import Corpus, Firings
from autointerp.config import CausalConfig, Config
from autointerp.engine import models
from autointerp.engine.estimate import Amount, Sizes, sae_of, subject_of
from autointerp.engine.executor import Read, Rows, Work, each_feature, forget_shards, merge_parts
from autointerp.engine.stage import Job, Stage, Use
from autointerp.progress import progress
from autointerp.stages.composites import decoder_rows, union_section
from autointerp.stages.corpus import numbers_section

if TYPE_CHECKING:
    from autointerp.composites.causal import Question, Subjects

PASSES = 24  # of a composite of two: clean, itself, and its own shares and two controls, ablated and steered


def uses(config: Config) -> Iterator[Use]:
    wanted = config.composites.causal
    if config.composites.enabled and wanted is not None:
        section = wanted.model_dump() | {"later": models.identity(wanted.sae) if wanted.sae else None}
        section |= {"seed": config.seed, "hook_out": config.subject.hook_out}
        section |= union_section(config) | numbers_section(config)
        yield Use("causal", ("corpus", "sae", "harvest", "reencode"), section)


def work(job: Job) -> None:
    """Write causal.parquet: for each composite, ablated and steered, how far its effect agrees with that of its
    constituents together, of each alone, of the sum of these, and of the controls."""
    import pandas as pd

    from autointerp.composites.causal import effects, first, questions, silent_places
    from autointerp.composites.causes import summary

    wanted, table = _wanted(job), pd.read_parquet(job.inputs["reencode"] / "composites.parquet")
    chosen = first(table, wanted.count)

    def prepare() -> tuple[Read[Question], Work[Question]]:
        subjects = _subjects(job)
        W, firings = decoder_rows(job, table, subjects.sae), Firings(job.inputs["harvest"])
        silent = silent_places(subjects.corpus, wanted.tokens, job.config.seed)
        drawn: dict[str, int] = {"tokens": wanted.tokens, "seed": job.config.seed}

        async def tried(feature: int, question: Question) -> Rows:
            rows = effects(subjects, question, silent)
            return Rows({"causal": rows}, 0, sum("failure" in row for row in rows))

        return lambda features: questions(table, features, W, subjects.corpus, firings, **drawn), tried

    with progress("causal", len(chosen), "composites") as bar:
        each_feature(job, chosen, prepare, width=1, bar=bar)
    merge_parts(job.folder, ["causal"])
    forget_shards(job.folder)
    job.facts |= summary(pq.read_table(job.folder / "causal.parquet").to_pylist())


def _wanted(job: Job) -> CausalConfig:
    assert job.config.composites.causal is not None
    return job.config.composites.causal


def _subjects(job: Job) -> Subjects:
    from autointerp.composites.causal import Later, Subjects

    wanted = _wanted(job)
    sae = models.open_sae(job.session, job.inputs["sae"])
    reads = models.subject(job.session, sae.cfg.hook_name)
    later = models.load_sae(job.session, wanted.sae) if wanted.sae else None
    last = f"blocks.{reads.n_layers - 1}.hook_resid_post"
    hook = wanted.hook or (later.cfg.hook_name if later is not None else None) or last
    where = Later(reads.at(hook).hook.name, later)
    return Subjects(reads, models.written(job.session, sae), sae, Corpus(job.inputs["corpus"]), where)


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    wanted = config.composites.causal
    assert wanted is not None
    tokens = min(sizes.composites or 0, wanted.count) * PASSES * wanted.tokens * min(config.corpus.context, 128)
    return Amount(tokens, "tokens", f"{subject_of(config)}, {sae_of(config)}", guess=2e-4)


STAGE = Stage(
    "causal",
    "whether composites are used as sums: what ablating and steering them does, beside their constituents",
    uses,
    work,
    tables=("causal",),
    resumable=True,
    amount=amount,
)
