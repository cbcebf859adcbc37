"""Comparisons of explainers, judges and runs, on runs whose differences are planted."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic import write_run
from typer.testing import CliRunner

import autointerp as ai
from autointerp.cli import app
from autointerp.errors import AutointerpError, ConfigError
from autointerp.progress import Standing
from autointerp.report.compare import COLUMNS, compare, print_comparison

Change = Callable[[dict[str, Any]], dict[str, Any] | None]


def with_scores(folder: Path, change: Change, config: str = "") -> Path:
    """A synthetic run of 30 features whose rows of scores are `change`d; rows of None go."""
    write_run(folder, features=30)
    rows = [row for row in map(change, pq.read_table(folder / "scores.parquet").to_pylist()) if row]
    pq.write_table(pa.Table.from_pylist(rows), folder / "scores.parquet")
    if config:
        (folder / "config.yaml").write_text(config)
    return folder


def planted(row: dict[str, Any]) -> dict[str, Any] | None:
    """`default` is .1 ahead of `token_stats`, more in the upper quantile; controls are at chance; two have no value."""
    if row["scorer"] != "detection":
        return None
    ahead = 0.1 * (row["explainer"] == "default") + 0.01 * (row["feature"] % 3 - 1)
    value = ahead if row["control"] is None else 0.0
    lost = row["feature"] in (10, 17) and row["explainer"] == "token_stats" and row["control"] is None
    return row | {
        "value": None if lost else 0.5 + value / 2,
        "corrected": None if lost else value,
        "auroc_q1": None if lost else 0.5 + value,
        "auroc_q2": None if lost else 0.5 + 3 * value,
    }


def row_of(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    matching = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    assert len(matching) == 1
    return matching[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_scores(tmp_path_factory.mktemp("runs") / "ahead", planted)


def test_explainers_are_paired_by_feature(run: Path):
    row = row_of(compare(run), a="default", b="token_stats", measure="corrected")
    assert row["difference"] == pytest.approx(0.1)
    assert (row["low"], row["high"]) == (None, None), "equal differences show no spread"
    asked = row["n"] + row["missing_b"]
    assert (row["wins"], row["losses"], row["ties"]) == (row["n"], 0, 0)
    assert (row["missing_a"], row["missing_b"]) == (0, 2)
    assert row["paired"]
    assert row["at_chance"] == pytest.approx(0.1 * row["n"] / asked + (0.1 + 0.1 + 0.01) / asked, abs=1e-3)


def test_each_stands_against_its_control_too(run: Path):
    rows = compare(run)
    own = row_of(rows, a="default", control=True, measure="corrected")
    assert own["b"] == "other_feature"
    assert own["difference"] == pytest.approx(0.1, abs=0.003)
    gain = row_of(rows, b="token_stats", measure="corrected less other_feature")
    assert gain["difference"] == pytest.approx(0.1)


def test_a_control_whose_explanations_are_lent_to_several_is_less_certain(tmp_path: Path):
    """Three features are lent one explanation each, and what it is worth as a control is the same for all of them."""

    def told(row: dict[str, Any]) -> dict[str, Any] | None:
        row, lender = planted(row) or {}, float(row["feature"] // 21)
        worth = 0.1 * (lender % 3) * (row.get("explainer") == "default")
        if row and row["control"]:
            return row | {"lent_by_1": lender, "corrected": worth}
        return row and row | {"lent_by_1": None}

    def untold(row: dict[str, Any]) -> dict[str, Any] | None:
        row = told(row) or {}
        row.pop("lent_by_1", None)
        return row or None

    widths = []
    for name, change in (("told", told), ("untold", untold)):
        rows = compare(with_scores(tmp_path / name, change))
        mine = [row_of(rows, a="default", control=True, measure="corrected")]
        mine.append(row_of(rows, b="token_stats", measure="corrected less other_feature"))
        widths.append([row["high"] - row["low"] for row in mine])
    assert all(known > 1.3 * unknown for known, unknown in zip(*widths))


def test_quantiles_have_rows_of_their_own(run: Path):
    rows = [row for row in compare(run) if row["quantile"] and not row["control"]]
    assert [(row["quantile"], round(row["difference"], 6)) for row in rows] == [(1, 0.1), (2, 0.3)]


def test_another_can_be_the_one_that_all_stand_against(run: Path):
    row = row_of(compare(run, against="token_stats"), control=False, measure="corrected")
    assert (row["a"], row["b"], round(row["difference"], 6)) == ("token_stats", "default", -0.1)


def test_a_measure_can_be_any_column(run: Path):
    row = row_of(compare(run, measure="n_scored"), b="token_stats", measure="n_scored")
    assert row["difference"] == 0
    assert row["ties"] == row["n"]
    assert row["at_chance"] is None


def test_the_auroc_of_one_quantile_can_be_the_measure(run: Path):
    rows = compare(run, measure="auroc_q2")
    headline = row_of(rows, b="token_stats", measure="auroc_q2", quantile=None)
    assert headline["difference"] == pytest.approx(0.3)
    assert row_of(rows, b="token_stats", measure="auroc_q2", quantile=2)["difference"] == headline["difference"]
    out = io.StringIO()
    print_comparison(run, measure="auroc_q2", out=out)
    assert re.search(r"default − token_stats +auroc_q2 .* \.10 \.30$", out.getvalue(), re.MULTILINE)


CONFIG = """\
subject: {{model: stories15m}}
sae: {{load: {sae}}}
llm: {{model: {judge}}}
scorers: [detection]
"""


def better(row: dict[str, Any]) -> dict[str, Any] | None:
    row = planted(row) or {}
    return row and row | {"corrected": row["corrected"] and row["corrected"] + 0.2}


def test_features_that_one_run_was_never_asked_for_are_no_failures_of_it(tmp_path: Path):
    def half(row: dict[str, Any]) -> dict[str, Any] | None:
        return planted(row) if row["feature"] % 2 else None

    whole = with_scores(tmp_path / "whole", planted, CONFIG.format(sae="one", judge="same"))
    part = with_scores(tmp_path / "part", half, CONFIG.format(sae="one", judge="same"))
    row = row_of(compare(whole, part), within="token_stats", control=False, measure="corrected")
    assert row["difference"] == row["at_chance"] == 0.0
    assert row["missing_a"] == row["missing_b"] == 1  # feature 17 alone, which has no value in either
    assert row["n_a"] > row["n"] == row["n_b"]
    out = io.StringIO()
    print_comparison(whole, part, out=out)
    assert re.search(rf" {row['n']} of {row['n_a']}, {row['n_b']} +1, 1 ", out.getvalue())
    assert "what one side alone was asked for is left out" in out.getvalue()
    print_comparison(whole, out=(alone := io.StringIO()))
    assert " of " not in alone.getvalue().partition("features")[2].partition("difference:")[0]


def test_judges_of_two_runs_are_paired_where_the_sae_is_one(tmp_path: Path):
    large = with_scores(tmp_path / "large", better, CONFIG.format(sae="one", judge="large"))
    small = with_scores(tmp_path / "small", planted, CONFIG.format(sae="one", judge="small"))
    rows = compare(large, small, by="judge")
    row = row_of(rows, within="default", a="large", b="small", measure="corrected")
    assert row["difference"] == pytest.approx(0.2)
    assert row["paired"]


def test_runs_of_two_saes_are_not_paired(tmp_path: Path):
    first = with_scores(tmp_path / "first", better, CONFIG.format(sae="one", judge="same"))
    second = with_scores(tmp_path / "second", planted, CONFIG.format(sae="other", judge="same"))
    row = row_of(compare(first, second), within="default", control=False, measure="corrected")
    assert not row["paired"]
    assert row["n"] is row["wins"] is None
    assert row["difference"] == pytest.approx(0.2)
    assert row["low"] < 0.2 < row["high"]
    out = io.StringIO()
    print_comparison(first, second, out=out)
    assert "not paired: the runs have different SAEs" in out.getvalue()


def test_two_judges_within_one_run(tmp_path: Path):
    config = "llm: {model: large}\nscorers: [detection, {name: detection, label: again, llm: {model: small}}]\n"
    twice = with_scores(tmp_path / "twice", planted, config)
    rows = pq.read_table(twice / "scores.parquet").to_pylist()
    rows += [row | {"scorer": "again", "corrected": 0.0} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), twice / "scores.parquet")
    row = row_of(compare(twice, by="judge"), within="default", a="large", b="small", measure="corrected")
    assert row["difference"] == pytest.approx(0.1, abs=0.003)


def test_what_is_printed_is_what_the_data_says(run: Path):
    text, as_json, as_csv = io.StringIO(), io.StringIO(), io.StringIO()
    print_comparison(run, out=text)
    print_comparison(run, format="json", out=as_json)
    print_comparison(run, format="csv", out=as_csv)
    assert "default − token_stats" in text.getvalue()
    assert ".100 [.097 .103]" in text.getvalue()
    assert ".10 .30" in text.getvalue()
    assert json.loads(as_json.getvalue()) == compare(run)
    assert list(next(csv.reader(io.StringIO(as_csv.getvalue())))) == list(COLUMNS)


def test_an_open_run_compares_as_a_data_frame(run: Path):
    frame = ai.open_run(run).compare(measure="corrected")
    assert list(frame.columns) == list(COLUMNS)
    assert frame.query("b == 'token_stats' and measure == 'corrected'")["wins"].item() == 26
    assert "<table" in str(frame._repr_html_())


def test_a_run_that_is_not_done_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    going_on = with_scores(tmp_path / "going-on", planted)
    Standing("score/detection/default", 3, 4, "2026", 1, "elsewhere", 0.0, stopped=True).write(going_on)
    print_comparison(going_on)
    assert str(going_on) in capsys.readouterr().out.splitlines()[-1]
    print_comparison(going_on, format="json")
    told = capsys.readouterr()
    assert json.loads(told.out)
    assert str(going_on) in told.err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"scorer": "detecton"}, "did you mean 'detection'"),
        ({"measure": "corected"}, "did you mean 'corrected'"),
        ({"measure": "failure"}, "no measure 'failure'"),
        ({"measure": "feature"}, "no measure 'feature'"),
        ({"against": "defalt"}, "did you mean 'default'"),
    ],
)
def test_wrong_names_are_told_with_the_nearest(run: Path, options: dict[str, Any], why: str):
    with pytest.raises(ConfigError, match=why):
        compare(run, **options)


def test_nothing_to_compare_is_told(run: Path, tmp_path: Path):
    alone = with_scores(
        tmp_path / "alone", lambda row: row if row["explainer"] == "default" and not row["control"] else None
    )
    with pytest.raises(ConfigError, match="one explainer, 'default', and no control"):
        compare(alone)
    with pytest.raises(ConfigError, match="named twice"):
        compare(run, run)
    empty = with_scores(tmp_path / "empty", lambda row: row)
    (empty / "scores.parquet").unlink()
    with pytest.raises(AutointerpError, match="no scores yet"):
        compare(empty)


def test_runs_that_share_no_names_are_told(run: Path, tmp_path: Path):
    def renamed(row: dict[str, Any]) -> dict[str, Any] | None:
        return row | {"explainer": f"my {row['explainer']}"} if row["control"] is None else None

    def uncontrolled(row: dict[str, Any]) -> dict[str, Any] | None:
        return row if row["control"] is None else None

    plain = with_scores(tmp_path / "plain", uncontrolled)
    with pytest.raises(ConfigError, match="share no scorer and explainer of the same names"):
        compare(plain, with_scores(tmp_path / "renamed", renamed))


def test_the_command_prints_lines_and_tells_wrong_names(run: Path):
    done = CliRunner().invoke(app, ["compare", str(run), "--by", "explainer"])
    assert done.exit_code == 0
    assert "default − token_stats" in done.stdout
    wrong = CliRunner().invoke(app, ["compare", str(run), "--scorer", "detecton"])
    assert wrong.exit_code == 2
    assert wrong.stderr.count("\n") == 1
    assert CliRunner().invoke(app, ["compare", str(run), "--by", "moon"]).exit_code == 2
