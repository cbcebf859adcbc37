"""Means over features with their intervals, and the summary of a features table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autointerp.stats import Paired, paired_difference

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

STATUSES = ("ok", "dead", "too_rare", "failed")
MANY = 5_000  # features from which on the bootstrap's interval is that of the normal distribution to two digits


@dataclass(frozen=True)
class Mean:
    """A mean over features with its 95 % interval; None of too few."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class ScorerSummary:
    scorer: str
    mean: Mean
    control: Mean  # the same scorer told another feature's explanation
    difference: Mean  # paired: of the features that have both
    n_unscored: int
    n_scored: int


@dataclass(frozen=True)
class Summary:
    n: int
    statuses: dict[str, int]  # those that occur, in the order of STATUSES
    scorers: list[ScorerSummary]


def scorers_of(features: pa.Table) -> list[str]:
    """Names of the scorers: the columns that have `_low` and `_high` beside them."""
    names = features.column_names
    return [name for name in names if f"{name}_low" in names and f"{name}_high" in names]


def numbers(table: pa.Table, column: str) -> np.ndarray:
    """A column as float64 [n], NaN where it is missing or there is no such column."""
    import numpy as np

    if column not in table.column_names:
        return np.full(len(table), np.nan)
    return np.array(table[column].to_pylist(), np.float64)  # to_numpy would import pandas


def mean_interval(values: np.ndarray) -> Mean:
    """Mean of `values` [n], NaN left out, with its 95 % interval.

    The interval is the 2.5 and 97.5 % points of bootstrapped means; of more than `MANY` values the normal
    distribution's, 1.96 standard errors to each side, which needs no resampling.
    """
    import numpy as np

    values = values[~np.isnan(values)]
    n = len(values)
    if n == 0:
        return Mean(None, None, None, 0)
    mean = float(values.mean())
    if n == 1:
        return Mean(mean, None, None, 1)
    if n > MANY:
        return Mean(mean, *_normal(values), n)
    resamples = max(400, min(2000, 1_000_000 // n))  # the table shall not wait for a third digit
    drawn = np.random.default_rng(0).integers(0, n, (resamples, n), np.int32)
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return Mean(mean, float(low), float(high), n)


def paired(a: np.ndarray, b: np.ndarray) -> Paired:
    """Mean of a − b [n] over the features that have both, as `stats.paired_difference`; of many without resampling."""
    import numpy as np

    d = a - b
    both = d[~np.isnan(d)]
    if len(both) <= MANY:
        return paired_difference(a.tolist(), b.tolist())
    low, high = _normal(both)
    ahead, behind = int((both > 0).sum()), int((both < 0).sum())
    return Paired(float(both.mean()), low, high, ahead, behind, len(both), len(a) - len(both))


def _normal(values: np.ndarray) -> tuple[float, float]:
    mean, error = float(values.mean()), 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean - error, mean + error


def summarise(features: pa.Table) -> Summary:
    import numpy as np

    counts = {row["values"]: row["counts"] for row in features["status"].value_counts().to_pylist()}
    scorers = []
    for scorer in scorers_of(features):
        value, control = numbers(features, scorer), numbers(features, f"{scorer}_control")
        unscored, scored = (int(np.nansum(numbers(features, f"{scorer}_n_{n}"))) for n in ("unscored", "scored"))
        mean, chance, difference = (mean_interval(v) for v in (value, control, value - control))
        scorers.append(ScorerSummary(scorer, mean, chance, difference, unscored, scored))
    return Summary(len(features), {s: counts[s] for s in STATUSES if counts.get(s)}, scorers)


def bounds(*values: Any) -> tuple[float, float]:
    """What holds all values: 0 … 1 where they lie there, else −1 … 1, else as far as they go."""
    import numpy as np

    low = min((float(np.nanmin(v)) for v in values if not np.isnan(v).all()), default=0.0)
    high = max((float(np.nanmax(v)) for v in values if not np.isnan(v).all()), default=1.0)
    if high <= 1:
        return (0.0, 1.0) if low >= 0 else (min(low, -1.0), 1.0)
    return min(low, 0.0), high
