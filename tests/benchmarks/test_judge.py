"""The rules of benchmarks/judge.py, on sentences of the stories, with judges whose nature is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from autointerp.records import Context, Score
from autointerp.scorers.judging import Item, summarise

STORIES = Path(__file__).parents[1] / "data" / "stories.jsonl"


@pytest.fixture(scope="module")
def judge(benchmark: Callable[[str], Any]) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        return benchmark("judge")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    stories = [json.loads(line)["text"] for line in STORIES.read_text(encoding="utf-8").splitlines()]
    return sorted({part.strip() for story in stories for part in story.split(".") if part.strip()})[:1500]


def value(examples: list[Context], evidence: Callable[[str], float]) -> float | None:
    items = [Item.window(example) for example in examples]
    return summarise(items, [(evidence(example.text), None) for example in examples]).corrected


def test_half_of_a_rules_texts_follow_it(judge: Any, texts: list[str]):
    rules = judge.rules_of(texts)
    assert len(rules) == 8 + 2 * 6 + len(judge.CATEGORIES) + len(judge.FORMS)
    for number, rule in enumerate(rules):
        examples = judge.examples_of(number, rule, texts, 16)
        assert [example.fires for example in examples] == [rule.holds(example.text) for example in examples]
        assert 2 * sum(example.fires for example in examples) == len(examples)


def test_a_judge_who_follows_the_rule_scores_one_and_one_who_says_yes_to_all_scores_nothing(
    judge: Any, texts: list[str]
):
    for number, rule in enumerate(judge.rules_of(texts)):
        if examples := judge.examples_of(number, rule, texts, 16):
            assert value(examples, lambda text, rule=rule: float(rule.holds(text))) == pytest.approx(1)
            assert value(examples, lambda text: 1.0) == pytest.approx(0, abs=0.01)


def test_what_is_written_by_hand_is_paired_with_the_runs_own(judge: Any):
    values = {"default": 0.2, "token_stats": 0.1, "lexical_shown": 0.6, "lexical": 0.7}
    rows = [
        {"scorer": name if name in judge.COUNTS else "detection by q", "explainer": name, "feature": feature,
         "control": None, "corrected": corrected}
        for name, corrected in values.items() for feature in range(5)
    ]  # fmt: skip
    own = [{"feature": feature, "value": {"corrected": 0.5}} for feature in range(4)]
    report = judge.paired(own, SimpleNamespace(scores=pd.DataFrame(rows)))
    assert report["features"] == 4
    for name, other in values.items():
        assert report[f"less {name}"]["mean"] == pytest.approx(0.5 - other)


def test_every_explanation_by_hand_is_of_another_feature(judge: Any):
    rows = [json.loads(line) for line in judge.BY_HAND.read_text(encoding="utf-8").splitlines()]
    assert len({row["feature"] for row in rows}) == len(rows) == 20
    assert all(row["explanation"] for row in rows)


def test_a_value_keeps_what_ranks_and_what_decides(judge: Any):
    score = Score(0.7, None, None, 10, 0, 0.5, metrics={"auroc": 0.8}, corrected=0.4, yes_rate=0.9)
    assert judge.score_of(score) == {"corrected": 0.4, "auroc": 0.8, "yes_rate": 0.9}
