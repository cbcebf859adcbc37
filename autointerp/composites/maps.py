"""Maps of a dictionary's rows in which they are compared: without outlier dimensions, and whitened.

Linear relations between rows survive both. `Geometries` holds the rows in all three.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autointerp.composites.nulls import ROUNDING

if TYPE_CHECKING:
    import torch

    from autointerp.composites.neighbours import Rows

LEAST = 0.01  # shrinkage
DIMENSIONS = 16  # that must count in a spectrum
SPANNED = 0.75  # share of the dimensions below which rows are said to span fewer


@dataclass(frozen=True)
class Geometries:
    """The unit rows of a dictionary, and of two maps of it."""

    raw: Rows
    plain: Rows  # without outlier dimensions; `raw` where there are none
    white: Rows  # of the plain rows
    flat: torch.Tensor | None  # the two maps
    L: torch.Tensor
    dimensions: int  # of the white rows, see `whitening`
    mean: torch.Tensor  # [d] direction of the plain rows' mean

    @staticmethod
    def of(raw: Rows, living: torch.Tensor) -> Geometries:
        """The maps are those of the rows that are `living` [n]."""
        moment = Moment.of(raw, living)
        plain, flat = raw, flattener(moment)
        if flat is not None:
            plain = raw.mapped(flat)
            moment = Moment.of(plain, living)
        L, dimensions = whitening(moment)
        mean = moment.mean / moment.mean.norm().clamp_min(1e-12)
        return Geometries(raw, plain, plain.whitened(L), flat, L, round(dimensions), mean.float())

    def of_others(self, raw: Rows) -> Geometries:
        """Other rows by the same maps."""
        plain = raw if self.flat is None else raw.mapped(self.flat)
        return Geometries(raw, plain, plain.whitened(self.L), self.flat, self.L, self.dimensions, self.mean)

    def along_mean(self, block: int = 4096) -> torch.Tensor:
        """[n] how much of each plain row lies along their mean."""
        import torch

        along = torch.zeros(len(self.plain), device=self.plain.device)
        for start in range(0, len(along), block):
            along[start : start + block] = self.plain[start : start + block] @ self.mean
        return along


@dataclass(frozen=True)
class Moment:
    """Of unit rows: `second` [d, d] is mean zzᵀ in float64, `mean` [d] theirs, over `n` rows."""

    second: torch.Tensor
    mean: torch.Tensor
    n: int

    @staticmethod
    def of(Z: Rows | torch.Tensor, living: torch.Tensor | None = None, block: int = 4096) -> Moment:
        """Of the rows Z [n, d] that are `living` [n]."""
        import torch

        n, d = Z.shape if living is None else (int(living.sum()), Z.shape[1])
        second = torch.zeros(d, d, dtype=torch.float64, device=Z.device)
        total = torch.zeros(d, dtype=torch.float64, device=Z.device)
        for start in range(0, len(Z), block):
            rows = Z[start : start + block]
            if living is not None:
                rows = rows[living[start : start + block]]
            second += (rows.T @ rows).double()
            total += rows.double().sum(0)
        return Moment(second / max(n, 1), total / max(n, 1), n)

    def shrinkage(self) -> float:
        """The share δ of Ledoit and Wolf (2004) by which `second` is drawn towards I/d."""
        square, d = float((self.second**2).sum()), len(self.second)
        distance = max(square - 1 / d, 1e-12)  # ‖M − I/d‖² for trace 1
        return min(max((1 - square) / max(self.n, 1) / distance, 0.0), 1.0)

    def shrunk(self, by: float) -> torch.Tensor:
        import torch

        d = len(self.second)
        return (1 - by) * self.second + by / d * torch.eye(d, dtype=torch.float64, device=self.second.device)


def whitener(Z: Rows | torch.Tensor, living: torch.Tensor | None = None) -> torch.Tensor:
    """L [d, d] with z ↦ L⁻¹z making the second moment of the unit rows Z [n, d] isotropic; only `living` [n] count.

    The moment M = mean zzᵀ is not centred, so that the shared mean is one of its directions, and is
    shrunk to (1 − δ)M + δI/d with the δ of Ledoit and Wolf (2004), at least .01: few rows in many
    dimensions are left nearly as they are. Linear relations between rows survive the map exactly.
    """
    return whitening(Moment.of(Z, living))[0]


def whitening(moment: Moment) -> tuple[torch.Tensor, float]:
    """L of `whitener`, and how many dimensions are left: the participation ratio of the whitened moment. It is d but
    where the spectrum is so steep that the least shrinkage hides its end, and where as many rows as dimensions leave
    some of these empty: shrinkage stands for what few rows do not show."""
    import torch

    natural = moment.shrinkage()
    least = max(natural, LEAST)
    L = torch.linalg.cholesky(moment.shrunk(least))

    def counted(second: torch.Tensor) -> float:
        left = torch.linalg.solve_triangular(L, second, upper=False)
        left = torch.linalg.solve_triangular(L, left.T, upper=False)
        return float(left.trace() ** 2 / (left**2).sum().clamp_min(1e-300))

    dimensions = float(len(L)) if natural == least else counted(moment.shrunk(natural))
    if moment.n >= len(L):
        chance = 1 / counted(moment.second) - 1 / moment.n  # the mean cos² of two rows; beside itself a row has 1
        spanned = 1 / max(chance, 1e-12)
        dimensions = spanned if spanned < SPANNED * dimensions else dimensions
    return L, dimensions


def flattener(moment: Moment) -> torch.Tensor | None:
    """F [d, d], with which rows zF have no outlier dimensions, or None where z has none.

    A few dimensions can be so large that every row lies in them nearly, as in residual streams: then any two fit a
    third. The principal dimensions of the centred rows above a level are scaled down to it. The level is the
    highest at which `DIMENSIONS` of them count (the participation ratio of the spectrum), so a cone keeps its shape.
    """
    import torch

    covariance = moment.second - moment.mean[:, None] * moment.mean[None]
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(0)

    def counted(level: float) -> float:
        clipped = values.clamp_max(level)
        return float(clipped.sum() ** 2 / (clipped**2).sum().clamp_min(1e-300))

    if not len(values) or counted(float(values[-1])) >= DIMENSIONS or int((values > ROUNDING).sum()) < 2 * DIMENSIONS:
        return None
    low, high = 0.0, float(values[-1])
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if counted(middle) >= DIMENSIONS else (low, middle)
    scale = (low / values.clamp_min(low)).sqrt()
    return (vectors * scale) @ vectors.T
