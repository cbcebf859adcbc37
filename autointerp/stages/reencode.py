"""Stage reencode: what the harvested tokens say of the composites that the decoder check flags."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from autointerp.artifacts import Corpus, Firings
from autointerp.config import Config
from autointerp.engine import models
from autointerp.engine.estimate import Amount, Sizes, sae_of, subject_of
from autointerp.engine.stage import Job, Stage, Use
from autointerp.stages.composites import union_section
from autointerp.stages.corpus import numbers_section
from autointerp.tables import write_rows

if TYPE_CHECKING:
    from autointerp.sae.model import SAE


def uses(config: Config) -> Iterator[Use]:
    if config.composites.enabled:
        section = {"tokens": config.composites.tokens, "window": config.contexts.window, "seed": config.seed}
        section |= union_section(config) | numbers_section(config)
        yield Use("reencode", ("corpus", "sae", "harvest", "composites"), section)


def work(job: Job) -> None:
    """Write composites.parquet again, with what the harvested tokens say, and cofiring.parquet.

    The subject runs once more, on the rows that hold a tested token; at most `composites.tokens` of a latent are
    tested. Beside each flagged latent's own parts stand two controls: another one's parts (swapped), and latents that
    fire as often as its own (random). Some latents that are no composites are put to the same test with their two
    nearest neighbours: `confirmed` is who does better than nine of ten of them. The stage's facts say how they did.
    """
    import pandas as pd

    from autointerp.composites.activation_evidence import calibration, conclude, gather, project, summary
    from autointerp.composites.io import save_composites

    config, corpus, firings = job.config, Corpus(job.inputs["corpus"]), Firings(job.inputs["harvest"])
    table: Any = pd.read_parquet(job.inputs["composites"] / "composites.parquet")
    sae = models.open_sae(job.session, job.inputs["sae"])
    gathered = gather(
        table,
        corpus,
        firings,
        sae,
        models.token_strings(job.session),
        tokens=config.composites.tokens,
        window=config.contexts.window,
        seed=config.seed,
    )
    level = None
    if gathered.latents and sae.leaves_a_rest:
        subject = models.subject(job.session, sae.cfg.hook_name)
        batch_tokens, device = config.subject.batch_tokens, models.device(job.session)
        project(gathered.latents, corpus, sae, subject, batch_tokens=batch_tokens, device=device)
        if gathered.no_sums:
            level = calibration(gathered.no_sums, sae)
    lent, of_union = _lent(job, table, corpus, firings, sae)
    table = conclude(table, gathered.tested, lent, sae, level["level"] if level else None)
    save_composites(table, job.folder / "composites.parquet")
    write_rows(job.folder / "cofiring.parquet", "cofiring", gathered.windows)
    job.facts |= summary(table)
    if level:
        job.facts["reencode"]["no_sums"] = level
    if of_union:
        job.facts["union"] = of_union


def _lent(
    job: Job, table: Any, corpus: Corpus, firings: Firings, sae: SAE
) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    """What `union.lent` says of the latents with constituents of the union SAE; nothing where there is none, and then
    neither that SAE nor the subject is loaded."""
    from autointerp.composites.activation_evidence import row_order
    from autointerp.composites.union import lent, lent_sums

    config = job.config
    if config.composites.union is None:
        return {}, {}
    sums = lent_sums(table, sae.cfg.d_sae)
    if not sums:
        return {}, {}
    union = models.load_sae(job.session, config.composites.union)
    if not (sae.leaves_a_rest and union.leaves_a_rest):
        return {}, {}
    return lent(
        sums,
        table,
        corpus,
        firings,
        sae,
        union,
        models.subject(job.session, sae.cfg.hook_name),
        row_order(corpus, config.seed),
        tokens=config.composites.tokens,
        seed=config.seed,
        batch_tokens=config.subject.batch_tokens,
        device=models.device(job.session),
    )


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
    amount=amount,
)
