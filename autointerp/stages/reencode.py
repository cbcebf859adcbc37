"""Stage reencode: what the harvested tokens say of the composites that the decoder check flags."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from autointerp.artifacts import Corpus, Firings
from autointerp.config import Config
from autointerp.engine import models
from autointerp.engine.estimate import Amount, Sizes, sae_of, subject_of
from autointerp.engine.stage import Job, Stage, Use
from autointerp.stages.branches import UNION
from autointerp.stages.composites import decoder_rows, lent_harvest, union_section
from autointerp.stages.corpus import numbers_section
from autointerp.tables import schema, to_table


def uses(config: Config) -> Iterator[Use]:
    if config.composites.enabled:
        section = {"tokens": config.composites.tokens, "window": config.contexts.window, "seed": config.seed}
        section |= union_section(config) | numbers_section(config)
        yield Use("reencode", ("corpus", "sae", "harvest", "composites", *lent_harvest(config)), section)


def work(job: Job) -> None:
    """Write composites.parquet again, with what the harvested tokens say, and cofiring.parquet.

    The subject runs once more, on the rows that hold a tested token; at most `composites.tokens` of a latent are
    tested. Beside each flagged latent's own parts stand two controls: another one's parts (swapped), and latents that
    fire as often as its own (random). Some latents that are no composites are put to the same test with their two
    nearest neighbours: `confirmed` is who does better than nine of ten of them. The stage's facts say how they did.
    Constituents of the union dictionary are tested as own ones are, against the nearest rows of that dictionary.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    from autointerp.composites.activation_evidence import (
        Levels,
        calibration,
        conclude,
        gather,
        project,
        summary,
        together,
    )
    from autointerp.composites.io import save_composites
    from autointerp.composites.union import Harvested

    config, corpus = job.config, Corpus(job.inputs["corpus"])
    table: Any = pd.read_parquet(job.inputs["composites"] / "composites.parquet")
    sae = models.open_sae(job.session, job.inputs["sae"])
    rows = decoder_rows(job, table, sae)
    lent = Firings(job.inputs[f"{UNION}harvest"]) if len(rows) > len(table) else None
    with pq.ParquetWriter(job.folder / "cofiring.parquet", schema("cofiring")) as cofiring:
        gathered = gather(
            table,
            corpus,
            Harvested(Firings(job.inputs["harvest"]), lent),
            rows,
            models.token_strings(job.session),
            lambda shown: cofiring.write_table(to_table("cofiring", shown)),
            tokens=config.composites.tokens,
            window=config.contexts.window,
            seed=config.seed,
        )
    W, level, of_union = rows.numpy(), {}, {}
    if gathered.latents and sae.leaves_a_rest:
        subject = models.subject(job.session, sae.cfg.hook_name)
        batch_tokens, device = config.subject.batch_tokens, models.device(job.session)
        project(gathered.latents, corpus, sae, rows, subject, batch_tokens=batch_tokens, device=device)
        level = calibration(gathered.no_sums, W) if gathered.no_sums else {}
        of_union = calibration(gathered.no_lent_sums, W) if gathered.no_lent_sums else {}
    levels = Levels(level.get("level"), of_union.get("level"))
    table = conclude(table, gathered.tested, W, levels)
    save_composites(table, job.folder / "composites.parquet")
    job.facts |= summary(table)
    if level:
        job.facts["reencode"]["no_sums"] = level
    if lent is not None:
        job.facts["union"] = together(table, gathered) | {"reencode_no_sums": of_union}


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    """The subject runs on the rows that hold a tested token: on all of them where many latents are flagged."""
    return Amount(sizes.tokens, "tokens", f"{subject_of(config)}, {sae_of(config)}", guess=2e-4)


STAGE = Stage(
    "reencode",
    "what the harvest says of the flagged latents: re-encoding, co-firing, lift, absorption; windows in which they fire"
    " with their parts",
    uses,
    work,
    tables=("composites", "cofiring"),
    apart=True,
    amount=amount,
)
