from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp import stats
from autointerp.controls.other_feature import lenders, pick
from autointerp.errors import ConfigError
from autointerp.plugins import controls

texts = st.sampled_from(["dogs", "Dogs.", "cats", "names", "colours", "verbs"])


@given(st.dictionaries(st.integers(0, 50), texts), st.integers(0, 5))
def test_everyone_gets_the_explanation_of_another_or_none_where_there_is_no_other(explanations, seed):
    lent = pick(sorted(explanations), explanations, donors=1, seed=seed)
    assert lent == pick(sorted(explanations), explanations, donors=1, seed=seed)
    picked = {feature: text for feature, (text,) in lent.items()}
    same = [text.lower().rstrip(".") for text in explanations.values()]
    if len(set(same)) < 2:
        assert picked == {}
        return
    assert picked.keys() == explanations.keys()
    assert all(text.lower().rstrip(".") != explanations[f].lower().rstrip(".") for f, text in picked.items())
    if max(same.count(text) for text in same) * 2 <= len(same):
        assert sorted(picked.values()) == sorted(explanations.values())  # each is used once


def test_only_the_features_asked_for_take_part_and_seeds_differ():
    explanations = {i: f"text {i}" for i in range(30)}
    assert pick([1, 2, 99], explanations, seed=0) == {1: ("text 2",), 2: ("text 1",)}
    assert pick(range(30), explanations, seed=0) != pick(range(30), explanations, seed=1)


def test_three_others_lend_and_no_feature_lends_twice_to_one():
    explanations = {i: f"text {i}" for i in range(30)}
    for feature, texts in pick(range(30), explanations, seed=0).items():
        assert len({*texts, explanations[feature]}) == 4
    with pytest.raises(ConfigError, match="at least one"):
        pick(range(30), explanations, donors=0, seed=0)


@given(st.dictionaries(st.integers(0, 50), texts), st.integers(0, 5))
def test_no_feature_is_told_one_text_twice(explanations, seed):
    for lent in pick(sorted(explanations), explanations, seed=seed).values():
        assert len({text.lower().rstrip(".") for text in lent}) == len(lent)
    usual = {i: "commas and periods" if i else "dogs" for i in range(9)} | {9: "Commas and periods."}
    assert [text.lower().rstrip(".") for text in pick(range(10), usual, seed=seed)[0]] == ["commas and periods"]


def test_how_often_words_in_common_are_forgiven_is_logged(caplog):
    with caplog.at_level("INFO", "autointerp"):
        lenders(range(3), {0: "the word dog", 1: "two dogs", 2: "names of rivers"}, seed=0)
        assert not caplog.messages
        lenders(range(2), {0: "the word dog", 1: "two dogs"}, seed=0)
    assert "forgiven to 2 of 2 features" in caplog.messages[0]


def test_it_is_the_registered_control():
    assert controls.get("other_feature") is pick


TEXTS = ["dogs", "names of rivers", "colours", "the verb to run", "numbers in tables", "old coins", "weather", "prices"]
SPREAD = {i: f"{text} {i}" for i, text in enumerate(TEXTS * 5)}
relations = st.dictionaries(st.integers(0, 39), st.lists(st.integers(0, 39), max_size=4))


@settings(max_examples=30, deadline=None)
@given(relations, relations, st.integers(0, 5))
def test_neither_neighbours_nor_constituents_nor_explanations_of_the_same_words_are_lent(near, parts, seed):
    lent = lenders(sorted(SPREAD), SPREAD, neighbours=near, constituents=parts, seed=seed)
    assert lent.keys() == SPREAD.keys()
    for feature, others in lent.items():
        assert len(set(others)) == len(others) == 3
        for other in others:
            assert other not in near.get(feature, ())
            assert feature not in near.get(other, ())
            assert other not in parts.get(feature, ())
            assert feature not in parts.get(other, ())


def test_explanations_that_name_the_same_word_are_not_lent():
    texts = dict(enumerate(["the word dog", 'the words "dogs" and "cat"', *TEXTS[1:]]))
    for seed in range(10):
        assert 1 not in lenders(sorted(texts), texts, seed=seed)[0]
        assert 0 not in lenders(sorted(texts), texts, seed=seed)[1]


def test_donors_fire_about_as_often():
    frequencies = {i: 10.0 ** -(i % 4 + 1) for i in SPREAD}
    lent = lenders(sorted(SPREAD), SPREAD, frequencies=frequencies, seed=0)
    alike = [frequencies[f] == frequencies[o] for f, others in lent.items() for o in others]
    assert sum(alike) / len(alike) > 0.9
    free = lenders(sorted(SPREAD), SPREAD, seed=0)
    assert sum(frequencies[f] == frequencies[o] for f, others in free.items() for o in others) / 120 < 0.5


def test_every_explanation_is_lent_equally_often():
    lent = lenders(sorted(SPREAD), SPREAD, seed=0)
    assert set(Counter(o for others in lent.values() for o in others).values()) == {3}


def test_a_feature_whose_every_other_is_a_neighbour_goes_without():
    texts = {0: "dogs", 1: "cats", 2: "names"}
    assert 0 not in pick([0, 1, 2], texts, neighbours={0: [1, 2]}, seed=0)


@pytest.mark.parametrize("donors", [1, 3, 5])
def test_the_mean_of_a_control_is_as_certain_as_its_interval_says(donors):
    """Explanations differ by .15, features by .1 and the rest by .2: the mean over 100 features is 0."""
    rng = np.random.default_rng(0)
    words = {f: "".join(chr(97 + int(digit)) for digit in f"{f:03d}") for f in range(100)}
    lent = lenders(range(100), words, donors, seed=0)
    told = np.array([lent[f] for f in range(100)])
    plain = allowed = of_difference = 0
    for _ in range(600):
        explanations = rng.normal(0, 0.15, 100)
        scores = explanations[told] + rng.normal(0, 0.1, (100, 1)) + rng.normal(0, 0.2, told.shape)
        control = scores.mean(1)
        own = (
            rng.normal(0, 0.25, 100) - explanations
        )  # what fits its own feature well fits others badly: the worst case
        for low, high in [stats.mean_interval(control)]:
            plain += low <= 0 <= high
        for low, high in [stats.shared_interval(control, told)]:
            allowed += low <= 0 <= high
        for low, high in [stats.shared_interval(own - control, np.column_stack([np.arange(100), told]))]:
            of_difference += low <= 0 <= high
    assert 0.92 <= allowed / 600 <= 0.98
    assert 0.91 <= of_difference / 600 <= 0.98
    assert plain / 600 >= 0.92 if donors == 1 else plain / 600 < 0.91
