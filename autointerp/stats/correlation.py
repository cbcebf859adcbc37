"""Predicted against true activations: Pearson and cosine, over the tokens of many sequences pooled."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autointerp.stats.student import NORMAL, places, spread

Floats = NDArray[np.float64]
LEAST_SEQUENCES = 10  # fewer give no interval: their spread says too little of the truth's
_UNSEEN = 1.3  # weight of an unseen miss in the lower limit, see `pooled_pearson_interval`
_NEAR_ONE = 1 - 1e-6


def pearson(x: ArrayLike, y: ArrayLike) -> float | None:
    """None when either is constant or there are fewer than two values."""
    value = float(_pearson_of_sums(_sums([x], [y]))[0])
    return None if math.isnan(value) else value


def cosine(x: ArrayLike, y: ArrayLike) -> float | None:
    """None when either is all zero."""
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(a @ b / norms, -1, 1)) if norms else None


def pooled_pearson_interval(
    truths: Sequence[ArrayLike],
    predictions: Sequence[ArrayLike],
    *,
    strata: Sequence[object],
    documents: Sequence[object] | None = None,
) -> tuple[float, float] | None:
    """A 95 % interval of the Pearson correlation over all tokens pooled, on many sequences of these strata.

    1. Each sequence is left out in turn; the deviations of Fisher's z are centred in each stratum (how many
       sequences fire is our choice, not chance) and added within a document: tokens of one are not independent.
    2. The lower limit takes Student's t, with as many degrees as the smallest stratum has documents less one. A
       variance is added to it for what was not seen: the drop in z that one further document of sequences would
       cause, true as the strongest and predicted as silent ones.
    3. The upper limit takes the normal quantile, wider by as much as t is for having fewer documents than sequences.

    The interval always holds the value. None below `LEAST_SEQUENCES` sequences, where no correlation is defined, and
    where a stratum has one sequence or lies in too few documents to say (`student.spread`).
    """
    if len(truths) < LEAST_SEQUENCES:
        return None
    sums, place = _sums(truths, predictions), places(strata)
    total = sums.sum(axis=0)
    value = float(_pearson_of_sums(total[None])[0])
    without = _pearson_of_sums(total - sums)
    if math.isnan(value) or np.isnan(without).any():
        return None
    z = math.atanh(min(max(value, -_NEAR_ONE), _NEAR_ONE))
    deviation = np.arctanh(np.clip(without, -_NEAR_ONE, _NEAR_ONE))
    sizes = np.bincount(place)
    told = spread(deviation * ((sizes - 1) / sizes)[place], place, documents)
    if told is None:
        return None
    drop = max(z - float(np.arctanh(_pearson_of_sums((total + told.each * _miss(sums))[None]))[0]), 0.0)
    wider = math.sqrt(told.variance + _UNSEEN * ((1.02 - value**2) * drop) ** 2)
    low = math.tanh(z - told.t * wider)
    high = math.tanh(z + told.upper * NORMAL * math.sqrt(told.variance))
    return min(low, value), max(high, value)


def _miss(sums: Floats) -> Floats:
    """The sums [6] of a sequence as true as the strongest, predicted as the quieter half of them are in the mean."""
    n, x, _, xx, _, _ = sums[np.argmax(sums[:, 3])]
    quiet = sums[np.argsort(sums[:, 3])[: (len(sums) + 1) // 2]].mean(axis=0)
    y, yy = quiet[2] * n / quiet[0], quiet[4] * n / quiet[0]
    return np.array([n, x, y, xx, yy, x * y / n])


def _sums(xs: Sequence[ArrayLike], ys: Sequence[ArrayLike]) -> Floats:
    """[sequences, 6]: n, Σx, Σy, Σx², Σy², Σxy. Centred on the pooled means and scaled first, for precision's sake."""
    a, b = [np.asarray(x, dtype=float) for x in xs], [np.asarray(y, dtype=float) for y in ys]
    if [x.shape for x in a] != [y.shape for y in b]:
        raise ValueError("truths and predictions are not of one length")
    a, b = _standard(a), _standard(b)
    return np.array([(len(x), x.sum(), y.sum(), x @ x, y @ y, x @ y) for x, y in zip(a, b)])


def _standard(parts: list[Floats]) -> list[Floats]:
    whole = np.concatenate(parts)
    spread = np.ptp(whole) if whole.size else 0.0
    if spread == 0:  # exactly, where the mean's rounding would leave a residue
        return [np.zeros_like(part) for part in parts]
    return [(part - whole.mean()) / spread for part in parts]


def _pearson_of_sums(sums: Floats) -> Floats:
    n, x, y, xx, yy, xy = sums.T
    var_x, var_y = n * xx - x * x, n * yy - y * y
    defined = (var_x > 1e-12 * n * n) & (var_y > 1e-12 * n * n)
    scale = np.sqrt(np.where(defined, var_x, 1.0) * np.where(defined, var_y, 1.0))
    return np.where(defined, np.clip((n * xy - x * y) / scale, -1, 1), np.nan)
