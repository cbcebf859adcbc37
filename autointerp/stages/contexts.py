"""Stage contexts: windows in which each feature fires, in which it does not, and hard negatives (near misses)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from autointerp.artifacts import Corpus, Firings
from autointerp.config import Config
from autointerp.engine import models
from autointerp.engine.estimate import Amount, Sizes
from autointerp.engine.executor import Shard, each_shard, feature_shards, forget_shards, part_files
from autointerp.engine.stage import Job, Stage, Use
from autointerp.progress import progress
from autointerp.records import Context, Split
from autointerp.stages.corpus import subject_section
from autointerp.stages.select import ready

if TYPE_CHECKING:
    from autointerp.progress import Progress


def uses(config: Config) -> Iterator[Use]:
    section = config.contexts.model_dump() | {"seed": config.seed} | subject_section(config)  # its tokenizer
    yield Use("contexts", ("corpus", "harvest", "select", "directions"), section)


PART = 1024  # features a shard at most: those of one share the reading of their neighbours' firings


def work(job: Job) -> None:
    """Each shard of features is kept when it is done: a killed stage goes on from there."""
    from autointerp.activations.contexts import context_sampler, merge_contexts, write_contexts

    features = ready(job.inputs["select"])

    def prepare() -> Callable[[Shard], Sequence[Path]]:
        sample = context_sampler(
            Corpus(job.inputs["corpus"]),
            Firings(job.inputs["harvest"]),
            _Neighbours(job.inputs["directions"] / "neighbours.parquet"),
            models.token_strings(job.session),
            job.config.contexts,
            job.config.seed,
        )

        def make(shard: Shard) -> Sequence[Path]:
            path = job.folder / f"part-{shard.number:05d}.contexts.parquet"
            write_contexts(_counting(sample(shard.items), bar), path)
            return [path]

        return make

    with progress("contexts", len(features), "features") as bar:
        each_shard(job, feature_shards(features, PART), prepare, lambda shard: len(shard.items), bar)
    merge_contexts(part_files(job.folder, "contexts"), job.folder / "contexts.parquet")
    forget_shards(job.folder)


class _Neighbours(Mapping[int, Sequence[int]]):
    """feature -> its decoder neighbours, nearest first, from arrays: a list a feature would be many times as large."""

    def __init__(self, file: Path) -> None:
        table = pq.read_table(file, columns=["feature", "neighbour"])
        self._feature, self._neighbour = (column.to_numpy() for column in table.columns)

    def __getitem__(self, feature: int) -> list[int]:
        low, high = self._feature.searchsorted([feature, feature + 1])
        if low == high:
            raise KeyError(feature)
        return self._neighbour[low:high].tolist()

    def __iter__(self) -> Iterator[int]:
        return iter(dict.fromkeys(self._feature.tolist()))

    def __len__(self) -> int:
        return len(set(self._feature.tolist()))


def _counting(contexts: Iterator[Context], bar: Progress) -> Iterator[Context]:
    last = None
    for context in contexts:
        if context.feature != last:
            last = context.feature
            bar.advance()
        yield context


def windows_of(folder: Path, split: Split) -> Callable[[Sequence[int]], dict[int, list[Context]]]:
    """The contexts of a split of each feature, from the stage's folder."""
    from autointerp.activations.contexts import read_contexts

    def read(features: Sequence[int]) -> dict[int, list[Context]]:
        contexts = read_contexts(folder / "contexts.parquet", features)
        return {feature: [c for c in contexts.get(feature, []) if c.split == split] for feature in features}

    return read


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    features = sizes.features or 0
    return Amount(features, "features", guess=1e-2, shards=len(feature_shards(range(features), PART)))


STAGE = Stage(
    "contexts",
    "windows in which each feature fires or is silent, and hard negatives; train and test share no document",
    uses,
    work,
    tables=("contexts",),
    resumable=True,
    amount=amount,
)
