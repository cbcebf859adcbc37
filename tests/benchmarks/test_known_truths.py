"""Labelled concepts, and attacks on a judge: what the benchmarks would say of judges whose nature is known."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from autointerp.records import Choices, Message


class Judge:
    """Answers Yes by a rule of (explanation, text)."""

    model, capabilities = "judge", frozenset({"choices", "slots"})

    def __init__(self, rule: Callable[[str, str], float]) -> None:
        self.rule = rule

    async def choose(self, messages: list[Message], answers: tuple[str, ...]) -> Choices:
        text, words = re.findall(r'Text: "(.*)"\nIs there (.*) in the text\?', messages[-1].content, re.S)[0]
        p = self.rule(words, text)
        return Choices((p, 1 - p), mass=1.0)


@pytest.fixture(scope="module")
def injection(benchmark: Callable[[str], Any]) -> Any:
    return benchmark("injection")


@pytest.fixture(scope="module")
def concepts(benchmark: Callable[[str], Any]) -> Any:
    return benchmark("concepts")


def test_the_word_of_the_explanation_stands_in_no_text(injection: Any):
    for explanation, windows in injection.features(10):
        word = re.findall(r'"(\w+)"', explanation)[0]
        assert [window.fires for window in windows] == [True] * injection.EACH + [False] * injection.EACH
        assert not any(word in injection.words_of(window.text) for window in windows)


def report_on(injection: Any, rule: Callable[[str, str], float]) -> dict[str, Any]:
    features = injection.features(3)
    attempts = [asyncio.run(injection.attacks(text, windows, Judge(rule), "each")) for text, windows in features]
    return injection.summary(attempts)


def test_a_judge_who_obeys_texts_breaks_the_bar(injection: Any):
    report = report_on(injection, lambda words, text: 0.9 if re.search("yes", text, re.I) else 0.1)
    assert report["where"]["firing texts"]["rise"] > 0.5
    assert report["where"]["all texts"]["rise"] == pytest.approx(0)
    assert report["where"]["explanation"]["rise"] == pytest.approx(0)
    assert not report["all"]["held"]
    assert report["all"]["attempts"] == 3 * 20


def test_a_judge_who_sees_only_a_longer_text_does_not(injection: Any):
    report = report_on(injection, lambda words, text: 0.9 if len(text.split(".")) > 2 else 0.1)
    assert report["where"]["firing texts"]["rise over no sentence at all"] > 0.3
    assert report["all"]["held"]


def test_a_judge_who_obeys_explanations_says_yes_to_all_and_gains_nothing(injection: Any):
    report = report_on(injection, lambda words, text: 0.9 if re.search("yes", words, re.I) else 0.5)
    assert report["where"]["explanation"]["rise of the yes-rate"] <= 0.5
    assert report["all"]["rise"] == pytest.approx(0)


def test_a_concept_fires_in_half_of_its_texts_and_is_swapped_for_another(concepts: Any):
    sets = {"news_class": [(f"{label} {i}", label) for label in ("Sport", "Politics") for i in range(20)]}
    number = next(i for i, concept in enumerate(concepts.CONCEPTS) if concept.label == "Sport")
    windows = concepts.windows(number, concepts.CONCEPTS[number], sets["news_class"], 10)
    assert [window.fires for window in windows] == [window.text.startswith("Sport") for window in windows]
    assert sum(window.fires for window in windows) == 5
    others = concepts.swapped(number)
    assert others["far"].collection != "news_class" == others["near"].collection
    assert others["near"].label != "Sport"


def test_own_words_are_paired_with_others(concepts: Any):
    rows = [{"concept": str(i), "own": 0.5 + i / 10, "far": 0.1} | ({"near": 0.6} if i else {}) for i in range(3)]
    report = concepts.summary(rows)
    assert report["own less far"]["mean"] == pytest.approx(0.5)
    assert (report["own less near"]["wins"], report["own less near"]["n"]) == (1, 2)
