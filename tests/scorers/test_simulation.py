import json
import random
from dataclasses import replace

import pytest

from autointerp.errors import AutointerpError, ConfigError
from autointerp.records import Choices, Completion
from autointerp.scorers.simulation import score


class Simulator:
    """`rule` gives 0 to 1 for a token; `garble` may spoil the pairs of an answer."""

    model = "simulator"

    def __init__(self, rule, slots, garble=lambda pairs, attempt: json.dumps({"pairs": pairs})):
        self.rule, self.garble, self.calls = rule, garble, 0
        self.capabilities = frozenset({"choices", "slots"} if slots else ())

    async def fill(self, messages, segments, filler, answers):
        self.calls += 1
        assert len({answer[0] for answer in answers}) == len(answers)
        at = [round(self.rule(segment.strip("\n\t")) * (len(answers) - 1)) for segment in segments]
        return [Choices(tuple(float(i == place) for i in range(len(answers)))) for place in at]

    async def complete(self, messages, *, attempt=0, **wanted):
        self.calls += 1
        tokens = json.loads(messages[-1].content.partition("Tokens: ")[2])
        answer = self.garble([[token, round(10 * self.rule(token))] for token in tokens], attempt)
        return answer if isinstance(answer, Completion) else Completion(answer)


def knows(token):
    return 0.6 * (token == " dog")


both = pytest.mark.parametrize("slots", [True, False])


@both
async def test_a_simulator_who_knows_the_rule_correlates(held_out, slots):
    simulator = Simulator(knows, slots)
    level = [
        replace(c, activations=tuple(min(a, 1.0) * (1 + 0.05 * c.quantile) if a else 0.0 for a in c.activations))
        for c in held_out
    ]
    got = await score("dogs", level, simulator, seed=0)
    assert got.value > 0.95
    assert got.low <= got.value <= got.high
    assert (got.n_scored, got.n_unscored, got.base_rate, simulator.calls) == (50, 0, 0.5, 50)
    assert got.metrics["pearson"] == got.value
    assert got.metrics["n_tokens"] == 50 * 9
    kinds = [j.kind for j in got.judgements]
    assert kinds.count("activating") == 25
    assert {kinds.count("near"), kinds.count("random")} == {12, 13}
    assert sorted(j.quantile for j in got.judgements if j.kind == "activating") == [
        q for q in range(5) for _ in range(5)
    ]


@both
async def test_a_simulator_blind_to_the_rule_does_not(held_out, slots):
    values = []
    for seed in range(6):
        rng = random.Random(seed)
        got = await score("dogs", held_out, Simulator(lambda token, rng=rng: rng.random(), slots), seed=seed)
        values.append(got.value)
    assert abs(sum(values) / len(values)) < 0.1


@both
async def test_judgements_hold_true_and_predicted_activations_token_by_token(held_out, slots):
    got = await score("dogs", held_out, Simulator(lambda token: float(token == " dog"), slots), seed=0)
    by_example = {c.example: c for c in held_out}
    for j in got.judgements:
        c = by_example[j.example]
        assert j.truths == c.activations
        assert j.predictions == tuple(10.0 * (token == " dog") for token in c.tokens)
        assert (j.truth, j.prediction) == (c.peak, 10.0 * c.fires)


@both
async def test_a_constant_prediction_scores_0_and_says_so(held_out, slots):
    got = await score("dogs", held_out, Simulator(lambda token: 0.0, slots), seed=0)
    assert (got.value, got.corrected, got.low, got.failure) == (0.0, 0.0, None, None)
    assert got.metrics["constant"] == 1
    assert got.n_scored == 50


@both
async def test_few_sequences_have_a_value_and_no_interval(held_out, slots):
    got = await score("dogs", held_out, Simulator(knows, slots), sequences=8, seed=0)
    assert got.value > 0.5
    assert (got.low, got.high, got.metrics["constant"]) == (None, None, 0)


async def test_constant_true_activations_have_none_either(held_out):
    got = await score("dogs", held_out[50:], Simulator(lambda token: len(token) / 10, True), seed=0)
    assert "true activation is the same" in got.failure


async def test_a_sequence_that_does_not_line_up_is_unscored_and_never_shifted(held_out):
    def skip_one(pairs, attempt):
        del pairs[2]
        return json.dumps(pairs)

    spoilt = 0

    def sometimes(pairs, attempt):
        nonlocal spoilt
        if (attempt == 0 and pairs[-1][0] in (" 1", " 2", " 3")) or spoilt == 0:
            spoilt += 1
            return skip_one(pairs, attempt)
        return json.dumps(pairs)

    got = await score("dogs", held_out, Simulator(knows, False, skip_one), seed=0)
    assert (got.value, got.n_scored, got.n_unscored) == (None, 0, 50)
    assert "no sequence could be simulated: token 3 is" in got.failure
    assert all(j.predictions is None and j.status == "failed" for j in got.judgements)
    got = await score("dogs", held_out, Simulator(knows, False, sometimes), reask=0, seed=0)
    assert got.n_unscored == spoilt > 0
    assert got.value is not None


async def test_an_answer_that_does_not_line_up_is_asked_again(held_out):
    simulator = Simulator(knows, False, lambda pairs, attempt: json.dumps(pairs if attempt else pairs[1:]))
    got = await score("dogs", held_out, simulator, seed=0)
    assert (got.n_scored, got.n_unscored, simulator.calls) == (50, 0, 100)


async def test_slots_that_fail_or_are_too_few_leave_the_sequence_unscored(held_out):
    class Short(Simulator):
        async def fill(self, messages, segments, filler, answers):
            self.calls += 1
            slots = await super().fill(messages, segments, filler, answers)
            return slots[:-1] if self.calls < 4 else [Choices(None, failure="HTTP 500")] * len(slots)

    got = await score("dogs", held_out, Short(knows, True), seed=0)
    assert got.value is None
    assert {j.failure for j in got.judgements} == {"8 predictions for 9 tokens", "HTTP 500"}


@pytest.mark.parametrize(("masses", "scored"), [([0.01] * 9, False), ([0.01] + [0.99] * 8, True)])
async def test_a_sequence_is_unscored_where_the_judge_would_seldom_say_a_digit(held_out, masses, scored):
    simulator = Simulator(knows, True)
    fill = simulator.fill

    async def hesitant(*asked):
        return [replace(slot, mass=mass) for slot, mass in zip(await fill(*asked), masses)]

    simulator.fill = hesitant
    got = await score("dogs", held_out, simulator, seed=0)
    assert (got.n_scored, got.n_unscored) == ((50, 0) if scored else (0, 50))
    assert scored or "the digits together a probability of 0.01" in got.failure


async def test_an_expected_value_and_not_the_likeliest_digit_is_read(held_out):
    class Unsure(Simulator):
        async def fill(self, messages, segments, filler, answers):
            return [Choices((0.5, *[0.0] * 8, 0.5) if "dog" in s else (1.0, *[0.0] * 9)) for s in segments]

    got = await score("dogs", held_out, Unsure(knows, True), seed=0)
    assert {max(j.predictions) for j in got.judgements if j.truth} == {5.0}


async def test_modes_and_splits_are_checked(held_out):
    with pytest.raises(ConfigError, match="slots"):
        await score("dogs", held_out, Simulator(knows, False), mode="slots", seed=0)
    with pytest.raises(AutointerpError, match="train contexts"):
        await score("dogs", [replace(held_out[0], split="train")], Simulator(knows, True), seed=0)
