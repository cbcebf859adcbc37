"""The interval of a mean over features whose values rest in part on the same things: explanations lent to several."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autointerp.stats.means import mean_interval
from autointerp.stats.student import student_t


def shared_interval(values: ArrayLike, shared: ArrayLike) -> tuple[float, float] | None:
    """A 95 % interval of the mean of values [n] of which those that share a thing may be alike.

    `shared` [n, w]: numbers of the things that each rests on, each once, below 0 for none; NaN counts as none.

    The covariance of two values is taken as β for each thing that they share, their variance as α. Both come from the
    sums of squares Σ u² and Σ u·u' over the pairs that share (moments, as Henderson's method 1, 1953), with what the
    deviations u from the mean lack. `mean_interval` is widened to that variance, with Satterthwaite's degrees of
    freedom (1946), and never narrowed: it stands where no thing is shared or β is not above 0.

    None where `mean_interval` is, and where so much is shared that α and β cannot be told apart.
    """
    x = np.asarray(values, dtype=float)
    base = mean_interval(x)
    if base is None:
        return None
    things = _numbered(np.nan_to_num(np.asarray(shared, dtype=float), nan=-1))
    n, mean = len(x), float(x.mean())
    u = x - mean
    row, column = (things >= 0).nonzero()
    thing = things[row, column]
    users = np.bincount(thing)
    degree = np.bincount(row, users[thing] - 1, minlength=n)  # pairs that a value is in, by things shared
    links = float(degree.sum())
    if not links:
        return base
    squared = _square_of_pairs(things)
    within = float((np.bincount(thing, u[row]) ** 2).sum() - (u[row] ** 2).sum())  # Σ u·u' over those pairs
    moments = np.array([[n - 1, -links / n], [-links / n, squared - 2 * float(degree @ degree) / n + (links / n) ** 2]])
    if np.linalg.det(moments) <= 1e-9 * n * squared:
        return None
    alpha, beta = np.linalg.solve(moments, np.array([float(u @ u), within]))
    if beta <= 0:
        return base
    wider = max((n * alpha + links * beta) / n / (float(u @ u) / (n - 1)), 1.0)  # than independent values' variance
    degrees = min(max(int((n * wider) ** 2 / (n + squared)), 1), n - 1)
    factor = math.sqrt(wider) * student_t(degrees) / student_t(n - 1)
    return mean + factor * (base[0] - mean), mean + factor * (base[1] - mean)


def _numbered(things: NDArray[np.float64]) -> NDArray[np.int64]:
    """[n, w] with the things numbered from 0, −1 for none."""
    known, numbers = np.unique(things, return_inverse=True)
    return numbers.reshape(things.shape).astype(np.int64) - int((known < 0).sum())


def _square_of_pairs(things: NDArray[np.int64]) -> float:
    """Σ over pairs of different values of (how many things they share)², which is the same over pairs of things: no
    list of all pairs of values is made, of which there are many where one thing is shared by all."""
    size, width = int(things.max()) + 1, things.shape[1]
    codes = [
        (things[:, a] * size + things[:, b])[(things[:, a] >= 0) & (things[:, b] >= 0)]
        for a in range(width)
        for b in range(width)
    ]
    together = np.unique(np.concatenate(codes), return_counts=True)[1].astype(float)
    return float(together @ together - ((things >= 0).sum(1).astype(float) ** 2).sum())
