"""Surprisal: nats that an explanation gives to held-out texts."""

from __future__ import annotations

import pytest

from autointerp.errors import ConfigError
from autointerp.records import Weight
from autointerp.scorers import surprisal


class Model:
    """A text that holds the word of the prompt is 3 nats likelier; longer texts are less likely."""

    model = "model"

    def __init__(self, capabilities=("slots",), broken=()) -> None:
        self.capabilities, self.broken, self.asked = frozenset(capabilities), broken, []

    async def weigh(self, messages, text):
        self.asked.append((messages[-1].content, text))
        if any(word in text for word in self.broken):
            return Weight(None, failure="too long")
        told = [word for word in ("dog", "cat") if word in messages[-1].content]
        return Weight(-2.0 * len(text) + 3.0 * any(word in text for word in told), len(text.split()))


async def test_the_right_explanation_ranks_the_firing_texts_first(held_out) -> None:
    score = await surprisal.score("the word dog", held_out, Model(), seed=0)
    assert (score.value, score.n_scored, score.corrected) == (1.0, 100, 1.0)
    assert score.metrics["nats_firing"] == pytest.approx(3.0)
    assert score.metrics["nats_silent"] == pytest.approx(0.0)


async def test_an_explanation_that_is_not_there_tells_nothing(held_out) -> None:
    score = await surprisal.score("the word bird", held_out, Model(), seed=0)
    assert score.value == pytest.approx(score.chance)


async def test_a_wrong_explanation_is_below_chance(held_out) -> None:
    score = await surprisal.score("the word cat", held_out, Model(), seed=0)
    assert score.corrected < 0


async def test_the_reference_does_not_depend_on_the_explanation(held_out) -> None:
    model = Model()
    await surprisal.score("the word dog", held_out, model, seed=0)
    free = [prompt for prompt, _ in model.asked if "dog" not in prompt]
    assert len(free) == len(model.asked) / 2
    assert len(set(free)) == 1


async def test_a_text_that_cannot_be_weighed_is_unscored(held_out) -> None:
    score = await surprisal.score("the word dog", held_out, Model(broken=("cat",)), seed=0)
    assert (score.n_scored, score.n_unscored) == (75, 25)
    assert {j.failure for j in score.judgements if j.status == "failed"} == {"too long"}


async def test_windows_bound_what_is_asked(held_out) -> None:
    model = Model()
    score = await surprisal.score("the word dog", held_out, model, windows=20, seed=0)
    assert (score.n_scored, len(model.asked)) == (20, 40)


async def test_a_model_without_prompt_probabilities_is_one_line(held_out) -> None:
    with pytest.raises(ConfigError, match="probabilities of prompt tokens") as error:
        await surprisal.score("the word dog", held_out, Model(("choices",)), seed=0)
    assert "\n" not in str(error.value)
