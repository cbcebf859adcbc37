"""Explainers that see a composite's constituents."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.explainers import constituents
from autointerp.plugins import bind_options, explainers, needs
from autointerp.records import Completion, Constituent, Context, FeatureEvidence


def window(feature, word, split="train"):
    return Context(feature, 0, split, "activating", 0, 0, 0, ("A", f" {word}", " here"), (0.0, 2.0, 0.0))


def evidence(*parts):
    shown = (window(3, "axiom"), window(3, "lemma"))
    return FeatureEvidence(3, 100, 0.01, 2.0, shown, (), (), constituents=parts)


G = Constituent(7, 0.6, "the word the", contexts=(window(7, "the"),))
H = Constituent(8, 0.2, "mathematical prose", contexts=(window(8, "proof"),))
SILENT = Constituent(9, 0.5, None, failure="too rare")


class Says:
    model, capabilities = "says", frozenset()

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    async def complete(self, messages, **_):
        self.asked.append(messages)
        return self.answers.pop(0)


async def test_the_conjunction_joins_what_the_parts_are_said_to_be():
    both = await constituents.conjunction(evidence(G, H), None)
    assert both.text == "both the word the and mathematical prose"
    three = await constituents.conjunction(evidence(G, H, Constituent(1, 0.1, "a title.")), None)
    assert three.text == "all of the word the, mathematical prose and a title"
    either = await constituents.disjunction(evidence(G, H), None)
    assert either.text == "either the word the or mathematical prose"


async def test_a_part_without_an_explanation_is_named_with_its_reason():
    llm = Says()
    for said in (
        await constituents.conjunction(evidence(G, SILENT), None),
        await constituents.explain(evidence(G, SILENT), llm, seed=0),
    ):
        assert (said.text, said.failure) == (None, "constituent 9: too rare")
    assert not llm.asked
    assert "no constituents" in str((await constituents.conjunction(evidence(), None)).failure)


async def test_the_model_sees_the_parts_their_shares_and_contexts_and_those_of_the_whole():
    llm = Says(Completion("EXPLANATION: the word the, when mathematics is written"))
    said = await constituents.explain(evidence(G, H), llm, seed=0)
    assert said.text == "the word the, when mathematics is written"
    asked = llm.asked[0][-1].content
    for part in ("(75 %): the word the", "(25 %): mathematical prose", "A «proof» here", "A «axiom» here"):
        assert part in asked
    assert asked.index("«proof»") < asked.index("«axiom»")


async def test_an_unreadable_answer_is_asked_for_again_and_a_failure_is_kept():
    llm = Says(Completion("hm"), Completion(None, failure="the endpoint is down"))
    said = await constituents.explain(evidence(G, H), llm, seed=0)
    assert (said.text, said.failure, said.raw) == (None, "the endpoint is down", "hm")


@given(st.lists(st.text(min_size=1, max_size=30).filter(lambda s: s.strip(". ")), min_size=2, max_size=3))
async def test_every_part_s_words_stand_in_the_conjunction(texts):
    said = await constituents.conjunction(evidence(*(Constituent(i, 1.0, t) for i, t in enumerate(texts))), None)
    assert said.text is not None
    assert all(text.rstrip(". ") in said.text for text in texts)


def test_they_are_registered_and_their_options_are_checked():
    joined, asked = explainers.get("conjunction"), explainers.get("constituents")
    assert "constituents" in needs(joined)
    assert "constituents" in needs(asked)
    assert "constituents" not in needs(explainers.get("default"))
    assert ("llm" in needs(joined), "llm" in needs(asked)) == (False, True)
    assert bind_options("explainer", "conjunction", joined, {"pair": "random"}, 0) == {"pair": "random"}
    with pytest.raises(Exception, match="option 'pair'"):
        bind_options("explainer", "conjunction", joined, {"pair": "any"}, 0)
