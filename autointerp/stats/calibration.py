"""What a judge's Yes is worth: how often it says so, how far its probabilities are off, and a threshold fitted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
USUAL_YES = (0.05, 0.95)  # a judge whose rate of Yes lies outside answers by habit
_FAR = 40.0  # log odds beyond which evidence is cut: a probability that has rounded to 0 or 1


def yes_rate(probability: ArrayLike) -> float | None:
    """Share of probabilities (or answers, 0 or 1) of ½ and more; None where there is none."""
    p = np.asarray(probability, dtype=float)
    return float(np.mean(p >= 0.5)) if p.size else None


def by_habit(rate: float) -> str | None:
    """What is wrong with a judge that says Yes at this rate, where it answers nearly everything alike."""
    if USUAL_YES[0] <= rate <= USUAL_YES[1]:
        return None
    return f"the judge says yes to {rate:.0%} of the examples: its precision, recall and F1 at ½ say nothing"


def probability_error(truth: ArrayLike, probability: ArrayLike, bins: int = 10) -> float | None:
    """Expected calibration error: Σ share of bin · |mean probability − share true|, over `bins` of equal width.

    Naeini, Cooper and Hauskrecht 2015. It lies in 0 … 1. None where nothing was judged.
    """
    t, p = np.asarray(truth, dtype=float), np.asarray(probability, dtype=float)
    if t.shape != p.shape:
        raise ValueError(f"{t.size} truths for {p.size} probabilities")
    if not p.size:
        return None
    place = np.minimum((p * bins).astype(int), bins - 1)
    gap = np.bincount(place, weights=p - t, minlength=bins)
    return float(np.abs(gap).sum() / p.size)


@dataclass(frozen=True, slots=True)
class Calibration:
    """P(true | evidence) = 1 / (1 + exp(−(slope · evidence + offset))), fitted to judged examples of known truth."""

    slope: float  # 0: the evidence tells nothing, and every probability is the base rate
    offset: float
    n: int

    @property
    def tells(self) -> bool:
        """Whether a Yes can be read off: else it would be the same for all, by which class has one example more."""
        return self.slope > 0

    def probability(self, evidence: ArrayLike) -> Floats:
        """Calibrated probabilities [n] of evidence [n]; ½ and more is a Yes, where the evidence `tells`."""
        at = self.slope * np.clip(np.asarray(evidence, dtype=float), -_FAR, _FAR) + self.offset
        return 1 / (1 + np.exp(-np.clip(at, -_FAR, _FAR)))


def fit_calibration(truth: ArrayLike, evidence: ArrayLike) -> Calibration | None:
    """Platt's scaling: logistic regression of truth on evidence, with his smoothed targets (Platt 1999).

    The slope is never negative: a judge whose evidence points the wrong way is not turned round, it gets the base
    rate and does not `tell`; nor does one whose evidence is the same for all. The pairs should be of other features
    than those scored. None where a class is missing.
    """
    t, e = np.asarray(truth, dtype=bool), np.clip(np.asarray(evidence, dtype=float), -_FAR, _FAR)
    n_true, n_false = int(t.sum()), int((~t).sum())
    if not n_true or not n_false:
        return None
    target = np.where(t, (n_true + 1) / (n_true + 2), 1 / (n_false + 2))
    base_rate = Calibration(0.0, math.log((n_true + 1) / (n_false + 1)), len(e))
    centre, scale = float(e.mean()), float(e.std())
    if scale <= 1e-9:  # rounding, which is no evidence
        return base_rate
    design = np.stack([(e - centre) / scale, np.ones(len(e))], axis=1)
    weight = np.array([0.0, base_rate.offset])
    ridge = 1e-6 * np.eye(2) * len(e)
    for _ in range(50):  # Newton; convex, so it ends
        p = 1 / (1 + np.exp(-np.clip(design @ weight, -_FAR, _FAR)))
        gradient = design.T @ (p - target) + ridge @ weight
        hessian = (design * (p * (1 - p) + 1e-9)[:, None]).T @ design + ridge
        step = np.linalg.solve(hessian, gradient)
        weight = weight - np.clip(step, -5, 5)
        if np.abs(step).max() < 1e-9:
            break
    slope = float(weight[0]) / scale
    if slope <= 0:
        return base_rate
    return Calibration(slope, float(weight[1]) - slope * centre, len(e))


def natural_precision(firing: ArrayLike, silent: ArrayLike, rate: float) -> tuple[float | None, float | None]:
    """(precision, recall) where a share `rate` of windows fires, by reweighting.

    `firing` and `silent` are answers, Yes or No, on firing windows and on silent ones drawn at random (no near misses:
    these are not what running text is made of). precision = rate·TPR / (rate·TPR + (1 − rate)·FPR).
    """
    f, s = np.asarray(firing, dtype=bool), np.asarray(silent, dtype=bool)
    if not f.size:
        return None, None
    recall = float(f.mean())
    if not s.size:
        return None, recall
    yes = rate * recall + (1 - rate) * float(s.mean())
    return (rate * recall / yes if yes else None), recall


def natural_average_precision(firing: ArrayLike, silent: ArrayLike, rate: float) -> float | None:
    """`average_precision` of evidence on firing and on random silent windows, weighted to a share `rate` that fires."""
    f, s = np.asarray(firing, dtype=float), np.asarray(silent, dtype=float)
    if not f.size or not s.size:
        return None
    _, group = np.unique(-np.concatenate([f, s]), return_inverse=True)
    size = int(group.max()) + 1
    hits = np.bincount(group[: f.size], minlength=size).cumsum() / f.size
    misses = np.bincount(group[f.size :], minlength=size).cumsum() / s.size
    yes = rate * hits + (1 - rate) * misses
    return float((np.diff(hits, prepend=0) * rate * hits / np.maximum(yes, 1e-300)).sum())
