"""Split the variance of scores over features, windows, explainers and judges: a crossed random-effects model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

AXES = ("feature", "windows", "explainer", "judge")  # of the scores; windows are drawn anew for each feature

Effect = frozenset[str]


def effects(axes: Sequence[str] = AXES) -> list[Effect]:
    """Every non-empty set of the axes in which windows stand with their feature: eleven of all four."""
    sets = (frozenset(chosen) for size in range(1, len(axes) + 1) for chosen in combinations(axes, size))
    return [chosen for chosen in sets if "windows" not in chosen or "feature" in chosen]


def variance_components(scores: ArrayLike) -> Mapping[Effect, float]:
    """Unbiased estimates of the variance of each effect, from scores [features, windows, explainers, judges].

    The model is score = mean + one independent draw a level of each effect: of each axis, with windows nested in
    features, and of each interaction. The last, of all, is also the residual. Balanced data only. Where there is one
    explainer or one judge, the effects that it would be part of are left out.

    The estimate is that of the analysis of variance, by the method of moments (Searle, Casella and McCulloch 1992,
    chapter 4; Brennan 2001, chapter 3): the mean square of an effect S has the expectation
    Σ over T ⊇ S of n(T) · variance(T), where n(T) is the number of scores that share a level of T; the triangular
    system is solved from the largest sets down. An estimate may be negative where the variance is about 0. Estimates
    of an axis with few levels are rough: that of two judges has one degree of freedom.

    Raises ValueError where there are fewer than two features or windows of each, or a score is missing.
    """
    y = np.asarray(scores, dtype=float)
    if y.ndim != len(AXES) or min(y.shape) < 1 or min(y.shape[:2]) < 2:
        raise ValueError(f"scores {y.shape}: four axes, features and windows of two levels or more, are needed")
    if np.isnan(y).any():
        raise ValueError("a score is missing: leave its feature out")
    estimates: dict[Effect, float] = {}
    there = effects([axis for axis, size in zip(AXES, y.shape) if size > 1])
    for effect in sorted(there, key=len, reverse=True):
        square, degrees = _projected(y, effect)
        others = sum(_sharing(y, larger) * value for larger, value in estimates.items() if larger > effect)
        estimates[effect] = (square / degrees - others) / _sharing(y, effect)
    return {effect: estimates[effect] for effect in there}


def _sharing(y: NDArray[np.float64], effect: Effect) -> int:
    return int(np.prod([size for axis, size in zip(AXES, y.shape) if axis not in effect], dtype=int))


def _projected(y: NDArray[np.float64], effect: Effect) -> tuple[float, int]:
    """The sum of squares of an effect and its degrees of freedom."""
    degrees, part = 1, y
    for place, axis in enumerate(AXES):
        mean = part.mean(axis=place, keepdims=True)
        if axis not in effect:
            part = np.broadcast_to(mean, part.shape)
        elif axis == "feature" and "windows" in effect:
            degrees *= y.shape[place]  # windows differ within their own feature
        else:
            part, degrees = part - mean, degrees * (y.shape[place] - 1)
    return float((part**2).sum()), degrees


def variance_shares(components: Mapping[Effect, float], windows: int = 1) -> dict[str, float]:
    """What share of the variance of a single score comes from the features, and from what else: sums to 1.

    `windows` is how many groups of windows the score is a mean of, so the effects of windows weigh 1 / `windows`.
    Negative estimates count as 0, which takes a little from the others. The share "windows and rest" holds all effects
    that windows are part of, the residual too; those of explainer and judge hold their interactions with the feature.
    With a judge that knows nothing, whatever features differ in by the other one is an interaction, and counts as the
    judge's: split the variance for each judge by itself, too.
    """
    named = {
        "feature": [{"feature"}],
        "explainer": [{"explainer"}, {"feature", "explainer"}],
        "judge": [{"judge"}, {"feature", "judge"}],
        "explainer and judge": [{"explainer", "judge"}, {"feature", "explainer", "judge"}],
    }
    kept = {effect: max(value, 0.0) for effect, value in components.items()}
    shares = {
        name: sum(kept.get(frozenset(axes), 0.0) for axes in sets)
        for name, sets in named.items()
        if any(frozenset(axes) in kept for axes in sets)
    }
    shares["windows and rest"] = sum(value for effect, value in kept.items() if "windows" in effect) / windows
    total = sum(shares.values())
    return {name: share / total if total else 0.0 for name, share in shares.items()}
