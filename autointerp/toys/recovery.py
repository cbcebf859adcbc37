"""How much of a toy world an SAE has learned, by the world's own features: never by the composite check.

All cosines are of unit rows. A latent only ever writes its decoder row times a positive activation, so a feature
is recovered by a *positive* cosine; the mean of matched |cosines| (MCC) alone ignores the sign, as is usual.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["feature", "composite", "other", "dead"]


@dataclass(frozen=True)
class Bounds:
    """Where a latent counts as a feature or as a composite; the defaults are those of the planted dictionaries.

    feature: least cosine with a true feature. composite: least R² of the best positive sum of two or three true
    features: noise of norm .4, the most that is planted, leaves .86. share: of the smallest coefficient in the sum of
    the smallest and the largest: a ratio of 1 to 3, for orthogonal parts a cosine of .95 with the larger; below it
    the latent is a feature that is tilted a little. gain: R² that a third part must add.
    """

    feature: float = 0.9
    composite: float = 0.85
    share: float = 0.25
    gain: float = 0.05


@dataclass(frozen=True)
class Truth:
    """For each of n latents: its kind, and the true features it is made of, largest coefficient first."""

    kinds: tuple[Kind, ...]
    parts: tuple[tuple[int, ...], ...]  # one of a feature, two or three of a composite, else none
    near: tuple[frozenset[int], ...]  # per true feature: the living latents that have its direction

    def of_kind(self, kind: Kind) -> list[int]:
        return [latent for latent, own in enumerate(self.kinds) if own == kind]

    def detectable(self, latent: int) -> bool:
        """Whether each part of the composite `latent` is the direction of another latent."""
        return all(self.near[part] - {latent} for part in self.parts[latent])


def truth(decoder: np.ndarray, features: np.ndarray, alive: np.ndarray, bounds: Bounds | None = None) -> Truth:
    """What each row of `decoder` [n, d] is, given the world's `features` [k, d] and which rows are `alive` [n] bool.

    Of two sums that fit, that of fewer parts is taken. Raises AutointerpError for shapes that do not fit together.
    """
    import numpy as np

    bounds = bounds or Bounds()
    if decoder.shape[1] != features.shape[1] or alive.shape != (len(decoder),):
        raise AutointerpError(f"recovery: shapes {decoder.shape}, {features.shape}, {alive.shape} do not fit together")
    true = _unit(features)
    cosines = _unit(decoder) @ true.T
    close = (cosines >= bounds.feature) & alive[:, None]
    kinds: list[Kind] = []
    parts: list[tuple[int, ...]] = []
    for latent in range(len(decoder)):
        members = _sum(cosines[latent], true, bounds) if alive[latent] else ()
        if members:
            kinds.append("composite")
        elif close[latent].any():
            kinds.append("feature")
            members = (int(cosines[latent].argmax()),)
        else:
            kinds.append("other" if alive[latent] else "dead")
        parts.append(members)
    near = tuple(frozenset(np.nonzero(column)[0].tolist()) for column in close.T)
    return Truth(tuple(kinds), tuple(parts), near)


def _sum(cosines: np.ndarray, true: np.ndarray, bounds: Bounds) -> tuple[int, ...]:
    """The parts of the best sum that passes, () where none does: exact over the sixteen features nearest by cosine."""
    import numpy as np

    near = np.argsort(-cosines)[:16]
    near = near[cosines[near] > 0]
    best: tuple[int, ...] = ()
    least = bounds.composite
    for size in range(2, min(len(near), 3) + 1):
        subsets = near[np.array(list(combinations(range(len(near)), size)))]  # [s, size]
        rows, c = true[subsets], cosines[subsets]
        x = np.linalg.solve(rows @ rows.swapaxes(1, 2) + 1e-9 * np.eye(size), c[..., None])[..., 0]
        even = (x.min(1) > 0) & (x.min(1) >= bounds.share * (x.min(1) + x.max(1)))
        r2 = np.where(even, (x * c).sum(1), -np.inf)
        at = int(r2.argmax())
        if r2[at] >= least:
            best, least = tuple(int(i) for i in subsets[at][np.argsort(-x[at])]), r2[at] + bounds.gain
    return best


@dataclass(frozen=True)
class Recovery:
    """How well the living latents cover the features.

    mcc: mean |cosine| over the one-to-one matching that maximises it (Hungarian), with 0 for a feature left over.
    mmcs: mean over features of the highest cosine with any latent. recovered: features with a matched cosine of
    at least `Bounds.feature`. f1: of recovered / features and recovered / living latents, so that copies and
    composites count against it.
    """

    mcc: float
    mmcs: float
    recovered: int
    f1: float


def recovery(decoder: np.ndarray, features: np.ndarray, alive: np.ndarray, bounds: Bounds | None = None) -> Recovery:
    """`decoder` [n, d], `features` [k, d], `alive` [n] bool; without a living latent all is 0."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    bounds = bounds or Bounds()
    cosines = _unit(decoder[alive]) @ _unit(features).T
    if not len(cosines):
        return Recovery(0.0, 0.0, 0, 0.0)
    matched = linear_sum_assignment(np.abs(cosines), maximize=True)
    recovered = int((cosines[matched] >= bounds.feature).sum())
    return Recovery(
        mcc=float(np.abs(cosines[matched]).sum() / len(features)),
        mmcs=float(cosines.max(0).mean()),
        recovered=recovered,
        f1=2 * recovered / (len(features) + len(cosines)),
    )


@dataclass(frozen=True)
class Agreement:
    """Counts, so that they add up over seeds: `+`. A ratio without a denominator is None."""

    flagged: int = 0
    right: int = 0  # of the flagged, true composites
    composites: int = 0
    found: int = 0
    detectable: int = 0  # composites whose parts are all latents
    found_detectable: int = 0

    def __add__(self, other: Agreement) -> Agreement:
        return replace(self, **{name: value + getattr(other, name) for name, value in vars(self).items()})

    @property
    def precision(self) -> float | None:
        return self.right / self.flagged if self.flagged else None

    @property
    def recall(self) -> float | None:
        """Of the detectable."""
        return self.found_detectable / self.detectable if self.detectable else None

    @property
    def recall_all(self) -> float | None:
        return self.found / self.composites if self.composites else None


def agreement(known: Truth, flagged: Collection[int], copy_of: Mapping[int, int]) -> Agreement:
    """Latents that a check flagged, against the truth.

    `copy_of` names for each duplicate the latent it copies: a composite is found where that one is flagged.
    """
    composites = known.of_kind("composite")
    detectable = [latent for latent in composites if known.detectable(latent)]
    seen = {latent for latent in composites if latent in flagged or copy_of.get(latent) in flagged}
    return Agreement(
        flagged=len(flagged),
        right=len(set(flagged) & set(composites)),
        composites=len(composites),
        found=len(seen),
        detectable=len(detectable),
        found_detectable=len(seen.intersection(detectable)),
    )


def _unit(rows: np.ndarray) -> np.ndarray:
    import numpy as np

    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
