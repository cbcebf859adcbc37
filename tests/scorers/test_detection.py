import json
import random
import re
from dataclasses import replace

import pytest

from autointerp.errors import AutointerpError, ConfigError
from autointerp.plugins import bind_options, scorers
from autointerp.records import Choices, Completion
from autointerp.scorers.detection import score


class Judge:
    """Sees what a judge sees. `rule` gives P(Yes) of a text; `spoil` may garble the answer to a list."""

    model = "judge"

    def __init__(self, rule, capabilities=(), spoil=lambda labels, attempt: json.dumps(labels)):
        self.rule, self.spoil, self.calls, self.prompts, self.before = rule, spoil, [], [], []
        self.capabilities = frozenset(capabilities)

    async def complete(self, messages, *, attempt=0, **wanted):
        prompt = messages[-1].content
        examples = re.findall(r"^(\d+)\. (.*)$", prompt, re.MULTILINE)
        self.calls.append((len(examples), attempt))
        self.prompts.append(prompt)
        answer = self.spoil({number: int(self.rule(text) >= 0.5) for number, text in examples}, attempt)
        return answer if isinstance(answer, Completion) else Completion(answer)

    async def choose(self, messages, answers):
        prompt = messages[-1].content
        self.calls.append((1, 0))
        self.prompts.append(prompt)
        self.before.append(messages[:-1])
        p = self.rule(re.search(r'^Text: "(.*)"$', prompt, re.MULTILINE)[1])
        return p if isinstance(p, Choices) else Choices((p, 1 - p), mass=0.9)


def knows(text):
    return float(" dog" in text)


LOCAL = ("choices", "slots")


@pytest.mark.parametrize("capabilities", [(), LOCAL])
async def test_a_judge_who_knows_the_rule_scores_1_with_an_honest_interval(held_out, capabilities):
    got = await score("dogs", held_out, Judge(knows, capabilities), seed=0)
    assert (got.value, got.high, got.n_scored, got.n_unscored, got.base_rate) == (1.0, 1.0, 100, 0, 0.5)
    assert 0.9 < got.low < 0.98
    assert got.corrected == 1.0
    assert {got.metrics[m] for m in ("auprc", "f1", "iou", "auroc", "balanced_accuracy", "accuracy")} == {1.0}
    assert got.metrics["auprc_near"] == got.metrics["auprc_random"] == 1.0
    assert got.metrics["base_rate_near"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("documents", [1, 3])
async def test_windows_of_too_few_documents_have_a_value_and_no_interval(held_out, documents):
    shared = [replace(c, document=c.example % documents) if c.fires else c for c in held_out]
    got = await score("dogs", shared, Judge(knows, LOCAL), stop_width=0.9, seed=0)
    assert (got.value, got.corrected, got.n_scored, got.failure) == (1.0, 1.0, 100, None), "all are asked about"
    assert (got.low, got.high) == (None, None)
    assert (got.metrics["corrected_low"], got.metrics["corrected_high"]) == (None, None)
    whole = await score("dogs", held_out, Judge(knows, LOCAL), stop_width=0.9, seed=0)
    assert whole.n_scored < 100


@pytest.mark.parametrize("rule", [lambda text: 1.0, lambda text: 0.0, lambda text: 0.5])
@pytest.mark.parametrize("capabilities", [(), LOCAL])
async def test_a_constant_judge_scores_the_base_rate(held_out, rule, capabilities):
    got = await score("dogs", held_out, Judge(rule, capabilities), seed=0)
    assert got.value == got.chance == pytest.approx(0.5)
    assert got.corrected == 0
    assert got.yes_rate in (0.0, 1.0)
    assert got.ece == pytest.approx(abs(rule("") - 0.5) if capabilities else 0.5)


@pytest.mark.parametrize("capabilities", [(), LOCAL])
async def test_a_judge_blind_to_the_rule_scores_about_the_base_rate(held_out, capabilities):
    values = []
    for seed in range(8):
        rng = random.Random(seed)
        got = await score("dogs", held_out, Judge(lambda text, rng=rng: rng.random(), capabilities), seed=seed)
        values.append(got.value)
    assert sum(values) / len(values) == pytest.approx(0.5, abs=0.06)


async def test_the_judge_sees_neither_marks_nor_activations_nor_kinds(held_out):
    judge = Judge(knows)
    await score("dogs", held_out, judge, seed=0)
    shown = "\n".join(judge.prompts)
    assert not re.search(r"«|»|activating|random|near|5\.0", shown)
    first = [text.count(" dog") for text in judge.prompts]
    assert all(5 <= n <= 20 for n in first)  # shuffled: no batch is of one class


async def test_what_stands_the_same_in_all_requests_comes_first(held_out):
    judge = Judge(knows, LOCAL)
    await score("dogs", held_out[:3], judge, seed=0)
    assert judge.before[0]
    assert all(before == judge.before[0] for before in judge.before)


async def test_n_unscored_is_what_malformed_answers_lost(held_out):
    rng = random.Random(0)
    lost = 0

    def spoil(labels, attempt):
        nonlocal lost
        for number in labels:
            if rng.random() < 0.1:
                labels[number] = rng.choice([2, "yes", None, 0.5])
                lost += 1
        return json.dumps(labels)

    got = await score("dogs", held_out, Judge(knows, spoil=spoil), reask=0, seed=0)
    assert 3 < lost == got.n_unscored
    assert got.n_scored == 100 - lost
    failed = [j for j in got.judgements if j.status == "failed"]
    assert len(failed) == lost
    assert all(j.prediction is None and "not 0 or 1" in j.failure for j in failed)
    assert got.value == 1.0  # what was lost counts neither as right nor as wrong


async def test_only_what_was_unreadable_is_asked_again(held_out):
    judge = Judge(knows, spoil=lambda labels, attempt: json.dumps(labels)[: 60 if attempt == 0 else None])
    got = await score("dogs", held_out, judge, seed=0)
    assert got.n_unscored == 0
    assert got.value == 1.0
    assert [n for n, attempt in judge.calls if attempt == 0] == [25] * 4
    assert all(0 < n < 25 for n, attempt in judge.calls if attempt == 1)


async def test_each_judgement_belongs_to_its_example_in_a_last_partial_batch_too(held_out):
    got = await score("dogs", held_out[:53], Judge(knows), batch=10, seed=3)
    assert [j.example for j in got.judgements] == list(range(53))
    assert all(j.prediction == j.truth for j in got.judgements)
    assert all(j.probability is None for j in got.judgements)


async def test_a_failed_request_leaves_its_examples_unscored_and_the_rest_stands(held_out):
    def spoil(labels, attempt):
        if len(judge.calls) == 2:
            return Completion(None, failure="HTTP 500", retryable=True)
        return json.dumps(labels)

    judge = Judge(knows, spoil=spoil)
    got = await score("dogs", held_out, judge, seed=0)
    assert (got.n_scored, got.n_unscored, got.value) == (75, 25, 1.0)
    assert {j.failure for j in got.judgements} == {None, "HTTP 500"}


@pytest.mark.parametrize("capabilities", [(), LOCAL])
async def test_nothing_judged_is_no_value_with_the_reason(held_out, capabilities):
    silent = Judge(
        lambda text: Choices(None, failure="HTTP 500"),
        capabilities,
        spoil=lambda *_: Completion(None, failure="HTTP 500"),
    )
    if not capabilities:
        silent.rule = knows
    got = await score("dogs", held_out, silent, seed=0)
    assert (got.value, got.low, got.high, got.n_scored, got.n_unscored) == (None, None, None, 0, 100)
    assert got.failure == "no example could be judged: HTTP 500"
    assert got.metrics == {}


@pytest.mark.parametrize(("part", "reason"), [(slice(50), "no silent example"), (slice(50, 100), "no firing example")])
async def test_one_class_alone_has_no_value(held_out, part, reason):
    got = await score("dogs", held_out[part], Judge(knows), seed=0)
    assert got.value is None
    assert reason in got.failure
    assert got.n_scored == 50
    assert all(j.status == "ok" for j in got.judgements)


async def test_no_examples_at_all_is_a_failure_too(held_out):
    assert (await score("dogs", [], Judge(knows), seed=0)).failure == "no example could be judged"


async def test_odds_rank_where_probabilities_have_rounded_to_1(held_out):
    def sure(text):
        return Choices((1.0, 1e-20 if " dog" in text else 1e-17))

    assert (await score("dogs", held_out, Judge(sure, LOCAL), seed=0)).value == 1.0


async def test_auto_asks_one_by_one_only_where_the_model_runs_here(held_out):
    api = Judge(knows, ["choices"])
    await score("dogs", held_out, api, seed=0)
    assert len(api.calls) == 4
    await score("dogs", held_out, api, mode="each", seed=0)
    assert len(api.calls) == 104
    with pytest.raises(ConfigError, match="token probabilities"):
        await score("dogs", held_out, Judge(knows), mode="each", seed=0)


async def test_train_contexts_are_refused(held_out):
    with pytest.raises(AutointerpError, match="train contexts"):
        await score("dogs", [*held_out, replace(held_out[0], split="train")], Judge(knows), seed=0)


def test_a_config_cannot_name_another_mode():
    with pytest.raises(ConfigError, match="mode"):
        bind_options("scorer", "detection", scorers.get("detection"), {"mode": "both"}, 0)
