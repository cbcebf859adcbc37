"""How far two judges agree: on the same answers (kappa), and on which features are explained well (correlations)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from autointerp.stats.correlation import pearson
from autointerp.stats.student import NORMAL


def kappa(a: ArrayLike, b: ArrayLike) -> float | None:
    """Cohen's kappa (1960) of two binary answers [n]: agreement above that of judges who say Yes as often.

    None where there is no answer, or both always give the same one.
    """
    x, y = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if x.shape != y.shape:
        raise ValueError(f"{x.shape} answers against {y.shape}: not pairs")
    if not x.size:
        return None
    expected = x.mean() * y.mean() + (1 - x.mean()) * (1 - y.mean())
    return float((np.mean(x == y) - expected) / (1 - expected)) if expected < 1 else None


def spearman(a: ArrayLike, b: ArrayLike) -> float | None:
    """Pearson's correlation of the ranks, ties in the middle; None where either is constant."""
    return pearson(_ranks(a), _ranks(b))


def correlation_interval(value: float | None, n: int) -> tuple[float, float] | None:
    """A 95 % interval of a correlation over `n` independent pairs, by Fisher's z (1921); None for fewer than four."""
    if value is None or n < 4:
        return None
    z, half = math.atanh(min(max(value, -1 + 1e-12), 1 - 1e-12)), NORMAL / math.sqrt(n - 3)
    return math.tanh(z - half), math.tanh(z + half)


def top_share(evidence: ArrayLike, share: float, rng: np.random.Generator) -> np.ndarray:
    """Which of the examples [n] are among the `share` with the most evidence; `rng` chooses among equal ones.

    Judges whose probabilities are not calibrated agree or not at a threshold that suits each.
    """
    values = np.asarray(evidence, dtype=float)
    most = np.lexsort((rng.random(values.size), values))[::-1]
    chosen = np.zeros(values.shape, bool)
    chosen[most[: round(share * values.size)]] = True
    return chosen


def _ranks(values: ArrayLike) -> np.ndarray:
    _, place, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[place]
