"""What is not independent: labels that are drawn for clusters of examples, and questions that show the same texts."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import ArrayLike

from autointerp.stats.binary import share_interval
from autointerp.stats.student import places, student_t


def clustered_chance(truth: ArrayLike, score: ArrayLike, clusters: Sequence[object]) -> float | None:
    """`average_precision_chance` where the labels are permuted over `clusters` [n], whose examples have one label.

    With m_i examples of i's cluster, i among them, and k_i of all at or above its score, c_i in its cluster, and P
    positives of n in all,

        E[AP] = Σ_i 1 / (n k_i) · (m_i + (k_i − m_i) (P − c_i) / (n − c_i)).

    Exact where clusters are of one size. None without positives.
    """
    t, s, cluster = np.asarray(truth, dtype=bool), np.asarray(score, dtype=float), places(clusters)
    n, positive = t.size, int(t.sum())
    if not positive:
        return None
    above, same = s[None, :] >= s[:, None], cluster[None, :] == cluster[:, None]
    k, own, size = above.sum(axis=1), (above & same).sum(axis=1), same.sum(axis=1)
    others = (k - own) * np.maximum(positive - size, 0) / np.maximum(n - size, 1)
    return float(((own + others) / k).sum() / n)


def dependent_share_interval(credits: ArrayLike, shown: Sequence[Collection[object]]) -> tuple[float, float] | None:
    """A 95 % interval of the mean of credits [n], each 0 … 1, of questions that depend where they show the same.

    Wilson's interval of n / deff trials (Korn and Graubard 1998; Franco and others 2019), with Student's t of n − 1
    degrees. `shown` [n] holds what each question shows. With W ordered pairs of questions, counted once for each
    thing that both show, and γ the mean product of their deviations from the mean p,

        deff = 1 + W / n · γ / (p (1 − p)), never below 1.

    s² / n is added to γ, for centring lowers a product by that. Where nothing is shown twice it is `share_interval`;
    where all credits are 0 or all are 1, no dependence can be seen. None without questions.
    """
    c, n = np.asarray(credits, dtype=float), len(shown)
    if c.shape != (n,):
        raise ValueError(f"{c.size} credits for {n} questions")
    sets = [frozenset(each) for each in shown]
    both = np.array([[len(a & b) for b in sets] for a in sets], dtype=float).reshape(n, n)
    np.fill_diagonal(both, 0.0)
    pairs, total = float(both.sum()), float(c.sum())
    if not pairs:
        return share_interval(total, n)
    left = c - total / n
    product = float(left @ both @ left) / pairs + float(left @ left) / (n * (n - 1))
    spread = total / n * (1 - total / n)
    effect = 1 + max(pairs / n * product / spread, 0.0) if spread > 1e-12 else 1.0
    return share_interval(total / effect, n / effect, student_t(n - 1))
