"""Stage near: of each explained feature all others that are near it by decoder cosine.

They lend it no explanation, and their effects do not stand beside its own.

1. `directions` keeps the few nearest latents of each feature, for its windows. In a crowd of near-duplicates there are
   more than these.
2. `near.bin` holds the numbers of all that are near, feature after feature; `ends.npy` how many there are up to each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from autointerp.config import Config
from autointerp.engine import models
from autointerp.engine.estimate import Amount, Sizes
from autointerp.engine.stage import Job, Stage, Use
from autointerp.stages.select import ready

NEAR = 0.3  # cosine from which one counts as near: the nearest of thousands of random directions are below it


def uses(config: Config) -> Iterator[Use]:
    yield Use("near", ("sae", "select"))


def work(job: Job) -> None:
    from autointerp.composites.neighbours import all_within

    features, ends = ready(job.inputs["select"]), [0]
    sae = models.open_sae(job.session, job.inputs["sae"])
    with open(job.folder / "near.bin", "wb") as file:
        for _, others in all_within(sae.W_dec, NEAR, features, device=models.device(job.session)):
            file.write(others.numpy().astype(np.int64).tobytes())
            ends.append(ends[-1] + len(others))
    np.save(job.folder / "features.npy", np.array(features, np.int64))
    np.save(job.folder / "ends.npy", np.array(ends, np.int64))
    job.facts |= {"features": len(features), "pairs": ends[-1] // 2}


class Near(Mapping[int, list[int]]):
    """Feature -> those that are near it, read from the stage's folder when they are asked for."""

    def __init__(self, folder: Path) -> None:
        features, ends = np.load(folder / "features.npy").tolist(), np.load(folder / "ends.npy").tolist()
        self._bounds = dict(zip(features, pairwise(ends)))
        self._others = np.memmap(folder / "near.bin", np.int64, "r") if ends[-1] else np.zeros(0, np.int64)

    def __getitem__(self, feature: int) -> list[int]:
        start, end = self._bounds[feature]
        return self._others[start:end].tolist()

    def __iter__(self) -> Iterator[int]:
        return iter(self._bounds)

    def __len__(self) -> int:
        return len(self._bounds)


def amount(config: Config, use: Use, sizes: Sizes) -> Amount:
    """Every feature is compared with every other."""
    return Amount((sizes.features or 0) ** 2, "pairs of features", f"width {sizes.width}", guess=1e-7)


STAGE = Stage(
    "near",
    "of each explained feature the others near it by decoder cosine: controls and output-side scorers leave them out",
    uses,
    work,
    apart=True,
    amount=amount,
)
