"""Variance components and agreement: planted values come back, and libraries say the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from autointerp.stats import agreement
from autointerp.stats.variance import AXES, effects, variance_components, variance_shares

PLANTED = {
    ("feature",): 4.0, ("windows", "feature"): 1.0, ("explainer",): 0.5, ("judge",): 2.0, ("feature", "explainer"): 1.5,
    ("feature", "judge"): 0.7, ("explainer", "judge"): 0.3, ("feature", "windows", "judge"): 0.4,
}  # fmt: skip


def drawn(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Scores with the variances of PLANTED, and a residual of .2."""
    scores = 3 + rng.normal(0, 0.2**0.5, shape)
    for axes, variance in PLANTED.items():
        size = [n if axis in axes else 1 for axis, n in zip(AXES, shape)]
        scores = scores + rng.normal(0, variance**0.5, size)
    return scores


def test_the_estimates_are_the_planted_variances_in_the_mean():
    rng = np.random.default_rng(0)
    many = [variance_components(drawn(rng, (30, 3, 4, 5))) for _ in range(600)]
    wanted = {frozenset(axes): variance for axes, variance in PLANTED.items()} | {frozenset(AXES): 0.2}
    for effect in effects():
        estimates = np.array([estimate[effect] for estimate in many])
        error = estimates.std() / len(many) ** 0.5
        assert abs(estimates.mean() - wanted.get(effect, 0.0)) < 4 * error + 1e-9, effect


def test_mean_squares_of_two_axes_are_those_of_the_textbook():
    """Features by judges alone: the other axes add equal copies, so their effects are 0."""
    table = np.array([[1.0, 2.0], [4.0, 3.0], [6.0, 9.0]])
    scores = np.broadcast_to(table[:, None, None, :], (3, 2, 2, 2))
    rows, columns, rest = (
        2 * table.mean(1).var(ddof=1),
        3 * table.mean(0).var(ddof=1),
        ((table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()) ** 2).sum() / 2,
    )
    split = variance_components(scores)
    assert split[frozenset({"feature", "judge"})] == pytest.approx(rest)
    assert split[frozenset({"feature"})] == pytest.approx((rows - rest) / 2)
    assert split[frozenset({"judge"})] == pytest.approx((columns - rest) / 3)
    assert split[frozenset({"explainer"})] == pytest.approx(0, abs=1e-12)


def test_shares_sum_to_one_and_more_windows_weigh_less():
    components = dict.fromkeys(effects(), 1.0) | {frozenset({"judge"}): -3.0}
    shares, many = variance_shares(components), variance_shares(components, windows=10)
    assert sum(shares.values()) == pytest.approx(1) == sum(many.values())
    assert shares["judge"] == pytest.approx(1 / 10)
    assert many["windows and rest"] < shares["windows and rest"]


def test_of_one_judge_the_estimates_are_the_planted_variances_too():
    rng = np.random.default_rng(0)
    many = [variance_components(drawn(rng, (30, 3, 4, 1))) for _ in range(600)]
    wanted = {("feature",): 4.7, ("feature", "windows"): 1.4, ("explainer",): 0.8, ("feature", "explainer"): 1.5}
    wanted |= {("feature", "windows", "explainer"): 0.2}
    assert {frozenset(axes) for axes in wanted} == set(many[0])
    for axes, variance in wanted.items():
        estimates = np.array([estimate[frozenset(axes)] for estimate in many])
        assert abs(estimates.mean() - variance) < 4 * estimates.std() / len(many) ** 0.5, axes
    assert set(variance_shares(many[0])) == {"feature", "explainer", "windows and rest"}


@pytest.mark.parametrize(
    ("scores", "why"), [(np.zeros((3, 1, 2, 2)), "two levels"), (np.full((2,) * 4, np.nan), "missing")]
)
def test_data_that_cannot_be_split_are_refused(scores: np.ndarray, why: str):
    with pytest.raises(ValueError, match=why):
        variance_components(scores)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_kappa_is_sklearn_s(answers: list[tuple[bool, bool]]):
    a, b = zip(*answers)
    mine = agreement.kappa(a, b)
    if len(set(a) | set(b)) == 1:
        assert mine is None
    else:
        assert mine == pytest.approx(cohen_kappa_score(a, b))


def test_spearman_is_scipy_s_and_its_interval_holds_it():
    rng = np.random.default_rng(1)
    a = rng.integers(0, 9, 50)
    b = a + rng.normal(0, 3, 50)
    value = agreement.spearman(a, b)
    assert value is not None
    assert value == pytest.approx(spearmanr(a, b).statistic)
    low, high = agreement.correlation_interval(value, 50) or (1.0, 0.0)
    assert low < value < high
    assert agreement.spearman([1, 1, 1], [1, 2, 3]) is None
    assert agreement.correlation_interval(0.5, 3) is None


def test_the_share_with_most_evidence():
    rng = np.random.default_rng(0)
    assert agreement.top_share([0.9, 0.99, 0.95, 0.2], 0.5, rng).tolist() == [False, True, True, False]
    assert agreement.top_share([1.0, 0.0] * 50, 0.25, rng).sum() == 25  # a judge that only says Yes and No
    assert agreement.top_share([0.3, 0.1], 0.0, rng).tolist() == [False, False]
