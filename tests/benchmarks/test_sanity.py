"""The missing and the extra label test: what the paper's measures do under them, and a run's judgements."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autointerp.tables import write_rows


@pytest.fixture(scope="module")
def sanity(benchmark: Callable[[str], Any]) -> Any:
    return benchmark("sanity")


def test_the_labels_are_halved_and_doubled(sanity: Any):
    rng, labels = np.random.default_rng(0), (np.arange(100_000) < 10_000).astype(float)
    assert sanity.missing(labels, rng).sum() == pytest.approx(5_000, rel=0.05)
    assert sanity.extra(labels, rng).sum() == pytest.approx(20_000, rel=0.05)
    assert sanity.extra(np.ones(10), rng).tolist() == [1.0] * 10


def test_recall_and_precision_fail_one_test_each_and_the_paper_s_five_pass(sanity: Any):
    rows = sanity.verdicts(sanity.falls(sanity.oracles(20, 0.1, 0.0, graded=False), 0), each=True)
    assert all(rows[name]["passes"] for name in ("average precision", "F1", "IoU", "Pearson", "cosine"))
    assert not rows["precision"]["missing"]["passes"]
    assert not rows["recall"]["extra"]["passes"]


def test_auroc_fails_where_features_are_rare(sanity: Any):
    rows = sanity.verdicts(sanity.falls(sanity.oracles(12, 0.001, 0.0, graded=False), 0), each=True)
    assert not rows["AUROC"]["extra"]["passes"]
    assert rows["average precision"]["passes"]


def test_a_run_is_read_from_its_judgements(sanity: Any, tmp_path: Path):
    rng = np.random.default_rng(0)
    names = {"explainer": "default", "scorer": "detection", "status": "ok"}
    judgements = [
        names | {"feature": f, "example": i, "truth": float(i % 2), "probability": float(rng.beta(2 + 4 * (i % 2), 3))}
        | {"kind": "activating" if i % 2 else "random"}
        for f in range(30)
        for i in range(60)
    ]  # fmt: skip
    write_rows(tmp_path / "judgements.parquet", "judgements", judgements)
    write_rows(tmp_path / "scores.parquet", "scores", [names | {"feature": f} for f in range(30)])
    write_rows(tmp_path / "features.parquet", "selection", [{"feature": f} for f in range(30)])
    report = sanity.of_run(str(tmp_path))
    assert report["detection, default, features"] == 30
    assert set(report) >= {"detection, default, as judged", "detection, default, 0.01 fire"}
    assert report["detection, default, as judged"]["average precision"]["passes"]
