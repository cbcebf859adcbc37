"""How well graded evidence ranks what is true above what is not: average precision and AUROC."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autointerp.stats.student import LEVEL, spread

_UNSEEN = 0.85  # weight of an unseen false positive in the lower limit, see `average_precision_interval`


def average_precision(truth: ArrayLike, score: ArrayLike) -> float | None:
    """Area under precision-recall as a step function, Σ (R_k − R_{k−1}) P_k over distinct thresholds.

    Equal scores form one threshold, so a judge that says the same of all gets the base rate. None without positives.
    """
    positive, negative, _ = _threshold_groups(truth, score)
    return None if positive.sum() == 0 else _grouped_ap(positive, negative)


def average_precision_chance(truth: ArrayLike, score: ArrayLike) -> float | None:
    """The mean of `average_precision` over all permutations of the labels, exactly. None without positives.

    With thresholds g of s_g examples, k_g examples at or above them, and P positives of n in all,

        E[AP] = Σ_g s_g / k_g · (1 / n + (k_g − 1) (P − 1) / (n (n − 1))),

    for positives at or above a threshold are hypergeometric. It is the base rate where all scores are equal and
    above it where they are graded: .561 for 12 of 24, .523 for 50 of 100. The examples must be exchangeable: where
    each true one has a false twin with the same score, the value is the base rate and lies below this chance.
    """
    positive, negative, _ = _threshold_groups(truth, score)
    size, n_positive = positive + negative, int(positive.sum())
    n = int(size.sum())
    if n_positive == 0:
        return None
    above = size.cumsum()
    both = (above - 1) * (n_positive - 1) / (n * max(n - 1, 1))
    return float((size / above * (1 / n + both)).sum())


def chance_corrected(value: float | None, chance: float | None) -> float | None:
    """(value − chance) / (1 − chance): 0 at chance, 1 at best, negative below chance; None where chance is 1.

    Of an average precision it is also nearly free of the bias of few examples: the mean is the population's
    (AP − base rate) / (1 − base rate).
    """
    if value is None or chance is None or chance >= 1:
        return None
    return (value - chance) / (1 - chance)


def auroc(truth: ArrayLike, score: ArrayLike) -> float | None:
    """P(a positive scores above a negative), ties counting half; ½ by chance. None when a class is missing."""
    positive, negative, _ = _threshold_groups(truth, score)
    pairs = positive.sum() * negative.sum()
    if pairs == 0:
        return None
    negatives_below = negative.sum() - negative.cumsum()
    return float((positive * (negatives_below + negative / 2)).sum() / pairs)


def average_precision_interval(
    truth: ArrayLike, score: ArrayLike, *, documents: Sequence[object] | None = None
) -> tuple[float, float] | None:
    """A 95 % interval of the average precision on many examples at this base rate.

    None when a class is missing, has one example, or lies in too few documents to say (`student.spread`).

    1. The infinitesimal jackknife gives each example's influence; influences of one document are added.
    2. Both limits are taken on the logit scale (Boyd, Eng and Page 2013).
    3. The lower limit starts from the value less its bias by `chance_corrected`. It takes Student's t with as many
       degrees as the class in fewer documents has of them less one, and a wider error: the drop D that a further silent
       example, ranked above all, would cause is added as a variance, for a false positive that has not been seen
       yet is what the value of few examples lacks.
    4. No sample shows an error rate that shows in none of its n examples: Clopper and Pearson's exact bound on it is
       p = 1 − .025^(1/n), n of the class that has fewer, and the lower limit is at most value · (1 − p). As examples
       count as many as are worth independent ones: of a judge without any error, who might be wrong about all windows
       of a document, as many as there are documents.
    5. The upper limit starts from the value and takes the normal quantile, wider by as much as t is for having fewer
       documents than examples. Near 1 the lower limit cannot miss, so the upper one takes both tails.

    The interval always holds the value. `benchmarks/coverage.py` measures how often it holds the truth.
    """
    positive, negative, group = _threshold_groups(truth, score)
    n_positive, n_negative = int(positive.sum()), int(negative.sum())
    if n_positive == 0 or n_negative == 0:
        return None
    n = n_positive + n_negative
    base = n_positive / n
    value = _grouped_ap(positive, negative)
    fires = np.asarray(truth, dtype=bool)
    told = spread(_influence(fires, positive, negative, group, value), fires.astype(np.int64), documents)
    if told is None:
        return None
    error = max(math.sqrt(told.variance), 0.25 / n)
    chance = average_precision_chance(truth, score)
    centre = base + (1 - base) * (chance_corrected(value, chance) or 0.0)
    short = min(max((1 - value) / (1 - base), 0.0), 1.0)  # of perfect, as a share of what chance lacks
    drop = value - _grouped_ap(np.r_[0, positive], np.r_[1, negative])
    unseen = _UNSEEN * short / 2 * (1 - short / 2) * drop**2
    wider = math.sqrt(error**2 + unseen)
    low = _on_logit(centre, wider, -told.t, n)
    tail = (1 - LEVEL) / 2 * (1 + (1 - short) ** 2.5)
    high = _on_logit(value, error, told.upper * NormalDist().inv_cdf(1 - tail), n)
    exact = ((1 - LEVEL) / 2) ** (1 / told.independent)
    return min(low, value * exact), max(high, value)


def by_quantile(
    truth: Sequence[bool], score: Sequence[float], quantiles: Sequence[int | None]
) -> Mapping[int, float | None]:
    """AUROC of the firing examples of each quantile (0: weakest) against all silent ones: ½ by chance in each."""
    silent = [s for t, s in zip(truth, score) if not t]
    values: dict[int, float | None] = {}
    for quantile in sorted({q for t, q in zip(truth, quantiles) if t and q is not None}):
        firing = [s for t, s, q in zip(truth, score, quantiles) if t and q == quantile]
        values[quantile] = auroc([1] * len(firing) + [0] * len(silent), [*firing, *silent])
    return values


def _on_logit(centre: float, error: float, quantile: float, n: int) -> float:
    """``centre + quantile · error``, where the error is carried to the logit scale and the sum back."""
    at = min(max(centre, 1e-6), 1 - 0.25 / n)
    moved = math.log(at / (1 - at)) + quantile * error / (at * (1 - at))
    return 1 / (1 + math.exp(-min(max(moved, -500.0), 500.0)))


def _influence(
    truth: NDArray[np.bool_],
    positive: NDArray[np.int64],
    negative: NDArray[np.int64],
    group: NDArray[np.int64],
    value: float,
) -> NDArray[np.float64]:
    """Derivative of the average precision by each example's weight [n]."""
    above, hits = (positive + negative).cumsum(), positive.cumsum()
    total = int(hits[-1])
    gain = positive * (1 / above - hits / above**2)
    loss = positive * hits / above**2
    gain, loss = gain[::-1].cumsum()[::-1], loss[::-1].cumsum()[::-1]
    of_positive, of_negative = (hits / above - value + gain) / total, -loss / total
    return np.where(truth, of_positive[group], of_negative[group])


def _threshold_groups(
    truth: ArrayLike, score: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Positives and negatives at each distinct score, highest first, and each example's place among these."""
    t, s = np.asarray(truth, dtype=bool), np.asarray(score, dtype=float)
    if t.shape != s.shape or t.ndim != 1:
        raise ValueError(f"truth {t.shape} and score {s.shape} are not two lists of one length")
    if np.isnan(s).any():
        raise ValueError("a score is not a number: leave unscored examples out")
    _, group = np.unique(-s, return_inverse=True)
    size = int(group.max(initial=-1)) + 1
    return np.bincount(group[t], minlength=size), np.bincount(group[~t], minlength=size), group


def _grouped_ap(positive: NDArray[np.int64], negative: NDArray[np.int64]) -> float:
    """Of counts at each threshold, highest first."""
    hits = positive.cumsum()
    precision = hits / np.maximum(hits + negative.cumsum(), 1)
    return float((positive * precision).sum() / hits[-1])
