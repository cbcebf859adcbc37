"""The campaign's figures, on a run whose scores and judgements are planted."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import autointerp as ai
from autointerp.tables import write_rows

JUDGES = ["detection by large", "detection by small"]
KNOWS = {"default": 2.0, "token_stats": 1.0}  # how far evidence of firing windows lies above that of silent ones
FEATURES, WINDOWS = 20, 40


@pytest.fixture(scope="module")
def campaign(benchmark: Callable[[str], Any]) -> Any:
    return benchmark("campaign")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ai.Run:
    """`small` says what `large` says and a little noise; lexical is told for all; one feature has no explanation."""
    folder, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    scores: list[dict[str, Any]] = []
    judgements: list[dict[str, Any]] = []
    for feature in range(FEATURES):
        for explainer, known in KNOWS.items():
            truth = np.arange(WINDOWS) % 2
            heard = known * truth + rng.normal(0, 1, WINDOWS)
            for judge in JUDGES:
                evidence = 1 / (1 + np.exp(-heard - 3 * (judge == JUDGES[0]) - rng.normal(0, 0.1, WINDOWS)))
                names = {"feature": feature, "explainer": explainer, "scorer": judge}
                lost = feature == 3 and explainer == "default"
                scores.append(names | {"corrected": None if lost else known / 4 + feature / 100, "value": 0.5})
                scores.append(names | {"control": "other_feature", "corrected": 0.0, "value": 0.5})
                judgements += [
                    names
                    | {
                        "example": i,
                        "truth": float(t),
                        "probability": float(p),
                        "prediction": float(p >= 0.5),
                        "status": "ok",
                    }
                    for i, (t, p) in enumerate(zip(truth, evidence))
                    if not lost
                ]
            own = {"feature": feature, "explainer": explainer, "scorer": "lexical", "corrected": 0.3, "value": 0.6}
            scores.append(own)
    explanations = [
        {"feature": f, "explainer": e, "status": "ok", "prompt_tokens": None if e == "token_stats" else 100 + f}
        for f in range(FEATURES)
        for e in KNOWS
    ]
    write_rows(folder / "explanations.parquet", "explanations", explanations)
    write_rows(folder / "scores.parquet", "scores", scores)
    write_rows(folder / "judgements.parquet", "judgements", judgements)
    write_rows(folder / "features.parquet", "selection", [{"feature": f, "status": "ok"} for f in range(FEATURES)])
    return ai.Run(folder)


@pytest.fixture(scope="module")
def report(campaign: Any, run: ai.Run) -> dict[str, Any]:
    return campaign.summary(run, JUDGES)


def test_means_count_what_is_missing_and_stand_beside_control_and_ceiling(report: dict[str, Any]):
    row = next(row for row in report["means"] if (row["scorer"], row["explainer"]) == (JUDGES[0], "default"))
    assert row["corrected"]["n"] == FEATURES - 1
    assert row["corrected"]["missing"] == 1
    assert row["corrected, missing as chance"] < row["corrected"]["mean"]
    assert row["control other_feature"]["mean"] == 0
    assert [r["corrected"]["mean"] for r in report["means"] if r["scorer"] == "lexical"] == [0.3]


def test_what_an_explanation_takes_stands_beside_what_it_scores(campaign: Any, report: dict[str, Any], tmp_path: Path):
    assert [(row["explainer"], row["prompt_tokens"]) for row in report["explaining"]] == [
        ("default", 110),
        ("token_stats", 0),
    ]
    campaign.write({"command": "c", "whole": True} | report, tmp_path)
    assert "| default | 110 | 0 |" in (tmp_path / "campaign.md").read_text()


def test_explainers_and_ceilings_are_paired(report: dict[str, Any]):
    gap = next(r for r in report["differences"] if r["b"] == "token_stats" and r["measure"] == "corrected")
    assert gap["difference"] == pytest.approx(0.25)
    above = next(r for r in report["against ceilings"] if r["scorer"] == JUDGES[0])
    assert (above["b"], above["n"], above["dropped"]) == ("lexical", FEATURES - 1, 1)
    assert above["difference"] == pytest.approx(0.2 + 0.095, abs=0.01)


def test_one_explainer_without_a_control_has_its_means_and_no_differences(campaign: Any, run: ai.Run, tmp_path: Path):
    for name in ("explanations", "features", "judgements", "scores"):
        table: Any = pd.read_parquet(run.folder / f"{name}.parquet")
        if "explainer" in table:
            table = table[table["explainer"] == "default"]
        if "control" in table:
            table = table[table["control"].isna()]
        table.to_parquet(tmp_path / f"{name}.parquet")
    alone = campaign.summary(ai.Run(tmp_path), JUDGES)
    assert alone["differences"] == []
    assert [row["explainer"] for row in alone["means"]] == ["default", "default", None]


def test_a_judge_s_habit_of_yes_spoils_kappa_at_a_half_alone(report: dict[str, Any]):
    (row,) = report["agreement"]
    assert row["kappa at the base rate"] > 0.85
    assert row["kappa at ½"] < 0.4
    assert row["spearman, default"]["mean"] == pytest.approx(1)


def test_the_variance_is_not_the_judges(report: dict[str, Any]):
    *alone, both = report["variance"]
    assert [len(split["judges"]) for split in (*alone, both)] == [1, 1, 2]
    for split in (*alone, both):
        assert (split["features"], split["left out"]) == (FEATURES - 1, 1)
        shares = split["shares of a score on all windows"]
        assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
        assert shares.get("judge", 0) < 0.05 < shares["explainer"]


def test_the_files_say_the_same(campaign: Any, report: dict[str, Any], tmp_path: Path):
    campaign.write({"command": "x", "whole": False} | report, tmp_path)
    assert json.loads((tmp_path / "campaign.json").read_text())["asked"] == FEATURES
    text = (tmp_path / "campaign.md").read_text()
    assert "(not done yet)" in text
    assert "| lexical | – | 0.600" in text
    assert (tmp_path / "campaign.png").read_bytes().startswith(b"\x89PNG")


def test_settings_name_each_judge_once(campaign: Any):
    asked = {"features": 7, "ids": [], "windows": 20, "donors": 1, "controls": ["other_feature"]}
    asked |= {"set": ["subject.hook=blocks.3.hook_resid_post", "sae={load: other}"]}
    options = SimpleNamespace(base_url="http://h/v1", explainers=["default"], judges=["a/b", "c"], **asked)
    given = campaign.settings(options)
    assert given["subject.hook"].startswith("blocks.3")
    assert given["sae"] == {"load": "other"}
    assert [scorer["label"] for scorer in given["scorers"][:2]] == ["detection by b", "detection by c"]
    assert given["scorers"][0]["llm"] == {"model": "a/b", "base_url": "http://h/v1"}
    assert given["controls"] == [{"name": "other_feature", "donors": 1}]
    assert sum(given[f"contexts.test_{kind}"] for kind in ("activating", "random", "near")) == 20


def test_the_time_limit_interrupts_and_gives_the_alarm_back(campaign: Any):
    before = signal.getsignal(signal.SIGALRM)
    with campaign.time_limit(0.05) as within:
        while True:
            time.sleep(0.01)
    assert within.over
    assert signal.getsignal(signal.SIGALRM) is before
    with pytest.raises(KeyboardInterrupt), campaign.time_limit(60):
        raise KeyboardInterrupt


def test_answers_are_said_to_add_to_counts_what_counts_do_not_tell(campaign: Any) -> None:
    rng = np.random.default_rng(1)
    keys = pd.MultiIndex.from_product([range(30), range(WINDOWS)], names=["feature", "example"])
    truth = np.tile(np.arange(WINDOWS) % 2, 30)

    def evidence(known: float) -> Any:
        return 1 / (1 + np.exp(-known * (2 * truth - 1) - rng.normal(0, 1, len(truth))))

    counts = evidence(0.5)
    log_odds = campaign.log_odds(evidence(0.5))
    second = {
        "repeats": campaign.log_odds(counts), "knows": log_odds, "noise": campaign.log_odds(evidence(0.0)),
        "says Yes": log_odds + 8, "says Yes of some": log_odds + 4 * (keys.get_level_values("feature") % 3),
        "says the same": np.full(len(truth), 2.0),
    }  # fmt: skip
    table = pd.DataFrame({"truth": truth, "counts": counts.round(1)} | second, index=keys)  # with ties
    gains = {name: campaign.added(table, "counts", name) for name in second}
    assert gains["knows"].low > 0.05
    assert gains["says Yes"].mean == pytest.approx(gains["knows"].mean) == gains["says Yes of some"].mean
    assert gains["says the same"].mean == 0
    assert abs(gains["repeats"].mean) < 0.02  # it breaks ties as it should
    assert abs(gains["noise"].mean) < 0.02
