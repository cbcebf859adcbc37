import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from autointerp import stats

judged = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.1 + 1e-12, 0.5, 1.0])), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(judged)
def test_average_precision_and_auroc_equal_sklearns_with_ties(rows):
    truth, score = zip(*rows)
    if not any(truth):
        assert stats.average_precision(truth, score) is None
        return
    assert stats.average_precision(truth, score) == pytest.approx(sk.average_precision_score(truth, score))
    if all(truth):
        assert stats.auroc(truth, score) is None
    else:
        assert stats.auroc(truth, score) == pytest.approx(sk.roc_auc_score(truth, score))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_binary_metrics_equal_sklearns_and_are_none_where_undefined(rows):
    truth, said = zip(*rows)
    got = stats.binary_metrics(truth, said)
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(truth, said))
    assert (got["recall"] is None) == (not any(truth))
    assert (got["precision"] is None) == (not any(said))
    if any(truth):
        assert got["f1"] == pytest.approx(sk.f1_score(truth, said, zero_division=0))
        assert got["iou"] == pytest.approx(sk.jaccard_score(truth, said, zero_division=0))
    if any(truth) and not all(truth):
        assert got["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, said))
    else:
        assert got["balanced_accuracy"] is None


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(-5, 5)), min_size=3, max_size=30))
def test_pearson_equals_numpys_and_is_none_for_a_constant(rows):
    x, y = zip(*rows)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert stats.pearson(x, y) is None
    elif np.ptp(x) > 1e-6:
        assert stats.pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)


def test_pearson_of_a_constant_that_floats_cannot_hold_exactly_is_none():
    assert stats.pearson([0.1] * 7, range(7)) is None


def test_cosine_is_none_for_a_zero_vector():
    assert stats.cosine([0, 0], [1, 2]) is None
    assert stats.cosine([1, 0], [1, 1]) == pytest.approx(2**-0.5)


@settings(max_examples=30, deadline=None)
@given(judged, st.integers(0, 3))
def test_interval_holds_the_value_and_repeats_with_its_seed(rows, seed):
    truth, score = zip(*rows)
    interval = stats.average_precision_interval(truth, score, seed=seed)
    if all(truth) or not any(truth):
        assert interval is None
        return
    low, high = interval
    value = stats.average_precision(truth, score)
    assert 0 <= low <= value <= high <= 1
    assert interval == stats.average_precision_interval(truth, score, seed=seed)


def test_a_perfect_judge_of_few_examples_has_a_wide_interval():
    def low(n):
        truth = [1] * n + [0] * n
        return stats.average_precision_interval(truth, truth, seed=0)[0]

    assert low(2) == pytest.approx(0.025 ** (1 / 2))
    assert low(50) == pytest.approx(0.025 ** (1 / 50))
    assert stats.average_precision_interval([1] * 50 + [0] * 50, [0.5] * 100, seed=0)[0] < 0.5  # says the same of all


@pytest.mark.parametrize(("n", "distance"), [(50, 1.0), (50, 0.0), (20, 2.0)])
def test_interval_covers_the_true_value_about_as_often_as_it_says(n, distance):
    rng = np.random.default_rng(0)
    many = np.repeat([1, 0], 20_000)
    true = sk.average_precision_score(many, rng.normal(size=40_000) + distance * many)
    truth = np.repeat([1, 0], n)
    covered = 0
    for seed in range(80):
        low, high = stats.average_precision_interval(truth, rng.normal(size=2 * n) + distance * truth, seed=seed)
        covered += low <= true <= high
    assert covered >= 68  # of 80, nominal 76; the exact share is in the docstring


def test_interval_of_a_hundred_examples_takes_milliseconds():
    rng = np.random.default_rng(0)
    truth, score = np.repeat([1, 0], 50), rng.normal(size=100)
    stats.average_precision_interval(truth, score, seed=0)
    spent = []
    for seed in range(5):
        begin = time.process_time()
        stats.average_precision_interval(truth, score, seed=seed)
        spent.append(time.process_time() - begin)
    assert min(spent) < 0.02  # of this process, not of the clock


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="not a number"):
        stats.average_precision([1, 0], [float("nan"), 0.0])


def test_pooled_interval_resamples_contexts_and_not_tokens():
    rng = np.random.default_rng(0)
    offsets = rng.normal(size=12)
    xs = [np.full(30, o) + 0.01 * rng.normal(size=30) for o in offsets]  # tokens of one context say the same
    ys = [np.full(30, o + rng.normal()) for o in offsets]
    clustered = stats.pooled_pearson_interval(xs, ys, strata=[0] * 12, seed=0)
    x, y = np.concatenate(xs), np.concatenate(ys)
    tokenwise = stats.pooled_pearson_interval([[a] for a in x], [[b] for b in y], strata=[0] * 360, seed=0)
    assert clustered[1] - clustered[0] > 2 * (tokenwise[1] - tokenwise[0])
    assert clustered[0] < stats.pearson(x, y) < clustered[1]


def test_pooled_interval_of_one_context_is_none():
    assert stats.pooled_pearson_interval([[1, 2]], [[1, 2]], strata=[0], seed=0) is None


def test_paired_difference_counts_and_leaves_out_what_is_missing():
    got = stats.paired_difference([0.9, 0.8, None, 0.5, 0.7], [0.5, 0.9, 0.3, 0.5, float("nan")], seed=1)
    assert (got.wins, got.losses, got.n, got.dropped) == (1, 1, 3, 2)
    assert got.mean == pytest.approx(0.1)
    assert got.low < got.mean < got.high
    assert stats.paired_difference([None], [1.0]) == stats.Paired(None, None, None, 0, 0, 0, 1)
    with pytest.raises(ValueError, match="not pairs"):
        stats.paired_difference([1.0], [])
