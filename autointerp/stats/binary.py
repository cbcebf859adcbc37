"""Binary truth against binary prediction, and what a judge gets who predicts as often but knows nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from autointerp.stats.student import NORMAL


def binary_metrics(truth: ArrayLike, prediction: ArrayLike) -> Mapping[str, float | None]:
    """f1, iou, precision, recall, balanced_accuracy, accuracy; None where the denominator is 0."""
    t, p = np.asarray(truth, dtype=bool), np.asarray(prediction, dtype=bool)
    tp, fp, fn, tn = (int(np.sum(x)) for x in (t & p, ~t & p, t & ~p, ~t & ~p))
    recall, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    return {
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "iou": _ratio(tp, tp + fp + fn),
        "precision": _ratio(tp, tp + fp),
        "recall": recall,
        "balanced_accuracy": None if recall is None or specificity is None else (recall + specificity) / 2,
        "accuracy": _ratio(tp + tn, t.size),
    }


def binary_chance(truth: ArrayLike, prediction: ArrayLike) -> Mapping[str, float | None]:
    """The mean of each of `binary_metrics` over all permutations of the labels, exactly.

    True positives are then hypergeometric, which leaves all of them but the IoU linear in their mean.
    """
    t, p = np.asarray(truth, dtype=bool), np.asarray(prediction, dtype=bool)
    n, positive, yes = t.size, int(t.sum()), int(p.sum())
    hits = positive * yes / n if n else 0.0
    both = 0 < positive < n
    return {
        "f1": _ratio(2 * hits, positive + yes),
        "iou": _mean_iou(n, positive, yes),
        "precision": _ratio(hits, yes),
        "recall": _ratio(hits, positive),
        "balanced_accuracy": 0.5 if both else None,
        "accuracy": _ratio(2 * hits + n - positive - yes, n),
    }


def share_interval(hits: float, n: float, z: float = NORMAL) -> tuple[float, float] | None:
    """A 95 % interval of a share, `hits` of `n` independent trials (Wilson 1927). None without trials.

    `z` is the quantile that it goes out to.
    """
    if not n:
        return None
    share = hits / n
    centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    whole = 1 + z * z / n
    return min(max((centre - half) / whole, 0.0), share), max(min((centre + half) / whole, 1.0), share)


def _mean_iou(n: int, positive: int, yes: int) -> float | None:
    if not positive + yes:
        return None
    whole = math.comb(n, yes)
    return sum(
        math.comb(positive, hits) * math.comb(n - positive, yes - hits) / whole * hits / (positive + yes - hits)
        for hits in range(max(0, yes + positive - n), min(positive, yes) + 1)
    )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
