import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.engine.estimate import rough_counter
from autointerp.errors import AutointerpError
from autointerp.explainers import default, token_stats, whole_words
from autointerp.explainers.words import form_of, token_uses, word_spans
from autointerp.plugins import bind_options, explainers, needs
from autointerp.prompting import render
from autointerp.records import Completion, Context, FeatureEvidence, Neighbour, TokenStat


def window(example, word, peak, quantile, split="train", kind="activating"):
    tokens = ("The", f" {word}", " sat", f" {example}")
    return Context(3, example, split, kind, quantile, example, 0, tokens, (0.0, peak, 0.0, 0.0))


def evidence(**changes):
    fields = {
        "feature": 3,
        "firings": 210,
        "train_firings": 100,
        "frequency": 0.01,
        "max_activation": 10.0,
        "activating": tuple(window(i, "dog", 10 - i / 3, 4 - i // 4) for i in range(20)),
        "random": tuple(window(30 + i, "tree", 0.0, None, kind="random") for i in range(5)),
        "near": tuple(window(40 + i, "cat", 0.0, None, kind="near") for i in range(5)),
        "token_stats": (
            TokenStat(" dog", 73, 80, 5.0),
            TokenStat(" the", 12, 9000, 0.1),
            TokenStat(" cat", 10, 10, 2.0),
        ),
        "logits_up": ((" bark", 1.0), (" tail", 0.5)),
    }
    return FeatureEvidence(**(fields | changes))


class Says:
    """Answers from a list, and keeps what it was asked."""

    model = "says"
    capabilities = frozenset()

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    async def complete(self, messages, **wanted):
        self.asked.append((messages, wanted))
        answer = self.answers.pop(0)
        return answer if isinstance(answer, Completion) else Completion(answer)


async def test_the_prompt_shows_a_spread_of_marked_contexts_and_the_tokens():
    llm = Says("EXPLANATION: dogs")
    got = await default.explain(evidence(), llm, examples=10, silent=4, promoted=1, seed=0)
    assert got.text == "dogs"
    asked = llm.asked[0][0][-1].content
    assert asked.count("The «dog» sat") == 10
    assert asked.count("The cat sat") == asked.count("The tree sat") == 2
    assert "«dog» 73 %, «the» 12 %" in asked
    assert '"bark"' in asked
    assert '"tail"' not in asked


async def test_the_prompt_of_whole_words_says_how_many_of_a_tokens_occurrences_fire():
    llm = Says("EXPLANATION: dogs")
    await whole_words.explain(evidence(), llm, examples=10, silent=4, promoted=1, seed=0)
    asked = llm.asked[0][0][-1].content
    assert asked.count("The «dog» sat") == 10
    assert "«dog» 73 % (73 of its 80 occurrences), «cat» 10 % (10 of 10), «the» 12 % (12 of 9000)" in asked


async def test_what_is_shared_by_all_features_comes_first():
    one, other = Says("EXPLANATION: a"), Says("EXPLANATION: b")
    await default.explain(evidence(), one, seed=0)
    await default.explain(evidence(feature=4, activating=(window(1, "fish", 1.0, 0),)), other, seed=0)
    assert one.asked[0][0][:-1] == other.asked[0][0][:-1]


def test_examples_come_from_every_quantile_evenly_and_by_the_seed():
    chosen = default.spread(evidence().activating, 12, random.Random(0))
    quantiles = [context.quantile for context in chosen]
    assert sorted(quantiles.count(q) for q in range(5)) == [2, 2, 2, 3, 3]
    assert [c.peak for c in chosen] == sorted((c.peak for c in chosen), reverse=True)
    assert chosen == default.spread(evidence().activating, 12, random.Random(0))
    assert chosen != default.spread(evidence().activating, 12, random.Random(1))


async def test_an_unreadable_answer_is_asked_again_and_then_kept_with_its_reason():
    llm = Says("one\ntwo", "EXPLANATION: dogs")
    assert (await default.explain(evidence(), llm, seed=0)).text == "dogs"
    assert [wanted["attempt"] for _, wanted in llm.asked] == [0, 1]
    assert [wanted["temperature"] > 0 for _, wanted in llm.asked] == [False, True]
    got = await default.explain(evidence(), Says("one\ntwo", "three\nfour"), seed=0)
    assert (got.status, got.raw) == ("failed", "three\nfour")
    assert "no line EXPLANATION" in got.failure


async def test_a_failed_request_is_a_failed_explanation():
    got = await default.explain(evidence(), Says(Completion(None, failure="rate limited")), seed=0)
    assert (got.text, got.failure) == (None, "rate limited")


async def test_a_feature_without_contexts_is_not_asked_about():
    llm = Says()
    assert "no train context" in (await default.explain(evidence(activating=()), llm, seed=0)).failure
    assert llm.asked == []


async def test_held_out_contexts_are_refused():
    with pytest.raises(AutointerpError, match="held-out"):
        await default.explain(evidence(random=(window(1, "x", 0.0, None, "test", "random"),)), Says(), seed=0)


async def test_the_baseline_is_a_plain_list_of_words_on_which_it_fires_specifically():
    assert (await token_stats.explain(evidence(), None)).text == "dog, cat"
    assert (await token_stats.explain(evidence(), None, min_specificity=0)).text == "dog, cat, the"
    assert (await token_stats.explain(evidence(), None, tokens=1)).text == "dog"
    assert (await token_stats.explain(evidence(), None, min_specificity=1.1)).text == "dog"  # better than nothing
    assert "no token makes up 90%" in (await token_stats.explain(evidence(), None, min_share=0.9)).failure
    assert (await token_stats.explain(evidence(token_stats=()), None)).status == "failed"


async def test_the_baseline_gives_shares_where_asked():
    got = await token_stats.explain(evidence(), None, form="shares")
    assert got.text == 'the tokens " dog" (73% of firings), " cat" (10% of firings)'


def fragments(*words, fires):
    """A context of words cut in two; the `fires`th half of each fires."""
    tokens = tuple(piece for word in words for piece in (f" {word[:3]}", word[3:]))
    return Context(
        3, 0, "train", "activating", 0, 0, 0, tokens, tuple(float(i % 2 == fires) for i in range(len(tokens)))
    )


async def test_fragments_are_named_and_marked_as_whole_words():
    seen = evidence(
        activating=(fragments("courage", "courteous", fires=0), fragments("courage", fires=0)),
        token_stats=(TokenStat(" cou", 9, 9, 1.0),),
        train_firings=9,
    )
    llm = Says("EXPLANATION: a")
    await whole_words.explain(seen, llm, seed=0)
    asked = llm.asked[0][0][-1].content
    assert "«courage courteous»" in asked
    assert "«cou» in courage, courteous 100 % (9 of its 9 occurrences)" in asked
    assert (await token_stats.explain(seen, None)).text == "courage, courteous"
    bare = Says("EXPLANATION: a")
    await whole_words.explain(seen, bare, whole_words=False, seed=0)
    assert "«cou»rage «cou»rteous" in bare.asked[0][0][-1].content


@given(st.lists(st.text(max_size=4), max_size=12))
def test_word_spans_cut_a_text_without_loss(tokens):
    spans = word_spans(tokens)
    assert [place for low, high in spans for place in range(low, high)] == list(range(len(tokens)))


def test_scripts_without_spaces_and_punctuation_are_not_joined():
    assert word_spans(["我", "们", " dog", "s", ".", "Then"]) == [(0, 1), (1, 2), (2, 4), (4, 5), (5, 6)]


async def test_neighbours_and_what_the_feature_writes_are_shown_where_asked():
    near = (
        Neighbour(9, 0.8, None, (window(50, "wolf", 1.0, 0), window(51, "fox", 1.0, 1), window(52, "elk", 1.0, 2))),
    )
    llm = Says("EXPLANATION: dogs", "EXPLANATION: dogs")
    seen = evidence(neighbours=near, logits_down=((" meow", -1.0),))
    await whole_words.explain(seen, llm, neighbours=1, suppressed=1, seed=0)
    asked = llm.asked[0][0][-1].content
    assert asked.count("«wolf»") + asked.count("«fox»") + asked.count("«elk»") == 2
    assert '"meow"' in asked
    await whole_words.explain(seen, llm, seed=0)
    assert "wolf" not in llm.asked[1][0][-1].content


def blank(**values):
    names = ("examples", "silent", "uses", "promoted", "suppressed", "neighbours")
    return dict.fromkeys(names, ()) | {"feature": None, "show_activations": False, "form": None} | values


def test_worked_cases_answer_in_different_forms():
    answers = [m.content for m in render("explain_words", **blank()) if m.role == "assistant"]
    assert len({answer.split()[1] for answer in answers}) == len(answers) == 5
    assert not any("the words" in answer for answer in answers)


async def test_the_hint_says_which_form_the_token_counts_ask_for():
    llm = Says(*["EXPLANATION: dogs"] * 3)
    await whole_words.explain(evidence(), llm, seed=0)
    await whole_words.explain(evidence(token_stats=(TokenStat(" the", 100, 9000, 1.0),)), llm, seed=0)
    await whole_words.explain(evidence(), llm, hint=False, seed=0)
    often, seldom, bare = (messages for messages, _ in llm.asked)
    assert often[-1].content.endswith("Nearly always this one word. Which?")
    assert "only in some places" in seldom[-1].content.splitlines()[-1]
    assert often[:-1] == seldom[:-1]
    assert not any("Which?" in message.content for message in bare)


@pytest.mark.parametrize(
    ("stats", "form"),
    [
        ([(" Such", 30, 31), (" such", 60, 60)], "word"),
        ([(" to", 90, 9000)], "when"),
        ([(" dog", 30, 40), (" cat", 20, 40), (" the", 20, 9000)], "kind"),
        ([(" the", 30, 9000), (" of", 30, 9000)], "topic"),
        ([], "topic"),
    ],
)
def test_the_form_follows_from_share_and_specificity(stats, form):
    seen = evidence(token_stats=tuple(TokenStat(*each, 1.0) for each in stats))
    assert form_of(token_uses(seen)) == form


async def test_typical_words_are_added_behind_the_phrase_unless_it_has_them():
    pets = (TokenStat(" dog", 50, 80, 5.0), TokenStat(" cat", 40, 40, 2.0), TokenStat(" the", 10, 9000, 0.1))
    llm = Says("EXPLANATION: pets.", "EXPLANATION: a dog or a Cat", Completion(None, failure="rate limited"))
    seen = evidence(token_stats=pets)
    assert (await whole_words.explain(seen, llm, words=3, seed=0)).text == "pets (cat, dog)"
    assert (await whole_words.explain(seen, llm, words=3, seed=0)).text == "a dog or a Cat"
    assert (await whole_words.explain(seen, llm, words=3, seed=0)).failure == "rate limited"


async def test_the_prompt_is_short_and_what_all_features_share_stands_first():
    window = Context(3, 0, "train", "activating", 0, 0, 0, (" word",) * 32, (0.0,) * 31 + (1.0,))
    long = evidence(activating=(window,) * 20)
    ask, other = Says("EXPLANATION: a"), Says("EXPLANATION: a")
    await whole_words.explain(long, ask, seed=0)
    await whole_words.explain(evidence(feature=4), other, seed=0)
    assert rough_counter(ask.asked[0][0]) < 1600
    assert ask.asked[0][0][:-1] == other.asked[0][0][:-1]


def test_both_are_registered_and_take_their_options_from_a_config():
    assert "llm" in needs(explainers.get("default"))
    assert "llm" not in needs(explainers.get("token_stats"))
    assert bind_options("explainer", "default", explainers.get("default"), {"examples": 3}, 7) == {
        "examples": 3,
        "seed": 7,
    }


async def test_shares_are_of_train_firings_where_tokens_are_counted():
    stats = (TokenStat(" dog", 30, 40, 1.0), TokenStat(" cat", 10, 40, 1.0))
    known = await token_stats.explain(evidence(token_stats=stats, train_firings=80), None, form="shares")
    assert known.text == 'the tokens " dog" (38% of firings), " cat" (12% of firings)'
    all_listed = await token_stats.explain(evidence(token_stats=stats, train_firings=None), None, form="shares")
    assert all_listed.text == 'the tokens " dog" (75% of firings), " cat" (25% of firings)'
