"""harvest: where each latent fires."""

from __future__ import annotations

from collections.abc import Iterator

from autointerp.artifacts import Corpus
from autointerp.config import Config
from autointerp.engine import models
from autointerp.engine.stage import Job, Stage, Use
from autointerp.progress import progress
from autointerp.stages.corpus import numbers_section


def uses(config: Config) -> Iterator[Use]:
    stored = ("activations",) if config.sae.train is not None else ()
    yield Use("harvest", ("corpus", "sae", *stored), numbers_section(config))


def work(job: Job) -> None:
    import numpy as np

    from autointerp.activations.harvest import harvest

    sae = models.open_sae(job.session, job.inputs["sae"])
    corpus = Corpus(job.inputs["corpus"])
    if "activations" in job.inputs:  # what the SAE was trained on: the subject need not run again
        hook, source = sae.cfg.hook_name or "", np.load(job.inputs["activations"] / "activations.npy", mmap_mode="r")
    else:
        subject = models.subject(job.session, sae.cfg.hook_name)
        hook, source = subject.hook.name, subject.activations
    with progress("harvest", corpus.info.n_tokens, "tokens") as bar:
        harvest(
            corpus,
            source,
            sae.encode_sparse,
            sae.cfg.d_sae,
            job.folder,
            hook=hook,
            skip_bos=corpus.info.bos_id is not None,
            batch_tokens=job.config.subject.batch_tokens,
            device=models.device(job.session),
            bar=bar,
        )


STAGE = Stage(
    "harvest",
    "where each latent fires, sparse, in shards sorted by latent; of an SAE trained here without running the subject"
    " again",
    uses,
    work,
    resumable=True,
)
