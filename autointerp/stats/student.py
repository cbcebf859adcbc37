"""Quantiles of Student's t, and the variance over documents that the intervals share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVEL = 0.95
NORMAL = NormalDist().inv_cdf((1 + LEVEL) / 2)
LEAST_DOCUMENTS = 4  # that more examples than these share: of 3, t is 4.3, and the interval goes from 0 to 1
_NOTHING = 1e-20  # of variance: rounding


@dataclass(frozen=True, slots=True)
class Spread:
    """How uncertain a statistic of examples in strata is. With each example its own document, the last two are 1."""

    variance: float
    independent: float  # examples that tell as much as those of a stratum, of the one where these are fewest
    t: float  # Student's quantile of as many degrees as the stratum in fewest documents has of them, less one
    each: float  # examples of a stratum in a document, of the one where these are most
    upper: float  # t over that of as many documents as examples


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


def spread(influence: Floats, strata: NDArray[np.int64], documents: Sequence[object] | None) -> Spread | None:
    """Of a statistic, from each example's influence on it and the place of its stratum, from 0 [n].

    1. Influences are centred in each stratum, for how many examples it has is our choice and not chance. Those of one
       document are added before they are squared: its examples are not independent.
    2. A centred stratum of one document adds up to 0, so each takes the correction G / (G − 1), where G is its number
       of documents. Those that hold m_1 … m_k examples count as G = (Σ m)² / Σ m² (Kish 1965), which makes the
       correction exact for independent examples, and for documents of one size.
    3. The stratum's variance over that of independent examples (Kish's design effect) is how many of them tell as
       much as one such: between 1 and the Σ m / G of a document, and all of these where no two examples differ.

    Without `documents` each example is its own. None where a stratum lies in fewer than two documents (counted as in
    2), or in fewer than `LEAST_DOCUMENTS` and not one for each of its examples.
    """
    if documents is not None and len(documents) != len(influence):
        raise ValueError(f"{len(documents)} documents for {len(influence)} examples")
    at = np.arange(len(influence)) if documents is None else places(documents)
    total, sizes = np.zeros(int(at.max()) + 1), np.bincount(strata).tolist()
    held: list[float] = []
    independent: list[float] = []
    for stratum, size in enumerate(sizes):
        members = strata == stratum
        shared = np.bincount(at[members])
        held.append(size * size / float(shared @ shared))
        if round(held[-1]) < max(min(LEAST_DOCUMENTS, size), 2):
            return None
        own = influence[members]
        own = (own - own.mean()) * math.sqrt(held[-1] / (held[-1] - 1))
        sums = np.bincount(at[members], weights=own, minlength=len(total))
        alone = float(own @ own)
        effect = float(sums @ sums) / alone if alone > _NOTHING else math.inf
        independent.append(size / min(max(effect, 1.0), size / held[-1]))
        total += sums
    t = student_t(round(min(held)) - 1)
    each = max(size / count for size, count in zip(sizes, held))
    return Spread(float(total @ total), min(independent), t, each, t / student_t(min(sizes) - 1))
