"""A whole run beside its controls that run again: tables of their own, figures in run.json, table and report."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd
import pytest
from planted import STORIES

import autointerp as ai
from autointerp.config import parse_config
from autointerp.report.tables import print_table

CONTROLS = ("redrawn_subject", "random_sae")


@pytest.fixture(scope="module")
def finished(stories15m: Path, tmp_path_factory: pytest.TempPathFactory) -> ai.Run:
    raw = {
        "name": "again",
        "subject": {"model": str(stories15m), "hook": "blocks.0.hook_resid_post"},
        "corpus": {"source": str(STORIES), "tokens": 6000, "context": 64},
        "sae": {"train": {"d_sae": 96, "k": 6, "tokens": 12_000, "batch_size": 512}},
        "features": {"count": 6, "min_firings": 10},
        "contexts": {"window": 12, "train": 5, "test_activating": 5, "test_random": 5, "test_near": 0},
        "composites": {"enabled": False},
        "explainers": [{"name": "token_stats", "min_share": 0.0}],
        "scorers": ["lexical_shown"],
        "controls": list(CONTROLS),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOINTERP_CACHE", str(tmp_path_factory.mktemp("cache")))
        return ai.run(parse_config(raw), out=tmp_path_factory.mktemp("run"))


def test_control_rows_stand_in_tables_of_their_own(finished: ai.Run) -> None:
    assert len(finished.features) == 6
    assert finished.scores["control"].isna().all()
    assert set(finished.control_scores["control"]) == set(CONTROLS)
    assert set(finished.control_explanations["control"]) == set(CONTROLS)
    assert finished.control_explanations.groupby("control").size().max() <= 6


def test_the_controls_firings_are_not_the_run_s(finished: ai.Run) -> None:
    """Each branch has a subject or an SAE of its own: the same words for the same latents would be a mix-up."""
    explained = finished.control_explanations.pivot_table("explanation", "feature", "control", aggfunc="first")
    own = finished.features.set_index("feature")["explanation"]
    for control in CONTROLS:
        both = pd.concat([own, explained[control]], axis=1, join="inner").dropna()
        assert (both.iloc[:, 0] != both.iloc[:, 1]).all()


def test_run_json_says_what_the_run_is_above_each_control(finished: ai.Run) -> None:
    rows = {row["control"]: row for row in finished.info["controls"]}
    assert set(rows) == set(CONTROLS)
    for control, row in rows.items():
        theirs = finished.control_scores[finished.control_scores["control"] == control]["value"]
        expected = finished.scores["value"].mean() - theirs.mean()
        assert row["value"]["difference"] == pytest.approx(expected)
        assert row["value"]["low"] < expected < row["value"]["high"]
        assert row["asked_control"] == len(theirs)


def test_table_and_report_show_the_difference(finished: ai.Run) -> None:
    out = io.StringIO()
    print_table(finished.folder, out=out)
    report = (finished.folder / "report.html").read_text()
    for control in CONTROLS:
        assert f"lexical_shown against {control.replace('_', ' ')}: " in out.getvalue()
        assert control.replace("_", " ") in report


def test_only_what_the_change_reaches_is_made_again(finished: ai.Run) -> None:
    stages = json.loads((finished.folder / "run.json").read_text())["stages"]
    assert "redrawn_subject:harvest" in stages
    assert "redrawn_subject:corpus" not in stages
