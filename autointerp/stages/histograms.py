"""Stage histograms: how strongly each feature fires, over all its firings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from autointerp.artifacts import Firings
from autointerp.config import Config
from autointerp.engine.estimate import Amount, Sizes
from autointerp.engine.stage import Job, Stage, Use
from autointerp.stages.select import ready
from autointerp.tables import write_stream

BINS = 40


def uses(config: Config) -> Iterator[Use]:
    yield Use("histograms", ("harvest", "select"))


def work(job: Job) -> None:
    rows = counted(Firings(job.inputs["harvest"]), ready(job.inputs["select"]))
    write_stream(job.folder / "histograms.parquet", "histograms", rows, group=1 << 12)


def counted(firings: Firings, features: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Rows of histograms.parquet. Firings of a few features are in memory at a time."""
    import numpy as np

    from autointerp.activations.contexts import chunks

    for chunk in chunks(list(features), firings.counts):
        for feature, (_, activation) in firings.of(chunk).items():
            highest = float(activation.max())
            counts = np.histogram(activation, BINS, (0.0, highest))[0].tolist()
            yield {"feature": feature, "highest": highest, "counts": counts}


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    return Amount(sizes.features or 0, "features", guess=1e-3)


STAGE = Stage(
    "histograms",
    "how strongly each feature fires, over all its firings",
    uses,
    work,
    tables=("histograms",),
    apart=True,
    amount=amount,
)
