"""Stage harvest: where each latent fires."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autointerp.artifacts import Corpus, Firings
from autointerp.config import Config
from autointerp.engine import models
from autointerp.engine.estimate import Amount, Sizes, sae_of, subject_of
from autointerp.engine.executor import Shard, each_shard, forget_shards
from autointerp.engine.stage import Job, Stage, Use
from autointerp.progress import progress
from autointerp.stages import outliers
from autointerp.stages.corpus import cached_by_delphi, numbers_section

if TYPE_CHECKING:
    from autointerp.activations.harvest import Harvest
    from autointerp.progress import Progress


def uses(config: Config) -> Iterator[Use]:
    stored = ("activations",) if config.sae.train is not None else ()
    cached = {"cache": models.identity(config.corpus.source)} if cached_by_delphi(config) else {}
    yield Use("harvest", ("corpus", "sae", *stored, *outliers.asked(config)), numbers_section(config) | cached)


def work(job: Job) -> None:
    """Each shard of text is kept with its hash when it is done: a killed harvest goes on from there, and a shard that
    was damaged since is harvested again."""
    from autointerp.activations.harvest import merge_shards, remove_torn, text_shards

    wanted = _wanted(job)
    remove_torn(job.folder)
    if cached_by_delphi(job.config):
        from autointerp.activations.delphi_cache import read_firings

        read_firings(Path(job.config.corpus.source).expanduser(), wanted, job.folder)
        return
    shards = [Shard(number, rows) for number, rows in enumerate(text_shards(wanted.corpus))]
    with progress("harvest", wanted.corpus.info.n_tokens, "tokens") as bar:
        _each_shard(wanted, job.folder, shards, bar)
    merge_shards(wanted, job.folder, len(shards))
    forget_shards(job.folder, files=False)
    info = Firings(job.folder).info
    job.facts |= {"tokens": info.n_tokens, "outlying": info.outlying, "outlier_threshold": info.outlier_threshold}


def _wanted(job: Job) -> Harvest:
    import numpy as np

    from autointerp.activations.harvest import Harvest

    sae = models.open_sae(job.session, job.inputs["sae"])
    corpus = Corpus(job.inputs["corpus"])
    if "activations" in job.inputs:  # what the SAE was trained on: the subject need not run again
        hook, source = sae.cfg.hook_name or "", np.load(job.inputs["activations"] / "activations.npy", mmap_mode="r")
    else:
        subject = models.subject(job.session, sae.cfg.hook_name)
        hook, source = subject.hook.name, subject.activations
    return Harvest(
        corpus,
        source,
        sae.encode_sparse,
        sae.cfg.d_sae,
        hook=hook,
        skip_bos=corpus.info.bos_id is not None,
        batch_tokens=job.config.subject.batch_tokens,
        device=models.device(job.session),
        contextual=sae.is_contextual,
        outlier_threshold=outliers.threshold(job),
    )


def _each_shard(wanted: Harvest, folder: Path, shards: Sequence[Shard], bar: Progress) -> None:
    from autointerp.activations.harvest import harvest_shard, shard_path

    def make(shard: Shard) -> Sequence[Path]:
        first, last = shard.items
        path = shard_path(folder, shard.number)
        harvest_shard(wanted, first, last, path, bar)
        return [path]

    def skip(shard: Shard) -> None:
        first, last = shard.items
        bar.advance(int(wanted.corpus.offsets[last] - wanted.corpus.offsets[first]), skipped=True)

    each_shard(folder, shards, make, skip)


USUAL_ACTIVE = 50  # latents that fire on a token, where nothing tells it
FIRING_BYTES = 6  # position and activation


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    speed_of = f"{subject_of(config)}, {sae_of(config)}"
    firings = sizes.tokens * (sizes.active or USUAL_ACTIVE)
    return Amount(sizes.tokens, "tokens", speed_of, guess=2e-4, bytes=FIRING_BYTES * firings)


STAGE = Stage(
    "harvest",
    "where each latent fires, sparse, in shards sorted by latent; for an SAE that the run trained, from the stored"
    " activations",
    uses,
    work,
    resumable=True,
    amount=amount,
)
