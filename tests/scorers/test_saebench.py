"""The SAEBench scorer: its sampling, what it makes of answers, and what a judge who says None gets."""

import random
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.errors import AutointerpError
from autointerp.records import Completion
from autointerp.scorers.saebench import read, sample, score


class Judge:
    """Answers with the numbers of the excerpts that `rule` holds for, as `say` writes them."""

    model, capabilities = "judge", frozenset()

    def __init__(self, rule, say=lambda numbers: ", ".join(numbers) or "None"):
        self.rule, self.say, self.prompts = rule, say, []

    async def complete(self, messages, *, attempt=0, **wanted):
        prompt = messages[-1].content
        self.prompts.append(prompt)
        return Completion(self.say([n for n, text in re.findall(r"^(\d+)\. (.*)$", prompt, re.M) if self.rule(text)]))


async def test_a_judge_who_knows_the_rule_is_right_of_all_fourteen(held_out):
    judge = Judge(lambda text: " dog" in text)
    got = await score("dogs", held_out, judge, seed=0)
    assert (got.value, got.corrected, got.n_scored, got.n_unscored) == (1.0, 1.0, 14, 0)
    assert got.base_rate == pytest.approx(4 / 14)
    assert len(judge.prompts) == 1
    assert {j.kind for j in got.judgements} == {"activating", "random"}


async def test_a_judge_who_says_none_gets_five_sevenths_and_nothing_above_chance(held_out):
    got = await score("dogs", held_out, Judge(lambda text: False), seed=0)
    assert got.value == pytest.approx(10 / 14) == got.metrics["accuracy_of_none"]
    assert got.corrected == pytest.approx(0)
    assert got.yes_rate == 0


async def test_an_answer_that_cannot_be_read_is_asked_again_and_then_unscored(held_out):
    judge = Judge(lambda text: True, say=lambda numbers: "I think all of them")
    got = await score("dogs", held_out, judge, seed=0)
    assert got.value is None
    assert "neither numbers nor None" in got.failure
    assert (len(judge.prompts), got.n_unscored) == (2, 14)
    assert all(j.status == "failed" for j in got.judgements)


async def test_an_answer_is_read_behind_a_reasoning_model_s_thoughts(held_out):
    judge = Judge(lambda text: " dog" in text, say=lambda numbers: f"<think>1, 2?</think>\n{', '.join(numbers)}")
    assert (await score("dogs", held_out, judge, seed=0)).value == 1.0
    cut = await score("dogs", held_out, Judge(lambda text: True, say=lambda numbers: "<think>1, 2"), seed=0)
    assert "only reasoning" in cut.failure


async def test_too_few_windows_and_train_windows_are_told(held_out):
    got = await score("dogs", held_out[:55], Judge(lambda text: True), seed=0)
    assert got.value is None
    assert "raise contexts" in got.failure
    with pytest.raises(AutointerpError, match="train contexts"):
        await score("dogs", [replace(held_out[0], split="train")], Judge(lambda text: True), seed=0)


def test_windows_are_cut_around_their_peaks_and_the_strongest_are_there(held_out):
    long = [
        replace(c, tokens=(" x",) * 40 + c.tokens, activations=(0.0,) * 40 + c.activations) if c.fires else c
        for c in held_out
    ]
    items = sample(long, random.Random(0), top=2, weighted=2, silent=10, buffer=3)
    assert len(items) == 14
    assert sum(item.truth for item in items) == 4
    for item in items:
        assert (" dog" in item.text) == item.truth
        assert len(item.text.split()) <= 8
    strongest = {c.example for c in sorted((c for c in long if c.fires), key=lambda c: (-c.peak, c.example))[:12]}
    assert sum(item.context.example in strongest for item in items) == 2


@given(st.sets(st.integers(1, 14)), st.sampled_from([", ", ",", " and ", " ", ",  "]), st.sampled_from(["", ".", " "]))
def test_numbers_are_read_however_they_are_joined(numbers, comma, end):
    text = comma.join(map(str, sorted(numbers))) or "None"
    assert read(text + end, 14) == numbers


@pytest.mark.parametrize("text", ["", "none of them", "15", "0", "1, two", "1-3", "1; 2", "example 1"])
def test_anything_else_is_not_read(text):
    assert read(text, 14) is None
