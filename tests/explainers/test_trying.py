"""Explainers that try their explanations on train windows: best_of keeps what detects, revise mends what does not."""

import pytest

from autointerp.explainers import best_of, revise
from autointerp.records import Choices, Completion, Context, FeatureEvidence


def window(example, word, kind="activating", document=None, quantile=None):
    tokens = (" the", f" {word}", f" {example}")
    peak = float(kind == "activating")
    number = example if document is None else document
    return Context(3, example, "train", kind, quantile, number, 0, tokens, (0.0, peak, 0.0))


def evidence(**changes):
    words = ("dog", "wolf")
    fields = {
        "activating": tuple(window(i, words[i % 2], quantile=i % 5) for i in range(20)),
        "random": tuple(window(30 + i, "tree", "random") for i in range(10)),
        "near": tuple(window(50 + i, "cat", "near") for i in range(10)),
    }
    return FeatureEvidence(3, 20, 0.1, 1.0, **(fields | changes))


class Model:
    """Explains by a list of answers; judges that a text has what the explanation names."""

    model = "model"
    capabilities = frozenset({"choices", "slots"})

    def __init__(self, *answers):
        self.answers, self.asked, self.judged = list(answers), [], []

    async def complete(self, messages, **wanted):
        self.asked.append(messages[-1].content)
        return Completion(f"EXPLANATION: {self.answers.pop(0)}")

    async def choose(self, messages, answers):
        _, text, asked = messages[-1].content.split('"')
        self.judged.append(text)
        explanation = asked.strip().removeprefix("Is there ").removesuffix(" in the text?")
        yes = any(word in text for word in explanation.split(" or "))
        return Choices((0.9, 0.1) if yes else (0.1, 0.9), 1.0)


async def test_the_explanation_that_detects_best_is_kept():
    llm = Model("tree", "dog", "dog or wolf", "cat")
    got = await best_of.explain(evidence(), llm, candidates=4, seed=0)
    assert got.text == "dog or wolf"
    assert "1.000  dog or wolf" in got.raw
    assert len(llm.asked) == 4


async def test_no_window_that_validates_was_shown():
    llm = Model("tree", "dog", "cat")
    await best_of.explain(evidence(), llm, candidates=3, examples=20, seed=0)
    shown = [text for asked in llm.asked for text in asked.replace("«", "").replace("»", "").splitlines()]
    assert llm.judged
    assert not {text for text in llm.judged if any(text.strip() == line.split(". ")[-1] for line in shown)}


async def test_candidates_that_agree_are_not_judged_and_failures_are_left_out():
    llm = Model("dog", "dog")
    assert (await best_of.explain(evidence(), llm, candidates=2, seed=0)).text == "dog"
    assert llm.judged == []
    none = evidence(activating=())
    got = await best_of.explain(none, Model(), candidates=2, seed=0)
    assert "no train context" in got.failure


def test_the_halves_share_no_document_and_both_have_strong_and_weak_windows():
    feature = evidence(random=tuple(window(30 + i, "tree", "random", document=i) for i in range(10)))
    shown, held = best_of.deal(feature, 0)
    kept = [*shown.activating, *shown.random, *shown.near]
    assert not {c.document for c in kept} & {c.document for c in held}
    assert len(kept) + len(held) == 40
    for half in (shown.activating, [c for c in held if c.fires]):
        assert {c.quantile for c in half} == set(range(5))
    alone, none = best_of.deal(evidence(activating=(window(0, "dog"),)), 0)
    assert (len(alone.activating), none) == (1, [])


async def test_a_revision_sees_the_mistakes_and_is_kept_where_it_detects_better():
    llm = Model("tree or dog", "dog or wolf")
    got = await revise.explain(evidence(), llm, seed=0)
    assert got.text == "dog or wolf"
    missed, mistaken = llm.asked[1].split("It missed:")[1].split("It fitted wrongly:")
    assert "«wolf»" in missed
    assert "dog" not in missed
    assert "tree" in mistaken
    assert "cat" not in mistaken


async def test_a_worse_revision_is_dropped_and_a_right_explanation_is_not_revised():
    assert (await revise.explain(evidence(), Model("dog", "cat"), seed=0)).text == "dog"
    llm = Model("dog or wolf")
    assert (await revise.explain(evidence(), llm, seed=0)).text == "dog or wolf"
    assert len(llm.asked) == 1


@pytest.mark.parametrize("explain", [best_of.explain, revise.explain])
async def test_a_judge_that_fails_leaves_the_first_explanation(explain):
    class Silent(Model):
        async def choose(self, messages, answers):
            return Choices(None, failure="down")

    got = await explain(evidence(), Silent(*(f"dog {i}" for i in range(4))), seed=0)
    assert got.text == "dog 0"


def test_mistakes_are_those_of_the_ranking_not_of_a_judge_that_always_says_yes():
    truth = [True, True, True, False, False]
    assert revise.best_threshold(truth, [3.0, 2.5, 1.0, 1.5, 1.2], 0.0) == 2.5
    assert revise.best_threshold(truth, [1.0, 0.0, 1.0, 0.0, 0.0], 0.5) == 1.0
    assert revise.best_threshold(truth, [2.0] * 5, 0.0) == 0.0
    assert revise.best_threshold([], [], 0.5) == 0.5
