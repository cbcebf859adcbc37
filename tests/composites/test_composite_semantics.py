"""The judge who says whether one description entails another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.answers import parse_yes_no
from autointerp.composites.semantics import entails
from autointerp.records import Choices, Completion


class Judge:
    model = "judge"

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []
        self.capabilities = frozenset({"choices"}) if isinstance(answers[0], Choices) else frozenset()

    async def choose(self, messages, answers):
        self.asked.append((messages, answers))
        return self.answers.pop(0)

    async def complete(self, messages, **_):
        self.asked.append((messages, _))
        return self.answers.pop(0)


async def test_a_judge_with_probabilities_is_asked_for_them_once():
    judge = Judge(Choices((0.6, 0.2), mass=0.8))
    assert (await entails("red cars", "cars", judge)).probability == pytest.approx(0.75)
    (asked, answers) = judge.asked[0]
    assert answers == ("Yes", "No")
    assert asked[-1].content.index("red cars") < asked[-1].content.rindex("cars")


async def test_a_judge_that_wants_to_say_something_else_is_not_read():
    said = await entails("a", "b", Judge(Choices((0.01, 0.01), mass=0.02)))
    assert said.probability is None
    assert "wanted to say something else" in str(said.failure)


async def test_words_are_read_strictly_and_asked_for_once_more():
    assert (await entails("a", "b", Judge(Completion("maybe"), Completion("No.")))).probability == 0.0
    lost = await entails("a", "b", Judge(Completion("maybe"), Completion("perhaps, yes")))
    assert lost.probability is None
    assert "neither Yes nor No" in str(lost.failure)
    assert (await entails("a", "b", Judge(Completion(None, failure="dead")))).failure == "dead"


@pytest.mark.parametrize("text", ["Yes", "yes, it does", "**Yes**", "Answer: Yes", "<think>no?</think>\nYes."])
def test_yes_is_read(text):
    assert parse_yes_no(text) is True


@pytest.mark.parametrize("text", ["Yes and no", "**Yes or No?** Yes", "No idea.", "no answer"])
def test_what_only_begins_like_an_answer_is_none(text):
    assert "neither Yes nor No" in str(parse_yes_no(text))


@given(st.text())
def test_any_text_is_an_answer_or_a_reason(text):
    said = parse_yes_no(text)
    assert isinstance(said, str) or ("yes" if said else "no") in text.casefold()
    assert isinstance(parse_yes_no("I have no idea: " + text), str)
