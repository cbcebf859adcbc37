"""Stage activations: dense activations, stored for an SAE that the run trains."""

from __future__ import annotations

from collections.abc import Iterator

from autointerp.artifacts import Corpus
from autointerp.config import Config
from autointerp.engine import models
from autointerp.engine.estimate import Amount, Sizes, subject_of
from autointerp.engine.stage import Job, Stage, Use
from autointerp.progress import progress
from autointerp.stages.corpus import numbers_section


def uses(config: Config) -> Iterator[Use]:
    if config.sae.stores_activations:
        yield Use("activations", ("corpus",), numbers_section(config))


def work(job: Job) -> None:
    from autointerp.activations.dense import harvest_dense

    corpus = Corpus(job.inputs["corpus"])
    subject = models.subject(job.session, None)
    with progress("activations", corpus.info.n_tokens, "tokens") as bar:
        harvest_dense(
            corpus,
            subject.activations,
            subject.d_hook,
            job.folder,
            batch_tokens=job.config.subject.batch_tokens,
            device=models.device(job.session),
            bar=bar,
        )


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    width = sizes.width or 0
    return Amount(sizes.tokens, "tokens", subject_of(config), guess=2e-4, bytes=2.0 * sizes.tokens * width)


STAGE = Stage(
    "activations",
    "for `sae.train` alone: dense activations in float16",
    uses,
    work,
    resumable=True,
    apart=True,
    remade=True,
    amount=amount,
)
