from hypothesis import given
from hypothesis import strategies as st

from autointerp.controls.other_feature import pick
from autointerp.plugins import controls

texts = st.sampled_from(["dogs", "Dogs.", "cats", "names", "colours", "verbs"])


@given(st.dictionaries(st.integers(0, 50), texts), st.integers(0, 5))
def test_everyone_gets_the_explanation_of_another_or_none_where_there_is_no_other(explanations, seed):
    picked = pick(sorted(explanations), explanations, seed=seed)
    assert picked == pick(sorted(explanations), explanations, seed=seed)
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
    assert pick([1, 2, 99], explanations, seed=0) == {1: "text 2", 2: "text 1"}
    assert pick(range(30), explanations, seed=0) != pick(range(30), explanations, seed=1)


def test_it_is_the_registered_control():
    assert controls.get("other_feature") is pick
