"""Stage contexts: windows in which each feature fires, in which it does not, and hard negatives (near misses)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from autointerp.artifacts import Corpus, Firings
from autointerp.config import Config
from autointerp.engine import models
from autointerp.engine.estimate import Amount, Sizes
from autointerp.engine.stage import Job, Stage, Use
from autointerp.progress import progress
from autointerp.records import Context
from autointerp.stages.select import ready

if TYPE_CHECKING:
    from autointerp.progress import Progress


def uses(config: Config) -> Iterator[Use]:
    section = config.contexts.model_dump() | {"seed": config.seed}
    yield Use("contexts", ("corpus", "harvest", "select", "directions"), section)


def work(job: Job) -> None:
    from autointerp.activations.contexts import sample_contexts, write_contexts

    features = ready(job.inputs["select"])
    near: dict[int, list[int]] = {feature: [] for feature in features}
    table = pq.read_table(job.inputs["directions"] / "neighbours.parquet", columns=["feature", "neighbour"])
    for feature, neighbour in zip(*(column.to_pylist() for column in table.columns)):
        near[feature].append(neighbour)
    with progress("contexts", len(features), "features") as bar:
        contexts = sample_contexts(
            Corpus(job.inputs["corpus"]),
            Firings(job.inputs["harvest"]),
            features,
            near,
            models.token_strings(job.session),
            job.config.contexts,
            job.config.seed,
        )
        write_contexts(_counting(contexts, bar), job.folder / "contexts.parquet")


def _counting(contexts: Iterator[Context], bar: Progress) -> Iterator[Context]:
    last = None
    for context in contexts:
        if context.feature != last:
            last = context.feature
            bar.advance()
        yield context


def held_out(folder: Path) -> Callable[[Sequence[int]], dict[int, list[Context]]]:
    """The contexts of the test split of each feature, from the stage's folder."""
    from autointerp.activations.contexts import read_contexts

    def read(features: Sequence[int]) -> dict[int, list[Context]]:
        contexts = read_contexts(folder / "contexts.parquet", features)
        return {feature: [c for c in contexts.get(feature, []) if c.split == "test"] for feature in features}

    return read


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    return Amount(sizes.features or 0, "features", guess=1e-2)


STAGE = Stage(
    "contexts",
    "windows in which each feature fires or is silent, and hard negatives; train and test share no document",
    uses,
    work,
    tables=("contexts",),
    amount=amount,
)
