"""p-values of decompositions: how good a fit chance alone would give, in closed form.

The cosine² of a fixed direction with the span of k random ones in d dimensions is Beta(k/2, (d − k)/2).
Over all k-subsets of N candidates, with all k coefficients positive (one sign pattern in 2^k):
p ≤ 1 − (1 − P(Beta > R²) / 2^k)^C(N, k). For k = 1 this is exact for independent directions.

Real decoders are not isotropic, so the same law is used a second time after the map that makes the
dictionary's second moment isotropic (`maps.whitener`): what chance gives among directions of the same
covariance. And a third time for the last term alone, given the others: the conditional null, whose d
is smaller by the terms given.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


ROUNDING = 1e-5  # of an R² from products in float32


def beta_tail(x: np.ndarray, k: int, d: int) -> np.ndarray:
    """P(Beta(k/2, (d − k)/2) > x), [n] -> [n]; 1 where d ≤ k: k directions then span everything."""
    import numpy as np

    x = np.clip(np.asarray(x, dtype=np.float64), 0.0, 1.0)
    if d <= k:
        return np.ones_like(x)
    a, b = k / 2, (d - k) / 2
    if k == 2:
        return (1 - x) ** b
    with np.errstate(divide="ignore"):
        log_front = a * np.log(x) + b * np.log1p(-x) - math.lgamma(a) - math.lgamma(b) + math.lgamma(a + b)
    front = np.exp(log_front)
    near_zero = x < (a + 1) / (a + b + 2)  # where each side's continued fraction converges fast
    lower = front * _fraction(np.where(near_zero, x, 0.0), a, b) / a
    upper = front * _fraction(np.where(near_zero, 0.0, 1 - x), b, a) / b
    return np.clip(np.where(near_zero, 1 - lower, upper), 0.0, 1.0)


def _fraction(x: np.ndarray, a: float, b: float, steps: int = 200) -> np.ndarray:
    """The continued fraction of the incomplete beta function (Abramowitz & Stegun 26.5.8), from its end."""
    import numpy as np

    value = np.ones_like(x)
    for step in range(steps, 0, -1):
        half = step // 2
        if step % 2:
            term = -(a + half) * (a + b + half) / ((a + step - 1) * (a + step))
        else:
            term = half * (b - half) / ((a + step - 1) * (a + step))
        value = 1 + term * x / value
    return 1 / value


def p_random(r2: np.ndarray, k: int, d: int, candidates: int) -> np.ndarray:
    """P that the best non-negative combination of k of `candidates` random directions reaches R² = `r2`, [n] -> [n]."""
    import numpy as np

    subsets = float(math.comb(candidates, k))
    with np.errstate(divide="ignore"):
        return -np.expm1(subsets * np.log1p(-beta_tail(r2, k, d) / 2**k))


def threshold(p: float, k: int, d: int, candidates: int) -> float:
    """The R² that chance reaches with probability `p`: the inverse of `p_random`; infinite where no R² is that
    unlikely, or only one that rounding to float32 makes of a lower one."""
    import numpy as np

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if p_random(np.array([middle]), k, d, candidates)[0] > p else (low, middle)
    return high if high < 1 - ROUNDING else math.inf


def random_directions(n: int, d: int, seed: int, L: torch.Tensor | None = None) -> torch.Tensor:
    """[n, d] unit rows, uniform on the sphere; with L [d, d] of `maps.whitener`, Gaussian of the moment LLᵀ: those are
    the covariance-matched surrogate."""
    import torch

    from autointerp.composites.neighbours import unit

    rows = torch.empty(n, d)
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, n, 8192):
        normal = torch.randn(min(8192, n - start), d, generator=generator)
        rows[start : start + 8192] = unit(normal if L is None else normal @ L.T.float().cpu())
    return rows
