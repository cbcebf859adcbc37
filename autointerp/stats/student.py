"""Quantiles of Student's t, and the sums over documents that the intervals share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVEL = 0.95
RESAMPLES = 1000  # of a bootstrap, where one is drawn
NORMAL = NormalDist().inv_cdf((1 + LEVEL) / 2)


@cache
def student_t(df: int, probability: float = (1 + LEVEL) / 2) -> float:
    """The quantile of Student's t at `probability` (above one half) with `df` ≥ 1 degrees of freedom.

    Hill's algorithm 396 (Communications of the ACM 13, 1970): six digits from 3 degrees on, exact for 1 and 2.
    """
    if df < 1:
        raise ValueError(f"{df} degrees of freedom: at least one is needed")
    tail = 2 * (1 - probability)
    if df == 1:
        return math.tan(math.pi * (probability - 0.5))
    if df == 2:
        return math.sqrt(2 / (tail * (2 - tail)) - 2)
    a = 1 / (df - 0.5)
    b = 48 / a**2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * df
    y = (d * tail) ** (2 / df)
    if y > 0.05 + a:
        x = NormalDist().inv_cdf(tail / 2)
        y = x * x
        if df < 5:
            c += 0.3 * (df - 4.5) * (x + 0.6)
        c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = math.expm1(a * y * y)
    else:
        y = ((1 / (((df + 6) / (df * y) - 0.089 * d - 0.822) * (df + 2) * 3) + 0.5 / (df + 4)) * y - 1) * (df + 1) / (
            df + 2
        ) + 1 / y
    return math.sqrt(df * y)


def places(groups: Sequence[object]) -> NDArray[np.int64]:
    """Each member's group as a number from 0, in order of appearance."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], np.int64)


def clustered_variance(influence: Floats, documents: Sequence[object] | None) -> float:
    """Variance of a statistic from its examples' influences [n], those of one document added before they are squared.

    Without `documents` every example is its own.
    """
    if documents is None:
        return float(influence @ influence)
    if len(documents) != len(influence):
        raise ValueError(f"{len(documents)} documents for {len(influence)} examples")
    sums = np.bincount(places(documents), weights=influence)
    return float(sums @ sums)
