"""Output tokens, steering and ablation: which of a few numbered options is the feature's?"""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from autointerp import stats
from autointerp.errors import ConfigError
from autointerp.records import Choices, Completion, OutputEffects
from autointerp.scorers import ablation, output_tokens, steering
from autointerp.scorers.picking import about_effects

EFFECTS = OutputEffects(
    tuple(f"own{i}" for i in range(10)), tuple(tuple(f"f{other}w{i}" for i in range(10)) for other in range(6))
)


class Judge:
    """Picks the option that holds most of some words; none of them: the first."""

    model = "judge"

    def __init__(self, knows: str, capabilities: tuple[str, ...] = ()) -> None:
        self.knows, self.capabilities, self.asked = knows, frozenset(capabilities), []

    def _fits(self, messages):
        self.asked.append(messages[-1].content)
        options = re.findall(r"^\d+\. (.*)$", messages[-1].content, re.MULTILINE)
        return [option.count(self.knows) for option in options]

    async def complete(self, messages, **wanted):
        fits = self._fits(messages)
        return Completion(str(fits.index(max(fits)) + 1))

    async def choose(self, messages, answers):
        fits = self._fits(messages)
        assert len(answers) == len(fits)
        return Choices(tuple((fit + 0.1) / sum(f + 0.1 for f in fits) for fit in fits), mass=1.0)


async def by_call():
    return EFFECTS


SCORERS = [
    (output_tokens, {"logit_effects": EFFECTS}),
    (steering, {"steered": by_call}),
    (ablation, {"ablated": by_call}),
]


@pytest.mark.parametrize(("module", "given"), SCORERS)
@pytest.mark.parametrize("capabilities", [(), ("choices",)])
async def test_a_judge_who_knows_the_effects_is_always_right(module, given, capabilities, held_out) -> None:
    score = await module.score("x", held_out, Judge("own", capabilities), seed=0, **given)
    assert (score.value, score.chance, score.corrected) == (1.0, 0.25, 1.0)
    assert score.n_scored == len(score.judgements) == 8
    assert score.low < 1.0


@pytest.mark.parametrize(("module", "given"), SCORERS)
async def test_a_judge_who_sees_no_difference_is_at_chance(module, given, held_out) -> None:
    score = await module.score("x", held_out, Judge("nothing", ("choices",)), seed=0, **given)
    assert score.value == pytest.approx(score.chance)
    assert score.corrected == pytest.approx(0)


@pytest.mark.parametrize(("module", "given"), SCORERS)
async def test_an_answer_that_names_no_option_is_unscored_with_its_reason(module, given, held_out) -> None:
    judge = Judge("own")
    judge.complete = lambda *_, **__: _said("1 or 2")
    score = await module.score("x", held_out, judge, seed=0, reask=1, **given)
    assert (score.value, score.n_unscored) == (None, 8)
    assert "names no one text" in score.failure


@pytest.mark.parametrize(("said", "value"), [("<think>Not 1, 2 or 3.</think>\n4", 0.25), ("<think>\nOkay, 4 is", None)])
async def test_numbers_in_a_reasoning_model_s_thoughts_are_no_answer(said, value, held_out) -> None:
    judge = Judge("own")
    judge.complete = lambda *_, **__: _said(said)
    score = await output_tokens.score("x", held_out, judge, logit_effects=EFFECTS, seed=0)
    assert score.value == value
    assert value or "only reasoning" in score.failure


async def test_a_judge_who_would_say_no_number_is_unscored_whatever_its_odds(held_out) -> None:
    judge = Judge("own", ("choices",))
    judge.choose = lambda *_: _chose(Choices((0.97, 0.01, 0.01, 0.01), mass=0.01))
    score = await output_tokens.score("x", held_out, judge, logit_effects=EFFECTS, seed=0)
    assert (score.value, score.n_unscored) == (None, 8)
    assert "a probability of 0.01" in score.failure


async def _chose(heard):
    return heard


async def _said(text):
    return Completion(text)


def test_the_own_stands_at_each_place_equally_often() -> None:
    questions = about_effects(EFFECTS, kind="output", questions=12, shown=4, part=3, rng=random.Random(0))
    assert Counter(question.place for question in questions) == dict.fromkeys(range(4), 3)
    for question in questions:
        assert ["own" in option for option in question.options] == [i == question.place for i in range(4)]


def test_each_other_feature_stands_in_equally_many_questions() -> None:
    questions = about_effects(EFFECTS, kind="output", questions=8, shown=4, part=3, rng=random.Random(0))
    assert Counter(other for question in questions for other in question.shows) == dict.fromkeys(range(6), 4)
    for question in questions:
        named = {int(option[1]) for option in question.options if "own" not in option}
        assert named == question.shows


async def test_questions_that_fail_for_one_list_are_no_independent_failures(held_out) -> None:
    """The judge is right except beside one feature: eight questions of twelve, but one thing that went wrong."""
    judge = Judge("own")
    judge._fits = lambda messages: [
        10 * option.count("f0w") + option.count("own")
        for option in re.findall(r"^\d+\. (.*)$", messages[-1].content, re.MULTILINE)
    ]
    score = await output_tokens.score("x", held_out, judge, logit_effects=EFFECTS, questions=12, seed=0)
    assert score.value == 0.5
    low, high = stats.share_interval(6, 12)
    assert score.low < low - 0.05
    assert score.high > high + 0.05


def test_lists_that_share_tokens_with_the_own_are_shown_last() -> None:
    overlapping = OutputEffects(EFFECTS.own, (*EFFECTS.others[:3], EFFECTS.own[:1] + EFFECTS.others[4][1:]))
    for question in about_effects(overlapping, kind="output", questions=8, shown=4, part=10, rng=random.Random(0)):
        assert sum("own0" in option.split(" | ") for option in question.options) == 1


@pytest.mark.parametrize("effects", [OutputEffects((), EFFECTS.others), OutputEffects(EFFECTS.own, EFFECTS.others[:2])])
async def test_without_effects_there_is_a_reason_and_no_value(effects, held_out) -> None:
    judge = Judge("own")
    score = await output_tokens.score("x", held_out, judge, logit_effects=effects, seed=0)
    assert (score.value, score.n_scored, judge.asked) == (None, 0, [])
    assert "too few other features" in score.failure


async def test_more_options_than_digits_is_one_line(held_out) -> None:
    with pytest.raises(ConfigError, match="2 to 9"):
        await output_tokens.score("x", held_out, Judge("own"), logit_effects=EFFECTS, shown=10, seed=0)
