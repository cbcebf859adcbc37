"""Stage harvest: where each latent fires."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from autointerp.artifacts import Corpus, Firings
from autointerp.config import Config
from autointerp.engine import models
from autointerp.engine.estimate import Amount, Sizes, sae_of, subject_of
from autointerp.engine.executor import Shard, each_shard
from autointerp.engine.stage import Job, Stage, Use
from autointerp.progress import progress
from autointerp.stages import outliers
from autointerp.stages.corpus import cached_by_delphi, numbers_section

if TYPE_CHECKING:
    import numpy as np

    from autointerp.activations.harvest import Activations, Harvest
    from autointerp.progress import Progress
    from autointerp.sae.model import SAE


def uses(config: Config) -> Iterator[Use]:
    stored = ("activations",) if config.sae.stores_activations else ()
    cached = {"cache": models.identity(config.corpus.source)} if cached_by_delphi(config) else {}
    yield Use(
        "harvest",
        ("corpus", "sae", *stored, *outliers.asked(config)),
        numbers_section(config) | cached | shard_section(config),
    )


def shard_section(config: Config) -> dict[str, int]:
    """Of a stage that leaves a file for each shard of text."""
    return {"shard_tokens": config.executor.shard_tokens}


def work(job: Job) -> None:
    """Each shard of text is kept with its hash when it is done: a killed harvest goes on from there, and a shard that
    was damaged since is harvested again."""
    from autointerp.activations.harvest import merge_shards

    corpus = Corpus(job.inputs["corpus"])
    if cached_by_delphi(job.config):
        from autointerp.activations.delphi_cache import read_firings

        read_firings(Path(job.config.corpus.source).expanduser(), wanted_of(job), job.folder)
        return
    shards = shards_of(corpus, job.config)
    with progress("harvest", corpus.info.n_tokens, "tokens") as bar:
        harvest_shards(job, corpus, shards, partial(wanted_of, job), bar)
    merge_shards(_to_merge(job, corpus), job.folder, len(shards))
    info = Firings(job.folder).info
    job.facts |= {"tokens": info.n_tokens, "outlying": info.outlying, "outlier_threshold": info.outlier_threshold}


def shards_of(corpus: Corpus, config: Config) -> list[Shard]:
    from autointerp.activations.harvest import text_shards

    return [Shard(n, rows) for n, rows in enumerate(text_shards(corpus, config.executor.shard_tokens))]


def wanted_of(job: Job) -> Harvest:
    import numpy as np

    sae = models.open_sae(job.session, job.inputs["sae"])
    corpus = Corpus(job.inputs["corpus"])
    if "activations" in job.inputs:  # what the SAE was trained on: the subject need not run again
        hook, source = sae.cfg.hook_name or "", np.load(job.inputs["activations"] / "activations.npy", mmap_mode="r")
    else:
        subject = models.subject(job.session, sae.cfg.hook_name)
        hook, source = subject.hook.name, subject.activations
    return _harvest(job, corpus, sae, hook, source)


def _to_merge(job: Job, corpus: Corpus) -> Harvest:
    """The same for `merge_shards`: no subject runs, for the shards say what it was read at."""
    import numpy as np

    from autointerp.activations.harvest import hook_of, shard_path

    sae = models.open_sae(job.session, job.inputs["sae"])
    return _harvest(job, corpus, sae, hook_of(shard_path(job.folder, 0)) or sae.cfg.hook_name or "", np.empty(0))


def _harvest(job: Job, corpus: Corpus, sae: SAE, hook: str, source: Activations | np.ndarray) -> Harvest:
    from autointerp.activations.harvest import Harvest

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


def harvest_shards(
    job: Job, corpus: Corpus, shards: Sequence[Shard], wanted_now: Callable[[], Harvest], bar: Progress
) -> None:
    from autointerp.activations.harvest import harvest_shard, shard_path

    def prepare() -> Callable[[Shard], Sequence[Path]]:
        wanted = wanted_now()

        def make(shard: Shard) -> Sequence[Path]:
            first, last = shard.items
            path = shard_path(job.folder, shard.number)
            harvest_shard(wanted, first, last, path, bar)
            return [path]

        return make

    each_shard(job, shards, prepare, partial(tokens_of, corpus), bar)


def tokens_of(corpus: Corpus, shard: Shard) -> int:
    first, last = shard.items
    return int(corpus.offsets[last] - corpus.offsets[first])


USUAL_ACTIVE = 50  # latents that fire on a token, where nothing tells it
FIRING_BYTES = 4  # gap and activation


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    speed_of = f"{subject_of(config)}, {sae_of(config)}"
    shards = -(-sizes.tokens // config.executor.shard_tokens)
    firings = sizes.tokens * (sizes.active or USUAL_ACTIVE)
    return Amount(sizes.tokens, "tokens", speed_of, guess=2e-4, bytes=FIRING_BYTES * firings, shards=shards)


STAGE = Stage(
    "harvest",
    "where each latent fires, sparse, in shards sorted by latent; for an SAE that the run trained, from the stored"
    " activations",
    uses,
    work,
    resumable=True,
    amount=amount,
)
