"""Means over features with their intervals, and the summary of a features table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autointerp.stats import by_habit, mean_interval, shared_interval
from autointerp.tables import compute

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

STATUSES = ("ok", "dead", "too_rare", "failed")
CEILINGS = ("lexical", "lexical_shown", "position", "constant")  # scorers that read no explanation
LENT_BY = "lent_by_"  # columns of scores.parquet: which feature lent a control an explanation, the first, the second …
SAME_SCALE = 0.1  # apart at most are the chances of a scorer and of a ceiling that it is measured against


@dataclass(frozen=True)
class Mean:
    """A mean over features with its 95 % interval; None of too few."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class ScorerSummary:
    """One scorer over all features asked for."""

    scorer: str
    mean: Mean  # over the features that have a value
    asked: int  # features asked for
    as_chance: float | None  # the mean over all of them, those without a value counted as chance
    chance: float | None  # mean value of a judge who knows nothing
    corrected: Mean  # against each feature's chance: 0 at chance, 1 at best
    control: Mean  # the same scorer told another feature's explanation
    difference: Mean  # paired: of the features that have both
    yes_rate: float | None  # of the judge
    ece: float | None
    quantiles: list[float | None]  # mean value of each quantile of activation, weakest first
    n_unscored: int
    n_scored: int

    @property
    def doubt(self) -> str | None:
        """What is wrong with a judge that answers nearly everything alike."""
        return None if self.yes_rate is None else by_habit(self.yes_rate)

    def on_my_scale(self, ceilings: Sequence[ScorerSummary]) -> list[ScorerSummary]:
        """Those that have a mean and this scorer's chance: no average precision stands beside a correlation."""
        told, mine = [c for c in ceilings if c.mean.n], self.chance
        return [c for c in told if mine is None or c.chance is None or abs(c.chance - mine) <= SAME_SCALE]


@dataclass(frozen=True)
class Summary:
    n: int
    statuses: dict[str, int]  # those that occur, in the order of STATUSES
    scorers: list[ScorerSummary]
    ceilings: list[ScorerSummary]  # what reads no explanation, on the same features


def scorers_of(features: pa.Table) -> list[str]:
    """Names of the scorers that read explanations; of all where there is none."""
    known = all_scorers_of(features)
    return [name for name in known if name not in CEILINGS] or known


def all_scorers_of(features: pa.Table) -> list[str]:
    """Names of the scorers: the columns that have `_low` and `_high` beside them."""
    names = features.column_names
    return [name for name in names if f"{name}_low" in names and f"{name}_high" in names]


def numbers(table: pa.Table, column: str) -> np.ndarray:
    """A column as float64 [n], NaN where it is missing or there is no such column."""
    import numpy as np

    if column not in table.column_names:
        return np.full(len(table), np.nan)
    values = compute().cast(table[column], "float64")
    parts = [_floats(chunk) for chunk in getattr(values, "chunks", [values])]
    return np.concatenate(parts) if parts else np.zeros(0)


def _floats(array: pa.Array) -> np.ndarray:
    """From Arrow's own memory: to_numpy would import pandas, and lists take a hundred times as long."""
    import numpy as np

    if not len(array):
        return np.zeros(0)
    valid, data = array.buffers()
    place = slice(array.offset, array.offset + len(array))
    values = np.frombuffer(data, np.float64, array.offset + len(array))[place].copy()
    if valid is not None and array.null_count:
        values[~np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[place].astype(bool)] = np.nan
    return values


def lenders_of(table: pa.Table, before: str = "") -> np.ndarray:
    """The features whose explanations a control lent, [n, w], NaN for none; `before` are the columns' first letters.
    [n, 0] of a table that does not tell."""
    import numpy as np

    names = [name for name in table.column_names if name.startswith(before + LENT_BY)]
    return np.stack([np.zeros(len(table)), *(numbers(table, name) for name in names)], axis=1)[:, 1:]


def mean_of(values: np.ndarray, most: float = 1.0, shared: np.ndarray | None = None) -> Mean:
    """Mean of `values` [n], NaN left out, with its `stats.mean_interval`, or with the `stats.shared_interval` of values
    that rest on what others rest on too, [n, w]. The interval ends at `most` where all values do."""
    import numpy as np

    known = ~np.isnan(values)
    values = values[known]
    low, high = (mean_interval(values) if shared is None else shared_interval(values, shared[known])) or (None, None)
    high = min(high, most) if high is not None and values.max() <= most else high
    return Mean(float(values.mean()) if len(values) else None, low, high, len(values))


def summarise(features: pa.Table) -> Summary:
    counts = {row["values"]: row["counts"] for row in features["status"].value_counts().to_pylist()}
    shown = scorers_of(features)
    beside = [name for name in all_scorers_of(features) if name not in shown]
    return Summary(
        len(features),
        {s: counts[s] for s in STATUSES if counts.get(s)},
        [_summary(features, scorer) for scorer in shown],
        [_summary(features, scorer) for scorer in beside],
    )


def _summary(features: pa.Table, scorer: str) -> ScorerSummary:
    import numpy as np

    def column(suffix: str) -> np.ndarray:
        return numbers(features, f"{scorer}{suffix}")

    value, control, mean = column(""), column("_control"), mean_of(column(""))
    lenders, own = lenders_of(features, f"{scorer}_"), numbers(features, "feature")
    chance = mean_of(column("_chance")).value
    of_quantile = re.compile(rf"{re.escape(scorer)}_q(\d+)")  # one of them may have no column
    found = [int(match[1]) for name in features.column_names if (match := of_quantile.fullmatch(name))]
    quantiles = [mean_of(column(f"_q{number}")).value for number in range(1, max(found, default=0) + 1)]
    without = len(features) - mean.n
    unscored, scored = (int(np.nansum(column(f"_n_{n}"))) for n in ("unscored", "scored"))
    return ScorerSummary(
        scorer,
        mean,
        len(features),
        None if chance is None or mean.value is None else (mean.value * mean.n + chance * without) / len(features),
        chance,
        mean_of(column("_corrected")),
        mean_of(control, shared=lenders),
        mean_of(value - control, 2.0, np.column_stack([own, lenders])),
        mean_of(column("_yes_rate")).value,
        mean_of(column("_ece")).value,
        quantiles,
        unscored,
        scored,
    )


def bounds(*values: Any) -> tuple[float, float]:
    """What holds all values: 0 … 1 where they lie there, else −1 … 1, else as far as they go."""
    import numpy as np

    low = min((float(np.nanmin(v)) for v in values if not np.isnan(v).all()), default=0.0)
    high = max((float(np.nanmax(v)) for v in values if not np.isnan(v).all()), default=1.0)
    if high <= 1:
        return (0.0, 1.0) if low >= 0 else (min(low, -1.0), 1.0)
    return min(low, 0.0), high


def ranges_of(features: pa.Table) -> dict[str, tuple[float, float]]:
    """Of each scorer what holds its values and its control's."""
    return {s: bounds(numbers(features, s), numbers(features, f"{s}_control")) for s in scorers_of(features)}
