"""Labels that are drawn for clusters, and questions that show the same texts."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp import stats


@pytest.mark.parametrize("scores", [[5, 4, 3, 2, 1, 0, -1, -2], [3, 3, 2, 1, 1, 1, 0, 3], [1] * 8])
def test_chance_by_clusters_is_the_mean_over_all_labels_of_the_clusters(scores):
    clusters = [0, 0, 1, 1, 2, 2, 3, 3]
    values = [stats.average_precision([c in true for c in clusters], scores) for true in combinations(range(4), 2)]
    assert stats.clustered_chance([c in (0, 3) for c in clusters], scores, clusters) == pytest.approx(np.mean(values))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=20))
def test_chance_by_clusters_of_one_is_that_of_examples(pairs):
    truth, score = zip(*pairs)
    of_examples = stats.average_precision_chance(truth, score)
    assert stats.clustered_chance(truth, score, range(len(truth))) == (
        None if of_examples is None else pytest.approx(of_examples)
    )


def test_chance_by_clusters_is_near_the_mean_over_labels_where_some_clusters_lack_an_example():
    rng = np.random.default_rng(0)
    clusters = np.array([*range(10), *range(8)])  # two of one example each
    score, truth = rng.normal(size=18), clusters % 2 == 0
    values = []
    for _ in range(2000):
        of_pairs, of_single = rng.permutation(8) < 4, rng.permutation(2) < 1
        values.append(stats.average_precision(np.r_[of_pairs, of_single][clusters], score))
    assert stats.clustered_chance(truth, score, clusters.tolist()) == pytest.approx(np.mean(values), abs=0.01)
    assert stats.clustered_chance([False, False], [1, 2], ["a", "a"]) is None


def test_questions_that_share_nothing_have_wilsons_interval():
    assert stats.dependent_share_interval([1, 1, 0, 1], [{1}, {2}, {3}, set()]) == stats.share_interval(3, 4)
    assert stats.dependent_share_interval([], []) is None


def test_questions_that_show_the_same_and_end_alike_have_a_wider_interval():
    credits = [1, 1, 1, 0, 0, 0]
    alike = stats.dependent_share_interval(credits, [{0}, {0}, {0}, {1}, {1}, {1}])
    mixed = stats.dependent_share_interval(credits, [{0}, {1}, {2}, {0}, {1}, {2}])
    assert alike[1] - alike[0] > 1.2 * (mixed[1] - mixed[0])
    with pytest.raises(ValueError, match="2 credits for 1"):
        stats.dependent_share_interval([1, 0], [{1}])


@given(st.lists(st.tuples(st.sampled_from([0, 0.25, 0.5, 1]), st.frozensets(st.integers(0, 4))), min_size=1))
def test_the_interval_of_questions_holds_their_mean_and_stays_within_0_and_1(questions):
    credits, shown = zip(*questions)
    low, high = stats.dependent_share_interval(credits, shown)
    assert 0 <= low <= np.mean(credits) + 1e-9
    assert np.mean(credits) - 1e-9 <= high <= 1


def test_the_interval_of_questions_with_texts_in_common_holds_the_truth():
    """An option stands out in all questions that show it: the largest of four noisy looks is picked."""
    rng = np.random.default_rng(0)

    def right(looks):
        return rng.normal(size=len(looks)) + 2.5 > (looks + rng.normal(size=looks.shape)).max(axis=1)

    truth = right(2 * rng.normal(size=(200_000, 3))).mean()
    held = {"shared": 0, "wilson": 0}
    for _ in range(300):
        shown = np.array([rng.permutation(25) for _ in range(3)]).T  # each option in three questions
        credits = right(2 * rng.normal(size=25)[shown])
        for name, interval in (
            ("shared", stats.dependent_share_interval(credits, [set(row) for row in shown.tolist()])),
            ("wilson", stats.share_interval(credits.sum(), 25)),
        ):
            held[name] += interval[0] <= truth <= interval[1]
    assert held["wilson"] / 300 < 0.91
    assert held["shared"] / 300 > 0.92
