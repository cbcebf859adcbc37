import itertools

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
@given(judged)
def test_the_interval_of_average_precision_holds_the_value(rows):
    truth, score = zip(*rows)
    interval = stats.average_precision_interval(truth, score)
    if min(sum(truth), len(truth) - sum(truth)) < 2:  # one example shows no spread
        assert interval is None
        return
    low, high = interval
    assert 0 <= low <= stats.average_precision(truth, score) <= high <= 1


def test_a_perfect_judge_of_few_examples_has_a_wide_interval():
    def low(n):
        truth = [1] * n + [0] * n
        return stats.average_precision_interval(truth, truth)[0]

    assert [low(n) <= 0.025 ** (1 / n) + 1e-9 for n in (2, 5, 15, 50)] == [True] * 4  # the exact bound
    assert low(5) < low(15) < low(50)
    assert stats.average_precision_interval([1] * 50 + [0] * 50, [0.5] * 100)[0] < 0.5  # says the same of all


def test_examples_of_one_document_count_as_less_than_as_many_documents():
    rng = np.random.default_rng(0)
    truth = np.repeat([1, 0], 40)
    score = np.repeat(rng.normal(size=20), 4) + truth
    apart = stats.average_precision_interval(truth, score + 1e-3 * rng.normal(size=80))
    joined = stats.average_precision_interval(truth, score, documents=np.repeat(range(20), 4).tolist())
    assert joined[1] - joined[0] > 1.3 * (apart[1] - apart[0])
    with pytest.raises(ValueError, match="documents"):
        stats.average_precision_interval([1, 0], [1, 0], documents=[1])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.4, 0.7, 1.0]), st.integers(0, 12)), min_size=2))
def test_a_class_of_few_documents_has_no_interval_and_any_other_holds_the_value(rows):
    truth, score, documents = zip(*rows)
    interval = stats.average_precision_interval(truth, score, documents=documents)
    for fires in (True, False):
        held = [document for t, _, document in rows if t == fires]
        if len({*held}) < max(min(4, len(held)), 2):
            assert interval is None
    if interval is not None:
        assert 0 <= interval[0] <= stats.average_precision(truth, score) <= interval[1] <= 1


@settings(max_examples=30, deadline=None)
@given(judged)
def test_examples_that_are_their_own_documents_need_not_say_so(rows):
    truth, score = zip(*rows)
    own = stats.average_precision_interval(truth, score, documents=range(len(rows)))
    assert own == stats.average_precision_interval(truth, score)


def in_documents(count, both=False):
    """Documents of 100 windows: the firing half lies in `count`, each silent one in its own or in the same."""
    firing = [i % count for i in range(50)]
    return firing + (firing if both else [*range(100, 150)])


def half_shared(documents, rng):
    """Standard normal, half of whose variance the windows of a document share."""
    _, place = np.unique(documents, return_inverse=True)
    return 0.5**0.5 * (rng.normal(size=place.max() + 1)[place] + rng.normal(size=len(place)))


@pytest.mark.parametrize("both", [False, True])
def test_fewer_documents_make_a_wider_interval_and_too_few_none(both):
    rng = np.random.default_rng(0)
    truth = np.repeat([1, 0], 50)
    widths = []
    for count in (50, 25, 10, 5):
        documents = in_documents(count, both)
        drawn = [half_shared(documents, rng) + truth for _ in range(40)]
        limits = [stats.average_precision_interval(truth, score, documents=documents) for score in drawn]
        widths.append(np.mean([high - low for low, high in limits]))
    assert widths == sorted(widths)
    assert widths[-1] > 1.5 * widths[0]
    for count in (1, 2, 3):
        assert stats.average_precision_interval(truth, rng.normal(size=100), documents=in_documents(count)) is None
        sequences = list(rng.normal(size=(100, 5)))
        of = {"strata": truth.tolist(), "documents": in_documents(count, both)}
        assert stats.pooled_pearson_interval(sequences, sequences, **of) is None


@pytest.mark.parametrize("count", [5, 10])
@pytest.mark.parametrize("both", [False, True])
def test_intervals_of_windows_in_few_documents_cover_the_truth(count, both):
    rng = np.random.default_rng(count)
    many, truth, documents = np.repeat([1, 0], 200_000), np.repeat([1, 0], 50), in_documents(count, both)
    true = sk.average_precision_score(many, rng.normal(size=400_000) + many)
    held = [
        low <= true <= high
        for low, high in (
            stats.average_precision_interval(truth, half_shared(documents, rng) + truth, documents=documents)
            for _ in range(600)
        )
    ]
    assert 0.93 <= np.mean(held) <= 0.99


def test_a_judge_who_errs_about_whole_documents_is_not_vouched_for_by_its_windows():
    """Two answers in ten are wrong, and those of a document alike: of five documents, often none is."""
    rng = np.random.default_rng(0)
    truth, documents = np.repeat([1, 0], 50), in_documents(5, both=True)
    held = []
    for _ in range(600):
        wrong = (rng.random((5, 2)) < 0.2)[documents, truth]
        low, high = stats.average_precision_interval(truth, np.where(wrong, 1 - truth, truth), documents=documents)
        held.append(low <= 0.8**2 + 0.2 / 2 <= high)
    assert np.mean(held) >= 0.93


@pytest.mark.parametrize("count", [5, 25])
def test_correlations_of_sequences_in_few_documents_cover_the_truth(count):
    def drawn(documents, fires):
        shared = [half_shared(documents, rng)[:, None] for _ in range(2)]
        x = 0.7 * shared[0] + rng.normal(size=(len(fires), 8)) + fires[:, None]
        return x, 0.5 * x + 0.5 * shared[1] + 0.7 * rng.normal(size=x.shape)

    rng = np.random.default_rng(count)
    x, y = drawn(np.arange(100_000), np.arange(100_000) % 2)
    true, fires, documents = stats.pearson(x.ravel(), y.ravel()), np.repeat([1, 0], 50), in_documents(count)
    held = []
    for _ in range(300):
        x, y = drawn(documents, fires)
        low, high = stats.pooled_pearson_interval(list(x), list(y), strata=fires.tolist(), documents=documents)
        held.append(low <= true <= high)
    assert np.mean(held) >= 0.93


COVERED = [
    ("average_precision", 1.0, 40),
    ("average_precision", 3.0, 100),
    ("average_precision", 0.0, 40),
]


@pytest.mark.parametrize(("measure", "distance", "n"), COVERED)
def test_intervals_cover_the_truth_about_as_often_as_they_say(measure, distance, n):
    rng = np.random.default_rng(0)
    many = np.repeat([1, 0], 200_000)
    true = sk.average_precision_score(many, rng.normal(size=400_000) + distance * many)
    truth = np.repeat([1, 0], n // 2)
    held = [
        low <= true <= high
        for low, high in (
            stats.average_precision_interval(truth, rng.normal(size=n) + distance * truth) for _ in range(1000)
        )
    ]
    assert 0.93 <= np.mean(held) <= 0.98


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="not a number"):
        stats.average_precision([1, 0], [float("nan"), 0.0])


# --- chance -----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.3, 0.7, 1.0])), min_size=2, max_size=6))
def test_chance_is_the_mean_over_all_permutations_of_the_labels(rows):
    truth, score = zip(*rows)
    orders = list(itertools.permutations(truth))
    if any(truth):
        mean = np.mean([stats.average_precision(order, score) for order in orders])
        assert stats.average_precision_chance(truth, score) == pytest.approx(mean)
    said = [s > 0.5 for s in score]
    chance = stats.binary_chance(truth, said)
    for metric, value in chance.items():
        each = [stats.binary_metrics(order, said)[metric] for order in orders]
        assert (value is None) == (None in each)
        assert value is None or value == pytest.approx(np.mean(each))


@pytest.mark.parametrize(("n", "chance"), [(24, 0.561), (30, 0.553), (40, 0.543), (100, 0.523)])
def test_chance_of_a_graded_ranking_lies_above_the_base_rate(n, chance):
    truth = [1] * (n // 2) + [0] * (n // 2)
    assert stats.average_precision_chance(truth, range(n)) == pytest.approx(chance, abs=5e-3)
    assert stats.average_precision_chance(truth, [1] * n) == pytest.approx(0.5)


def test_chance_corrected_is_0_at_chance_and_1_at_best():
    assert stats.chance_corrected(0.6, 0.6) == 0
    assert stats.chance_corrected(1.0, 0.6) == 1
    assert stats.chance_corrected(0.2, 0.6) == pytest.approx(-1)
    assert stats.chance_corrected(1.0, 1.0) is stats.chance_corrected(None, 0.5) is None


def test_by_quantile_each_fifth_stands_against_all_silent_ones():
    truth, score, quantiles = [1, 1, 1, 0, 0], [0.9, 0.1, 0.5, 0.5, 0.2], [1, 0, 0, None, None]
    assert stats.by_quantile(truth, score, quantiles) == {0: pytest.approx((0 + 0.75) / 2), 1: 1.0}


# --- calibration ------------------------------------------------------------------------------


def test_a_judge_who_says_yes_to_all_has_that_rate_and_its_error():
    truth, p = [1] * 50 + [0] * 50, [0.87] * 100
    assert stats.yes_rate(p) == 1
    assert stats.probability_error(truth, p) == pytest.approx(0.37)
    assert stats.probability_error([], []) is stats.yes_rate([]) is None


def test_a_calibrated_judge_has_almost_no_error():
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    assert stats.probability_error(rng.random(20_000) < p, p) < 0.01


def test_scaling_undoes_a_judges_bias():
    rng = np.random.default_rng(0)
    truth = rng.random(600) < 0.5
    evidence = 2.0 + 0.3 * (rng.normal(size=600) + 2 * truth)  # all above 0: Yes to nearly everything
    fitted = stats.fit_calibration(truth[:300], evidence[:300])
    p = fitted.probability(evidence[300:])
    assert 0.4 < stats.yes_rate(p) < 0.6
    assert stats.probability_error(truth[300:], p) < 0.1
    assert stats.binary_metrics(truth[300:], p >= 0.5)["balanced_accuracy"] > 0.8


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([-np.inf, -1.0, 0.0, 2.0, np.inf])), max_size=30))
def test_scaling_never_turns_a_ranking_round(rows):
    fitted = stats.fit_calibration([t for t, _ in rows], [e for _, e in rows])
    if len({t for t, _ in rows}) < 2:
        assert fitted is None
        return
    p = fitted.probability([-5.0, 0.0, 5.0])
    assert 0 <= p[0] <= p[1] <= p[2] <= 1


@pytest.mark.parametrize("wrong_way", [True, False])
def test_evidence_that_points_the_wrong_way_or_is_the_same_for_all_tells_nothing(wrong_way: bool):
    truth = [True, False] * 40
    fitted = stats.fit_calibration(truth, [-float(t) if wrong_way else 0.1 for t in truth])
    assert fitted is not None
    assert not fitted.tells
    assert fitted.probability([-9.0, 0.0, 9.0]).tolist() == [0.5] * 3  # the base rate, whatever it says
    assert stats.fit_calibration(truth, truth).tells


def test_precision_at_the_natural_rate_is_what_counting_gives():
    firing, silent, rate = [1, 1, 0, 1], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0.1
    precision, recall = stats.natural_precision(firing, silent, rate)
    assert recall == 0.75
    assert precision == pytest.approx(0.075 / (0.075 + 0.09))
    assert stats.natural_precision([0], [0], rate) == (None, 0.0)
    assert stats.natural_precision([], [0], rate) == (None, None)


def test_average_precision_at_the_natural_rate_is_that_of_as_many_silent_ones():
    rng = np.random.default_rng(0)
    firing, silent = rng.normal(size=10) + 1, rng.normal(size=10)
    truth = np.repeat([1, 0], [10, 90])
    expected = stats.average_precision(truth, np.concatenate([firing, np.repeat(silent, 9)]))
    assert stats.natural_average_precision(firing, silent, 0.1) == pytest.approx(expected)
    assert stats.natural_average_precision(firing, [], 0.1) is None


# --- sequences and means ----------------------------------------------------------------------


def test_pooled_interval_resamples_contexts_and_not_tokens():
    rng = np.random.default_rng(0)
    offsets = rng.normal(size=24)
    xs = [np.full(30, o) + 0.01 * rng.normal(size=30) for o in offsets]  # tokens of one context say the same
    ys = [np.full(30, o + rng.normal()) for o in offsets]
    clustered = stats.pooled_pearson_interval(xs, ys, strata=[0] * 24)
    x, y = np.concatenate(xs), np.concatenate(ys)
    tokenwise = stats.pooled_pearson_interval([[a] for a in x], [[b] for b in y], strata=[0] * 720)
    assert clustered[1] - clustered[0] > 2 * (tokenwise[1] - tokenwise[0])
    assert clustered[0] < stats.pearson(x, y) < clustered[1]
    paired = stats.pooled_pearson_interval(xs * 2, ys * 2, strata=[0] * 48, documents=[*range(24)] * 2)
    assert paired[1] - paired[0] > 0.8 * (clustered[1] - clustered[0])


def test_fewer_than_ten_sequences_have_no_interval():
    parts = [[0.0, i, 1.0] for i in range(9)]
    assert stats.pooled_pearson_interval(parts, parts, strata=[0] * 9) is None
    assert stats.pooled_pearson_interval([*parts, [1, 2, 3]], [*parts, [1, 2, 3]], strata=[0] * 10) is not None


def test_constant_predictions_have_no_interval():
    assert stats.pooled_pearson_interval([[0, 1]] * 12, [[1, 1]] * 12, strata=[0] * 12) is None


@pytest.mark.parametrize("n", [8, 30])
def test_the_interval_of_a_mean_covers_it(n):
    rng = np.random.default_rng(0)
    held = [low <= 0.05 <= high for low, high in (stats.mean_interval(rng.normal(0.05, 1, n)) for _ in range(2000))]
    assert 0.93 <= np.mean(held) <= 0.97


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20))
def test_the_interval_of_a_mean_holds_it(values):
    interval = stats.mean_interval(values)
    if interval is None:
        assert np.ptp(values) < 1e-11
        return
    low, high = interval
    assert low <= np.mean(values) + 1e-12
    assert np.mean(values) <= high + 1e-12


def test_where_nothing_is_shared_the_interval_is_that_of_a_mean():
    values = np.random.default_rng(0).normal(size=20)
    alone = stats.mean_interval(values)
    assert stats.shared_interval(values, np.zeros((20, 0))) == alone
    assert stats.shared_interval(values, np.full((20, 3), np.nan)) == alone
    assert stats.shared_interval(values, np.arange(60).reshape(20, 3)) == alone
    assert stats.shared_interval(values[:1], [[0]]) is None
    assert stats.shared_interval([0.5, 0.5], [[0], [0]]) is None


def test_values_said_twice_are_as_certain_as_said_once():
    once = np.random.default_rng(0).normal(size=60)
    low, high = stats.shared_interval(np.repeat(once, 2), np.repeat(np.arange(60), 2)[:, None])
    expected = stats.mean_interval(once)
    assert (low, high) == pytest.approx(expected, abs=0.05 * (expected[1] - expected[0]))


def test_what_all_share_leaves_no_interval():
    assert stats.shared_interval(np.arange(9.0), np.zeros((9, 1))) is None


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.lists(st.integers(0, 6), unique=True, max_size=3)), min_size=2, max_size=20)
)
def test_what_is_shared_never_makes_a_mean_more_certain(rows):
    values = [value for value, _ in rows]
    got = stats.shared_interval(values, [[*things, *[-1] * (3 - len(things))] for _, things in rows])
    alone = stats.mean_interval(values)
    assert got is None or (got[0] <= alone[0] + 1e-9 and got[1] >= alone[1] - 1e-9)


@pytest.mark.parametrize("values", [[1, 1], [1.0] * 40, [0.1 + 0.2, 0.3, 0.3], [0.0, 0.0]])
def test_equal_values_show_no_spread_and_have_no_interval(values):
    assert stats.mean_interval(values) is None
    same = stats.paired_difference(values, [0.25] * len(values))
    assert (same.mean, same.low, same.high) == (pytest.approx(values[0] - 0.25), None, None)
    apart = stats.unpaired_difference(values, [0.25] * 3)
    assert (apart.mean, apart.low, apart.high) == (pytest.approx(values[0] - 0.25), None, None)
    assert stats.unpaired_difference(values, [0.2, 0.3]).low is not None


def test_the_interval_of_a_share_is_wilsons():
    low, high = stats.share_interval(8, 10)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert stats.share_interval(0, 10)[0] == 0
    assert stats.share_interval(0, 0) is None


def test_student_t_equals_the_tables():
    table = {1: 12.706, 2: 4.3027, 4: 2.7764, 7: 2.3646, 29: 2.0452, 99: 1.9842}
    assert {df: round(stats.student_t(df), len(str(t)) - 2) for df, t in table.items()} == pytest.approx(
        table, rel=1e-3
    )
    with pytest.raises(ValueError, match="degrees"):
        stats.student_t(0)


def test_paired_difference_counts_and_leaves_out_what_is_missing():
    got = stats.paired_difference([0.9, 0.8, None, 0.5, 0.7], [0.5, 0.9, 0.3, 0.5, float("nan")])
    assert (got.wins, got.losses, got.n, got.dropped) == (1, 1, 3, 2)
    assert got.mean == pytest.approx(0.1)
    assert got.low < got.mean < got.high
    assert stats.paired_difference([None], [1.0]) == stats.Paired(None, None, None, 0, 0, 0, 1)
    with pytest.raises(ValueError, match="not pairs"):
        stats.paired_difference([1.0], [])


def test_unpaired_difference_is_welch_s():
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 40), rng.normal(0, 3, 25)
    gap = stats.unpaired_difference(a.tolist(), b.tolist())
    theirs = ttest_ind(a, b, equal_var=False).confidence_interval()
    assert gap.mean == pytest.approx(a.mean() - b.mean())
    assert (gap.low, gap.high) == pytest.approx((theirs.low, theirs.high), rel=0.02)
    assert stats.unpaired_difference([], [1.0]) == stats.Unpaired(None, None, None)
    assert stats.unpaired_difference([2.0], [1.0, 1.0]) == stats.Unpaired(1.0, None, None)


@pytest.mark.parametrize(("n_a", "n_b"), [(12, 12), (8, 60), (60, 25)])
def test_an_interval_of_two_means_over_different_features_holds_the_truth(n_a: int, n_b: int) -> None:
    """Scores near 1 with a tail to lower ones, against wider ones: neither spread nor number is the same."""
    rng = np.random.default_rng(n_a)
    held = 0
    for _ in range(2000):
        difference = stats.unpaired_difference(rng.beta(8, 2, n_a).tolist(), rng.beta(3, 2, n_b).tolist())
        assert difference.low is not None
        assert difference.high is not None
        held += difference.low <= 0.8 - 0.6 <= difference.high
    assert 0.93 <= held / 2000 <= 0.97
