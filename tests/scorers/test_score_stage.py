"""What the stage `score` writes down, and what it tells when it is done."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from autointerp.config import PluginConfig
from autointerp.engine.stage import Job, Use
from autointerp.scorers import detection, floors
from autointerp.stages import calibrate, score
from autointerp.stages.explained import Explained
from autointerp.tables import write_rows


def concluded(folder: Path, rows: list[dict[str, Any]]) -> Job:
    given, session = SimpleNamespace(score=detection.score, control=None), None
    job = Job(session, Use("score/detection/default", given=given), folder, {})  # type: ignore[arg-type]
    write_rows(folder / "part-00000.scores.parquet", "scores", rows, {name for row in rows for name in row} & METRICS)
    score._conclude(job, len(rows))
    return job


METRICS = {"yes_rate_calibrated"}
ROW = {"n_scored": 9, "n_unscored": 0, "yes_rate": 0.5}


def test_how_many_features_have_no_calibrated_answers_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [ROW | {"feature": f, "value": 0.5, "yes_rate_calibrated": 0.5 if f else None} for f in range(3)]
    lost = {"feature": 3, "value": None, "failure": "HTTP 500", "n_scored": 0, "n_unscored": 9}
    with caplog.at_level("WARNING", "autointerp"):
        job = concluded(tmp_path, [*rows, lost])
    assert job.facts["uncalibrated"] == 1
    assert sum("no calibrated answers for 1 of 4 features" in line for line in caplog.messages) == 1
    assert pq.read_table(tmp_path / "scores.parquet")["yes_rate_calibrated"].null_count == 2


def test_where_no_judge_is_calibrated_nothing_is_said_of_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "autointerp"):
        job = concluded(tmp_path, [ROW | {"feature": f, "value": 0.5} for f in range(3)])
    assert "uncalibrated" not in job.facts
    assert not caplog.messages


async def test_a_score_without_an_explanation_says_whose_is_missing(tmp_path: Path) -> None:
    told = [{"feature": 1, "explanation": "dogs", "status": "ok"}, {"feature": 2, "status": "failed", "failure": "cut"}]
    write_rows(tmp_path / "explanations.parquet", "explanations", told)
    job = Job(None, Use("score/constant/default/nobody"), tmp_path, {"contexts": tmp_path})  # type: ignore[arg-type]
    plugin = PluginConfig(name="position")
    given = score.Scoring(plugin, floors.position, {}, {}, "default", "nobody", lambda features, explanations: {})
    _, scored = score._scoring(job, given, Explained(tmp_path))
    rows = [(await scored(feature, ([], {}))).tables["scores"][0] for feature in (1, 2)]
    assert [row["failure"] for row in rows] == ["no other explanation to compare with", "no explanation: cut"]


async def test_a_judge_that_cannot_be_calibrated_on_a_feature_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pairs(explanation: str, examples: Any, llm: Any, *, most: int) -> list[tuple[bool, float]]:
        raise ValueError("no such window")

    monkeypatch.setattr("autointerp.engine.asking.client", lambda session, plugin: None)
    job = Job(None, Use("calibrate/mine/default"), tmp_path, {"contexts": tmp_path})  # type: ignore[arg-type]
    given = calibrate.Calibrating(PluginConfig(name="mine"), pairs, {}, {}, "default", 8)
    _, judged = calibrate._judging(job, given, {1: "dogs"})
    with caplog.at_level("WARNING", "autointerp"):
        assert (await judged(1, ([], {}))).tables == {"calibration": []}
    assert "calibrate/mine/default: no pairs of feature 1: ValueError: no such window" in caplog.text
