"""A run and a feature as a notebook shows them, and what a run's folder says of its requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from synthetic import write_run

import autointerp as ai
from autointerp.commands import folder as run_folder
from autointerp.commands.folder import count_usage, is_complete, write_usage
from autointerp.errors import AutointerpError
from autointerp.tables import write_stream


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> ai.Run:
    return ai.open_run(write_run(tmp_path_factory.mktemp("runs") / "noted", features=30))


def test_a_run_is_its_feature_table_the_best_first(run: ai.Run):
    page = run._repr_html_()
    assert page.count("<tr>") == 1 + 20
    assert "20 of 30 features, by detection" in page
    best = run.features.sort_values("detection", ascending=False)["feature"].head(20)
    assert [f'<td class="n">{feature}</td>' in page for feature in best] == [True] * 20
    assert "<script" not in page
    assert repr(run).startswith("Run('")


def test_a_feature_is_a_page_in_a_notebook_and_text_elsewhere(run: ai.Run):
    card = run.show(10)
    assert "quantile 3 of 3" in card._repr_html_()
    assert "<script>" not in run.show(3)._repr_html_()
    assert repr(card).startswith("feature 10 · ok · composite\n")
    assert "\x1b" not in repr(card)
    with pytest.raises(AutointerpError, match="nearest"):
        run.show(11)


def test_styles_of_a_card_reach_nothing_else_on_the_page(run: ai.Run):
    style = run.show(10)._repr_html_().split("<style>")[1].split("</style>")[0]
    assert style.startswith(".autointerp {")
    assert ":root" not in style
    depth = 0
    for place, character in enumerate(style):
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth > 0 or place < len(".autointerp ") or not style[place + 1 :].strip()


def test_a_comparison_is_a_table_of_pandas_and_a_page(run: ai.Run):
    compared = run.compare()
    assert compared.loc[~compared["control"], "difference"].notna().any()
    page = compared._repr_html_()
    assert (
        page.count("<tr>")
        == len(compared[compared["quantile"].isna()]) + compared.groupby(["scorer", "within"]).ngroups
    )
    assert "default − token_stats" in page
    assert "<script" not in page
    part = compared[["a", "b"]]
    assert type(part).__name__ == "DataFrame"
    assert part._repr_html_().startswith("<div>")


ROW = {
    **{"stage": "explain/default", "feature": 3, "model": "m", "kind": "complete", "prompt_tokens": 10},
    **{"completion_tokens": 2, "cached_tokens": 0, "cached": False, "seconds": 0.5, "outcome": "ok", "attempts": 1},
    "prompt_hash": "ab",
}


def test_the_journal_becomes_a_table_and_totals_row_by_row(tmp_path: Path):
    rows: list[dict[str, Any]] = [ROW, ROW | {"cached": True}, ROW | {"outcome": "failed: HTTP 500"}]
    (tmp_path / "usage.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"torn')
    write_usage(tmp_path)
    assert pq.read_table(tmp_path / "usage.parquet").to_pylist() == rows
    totals = {"requests": 2, "from_cache": 1, "failed": 1, "prompt_tokens": 20, "completion_tokens": 4}
    assert count_usage(tmp_path) == totals


def test_a_table_of_any_length_is_written_a_group_at_a_time(tmp_path: Path):
    asked: list[int] = []

    def rows() -> Iterator[dict[str, Any]]:
        for i in range(10):
            asked.append(i)
            yield ROW | {"feature": i}

    write_stream(tmp_path / "usage.parquet", "usage", rows(), group=4)
    file = pq.ParquetFile(tmp_path / "usage.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [4, 4, 2]
    assert asked == list(range(10))


def test_a_folder_with_the_standing_of_a_run_that_was_stopped_is_not_complete(run: ai.Run):
    (run.folder / "report.html").write_text("x")
    assert is_complete(run.folder)
    (run.folder / run_folder.FILE).write_text("{}")
    assert not is_complete(run.folder)
    (run.folder / run_folder.FILE).unlink()
