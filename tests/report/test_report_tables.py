"""The scored table: choosing rows, laying it out, and the forms it is written in."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from synthetic import write_run

from autointerp.errors import AutointerpError, ConfigError
from autointerp.report.columns import features_by
from autointerp.report.figures import mean_of, ranges_of, summarise
from autointerp.report.folder import RunFolder, find_run
from autointerp.report.html import write_report
from autointerp.report.overview import charts
from autointerp.report.tables import footer, lay_out, print_table
from autointerp.report.text import interval, number, visible
from autointerp.report.where import sort, where


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def features(run: Path) -> pa.Table:
    return RunFolder(run).features


def text_of(run: Path, **options) -> str:
    out = io.StringIO()
    print_table(run, out=out, **options)
    return out.getvalue()


def test_golden_table(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "112")
    condition = "feature <= 10 or status != 'ok' or detection is None"
    assert text_of(run, condition=condition) == GOLDEN


GOLDEN = """\
feature  detection       control  unscored  simulation      control  composite    explanation
      3  .95 [.87 1.00]      .51            .95 [.87 1.00]      .51  atomic       <script>alert('x')</script> &…
     10  .92 [.84 .98]       .51         1  .92 [.84 .98]       .50  composite    words about topic 1, such as…
     59  –                     –            –                     –  –            (dead: never fires in 10,000…
     66  –                     –            –                     –  composite    (too rare: 12 firings, featur…
     73  –                     –            –                     –  split child  (failed: the explainer's answ…
     80  –                     –        20  .62 [.54 .68]       .50  atomic       words about topic 11, such as…

6 features: 3 ok, 1 dead, 1 too rare, 1 failed
detection .94 [.74 1.00] over 2 of 6 (.67 if the others count as chance); 21 of 60 examples unscored
  chance .54, corrected .86 [.44 1.00], control .51, paired difference .43 [.26 .60] over 2
  without a model, windows of the same features: lexical .83 (corrected .65)
  by quantile of activation, weakest first: .60 .70
  the judge says yes to 97% of the examples: its precision, recall and F1 at ½ say nothing
simulation .83 [.24 1.00] over 3 of 6 (.69 if the others count as chance); 2 of 60 examples unscored
  chance .54, corrected .63 [-.64 1.00], control .50, paired difference .33 [-.26 .64] over 3
  without a model, windows of the same features: lexical .83 (corrected .65)
  by quantile of activation, weakest first: .60 .70
not shown at this width: firings, unscored (--format csv has all)
"""


@pytest.mark.parametrize("width", [40, 60, 80, 100, 130, 200])
def test_no_line_is_wider_than_the_terminal_and_the_explanation_stays(features: pa.Table, width: int):
    lines, dropped = lay_out(features, width)
    assert max(map(cell_len, lines)) <= width
    assert "explanation" in lines[0]
    assert bool(dropped) == (width < 130)


def test_a_pipe_gets_whole_explanations_a_line_a_feature(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = text_of(run).split("\n\n")[0].splitlines()
    assert len(lines) == 13
    assert lines[1].endswith("names⏎of \\u001b[31mcolours</td>")


def test_sorting_puts_missing_scores_last_and_breaks_ties_by_feature(features: pa.Table):
    values = sort(features, "detection")["detection"].to_pylist()
    known = [v for v in values if v is not None]
    assert known == sorted(known, reverse=True)
    assert values[len(known) :] == [None] * 4
    assert sort(features, "feature")["feature"].to_pylist() == sorted(features["feature"].to_pylist())
    statuses = sort(features, "status")
    assert statuses["feature"].to_pylist()[-1] == 66  # too_rare
    with pytest.raises(ConfigError, match="did you mean 'detection'"):
        sort(features, "detecton")


def test_sorting_goes_both_ways_with_missing_values_last(features: pa.Table):
    for rising in (sort(features, "-detection"), sort(features, "detection", ascending=True)):
        values = rising["detection"].to_pylist()
        assert values[:-4] == sorted(values[:-4])
        assert values[-4:] == [None] * 4
    falling = sort(features, "-feature")["feature"].to_pylist()
    assert falling == sorted(falling, reverse=True)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "two", explainers=("default", "token_stats"))


def test_the_table_of_another_explainer_has_its_texts_and_scores(two: Path):
    folder = RunFolder(two)
    other = {row["feature"]: row for row in features_by(folder, "token_stats").to_pylist()}
    own = {row["feature"]: row for row in folder.features.to_pylist()}
    assert other.keys() == own.keys()
    scored = {row["feature"]: row for row in folder.rows("scores") if row["explainer"] == "token_stats"
              and row["scorer"] == "detection" and row["control"] is None}  # fmt: skip
    for feature, row in other.items():
        assert row["firings"] == own[feature]["firings"]
        unfit = own[feature]["status"] in ("dead", "too_rare")
        assert row["status"] == (own[feature]["status"] if unfit else "ok")  # where the other failed, this one did not
        if row["status"] == "ok":
            assert row["explanation"].startswith("tokens ")
            assert row["detection"] == scored[feature]["value"]
            assert row["detection_low"] == scored[feature]["low"]
        else:
            assert row["failure"]
    assert features_by(folder, "default") is folder.features
    with pytest.raises(ConfigError, match="did you mean 'token_stats'"):
        features_by(folder, "token_stat")


def test_a_measure_or_control_of_the_scores_is_a_column_where_it_is_named(two: Path, capsys):
    print_table(two, explainer="token_stats", sort_by="-detection_f1", condition="detection_other_feature > .5")
    heading, first, *_ = capsys.readouterr().out.splitlines()
    assert "detection_f1" in heading
    assert "detection_other_feature" in heading
    assert "tokens 7" in first  # the lowest that has a score
    with pytest.raises(ConfigError, match="no column 'detection_f2'"):
        print_table(two, sort_by="detection_f2")


@pytest.mark.parametrize(
    ("expression", "chosen"),
    [
        ("detection > 0.9 and composite == 'composite'", [10]),
        ("detection is None", [59, 66, 73, 80]),
        ("detection == None and simulation is not None", [80]),
        ("not (detection > .8)", [38, 45, 52]),
        ("feature in [3, 10]", [3, 10]),
        ("feature not in (3, 10) and feature < 24", [17]),
        ("'alert' in explanation", [3]),
        (".85 < detection <= .89", [17, 24]),
        ("detection - detection_control > 0.43 or status == 'dead'", [3, 59]),
        ("-feature < -75", [80]),
        ("firings / 2 > 220", [80]),
        ("status in ['dead', 'failed']", [59, 73]),
        ("(detection > .9) & (composite == 'composite')", [10]),
        ("(detection > .92) | (status == 'dead')", [3, 59]),
        ("~(detection > .8) & (status == 'ok')", [38, 45, 52]),
        ("abs(detection - .95) < .01", [3]),
        ("`feature` == 3 or explanation == 'a `b` c'", [3]),
    ],
)
def test_where_chooses_rows(features: pa.Table, expression: str, chosen: list[int]):
    assert where(features, expression)["feature"].to_pylist() == chosen


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("detecton > 1", "did you mean 'detection'"),
        ("__import__('os').system('true')", "not understood"),
        ("feature.real == 1", "no column 'feature.real'"),
        ("detection > .9 & status == 'ok'", "bind before comparisons"),
        ("abs(detection, 1) > 0", "not understood"),
        ("`no such` > 1", "no column 'no such'"),
        ("~feature", "types"),
        ("[f for f in feature]", "not understood"),
        ("feature ** 9 > 1", "not understood"),
        ("detection > 'a'", "types"),
        ("feature > 99999999999999999999999", "types"),
        ("feature in ['a']", "types"),
        ("feature in [3, firings]", "plain values"),
        ("detection + 1", "not a condition"),
        ("1 < 2", "not a condition"),
        ("status is 'ok'", "for None only"),
        ("detection = 1", "equal is written =="),
        ("detection >", "not an expression"),
        ("", "not an expression"),
        ("(" * 300 + ")" * 300, "not an expression"),
        ("detection > 1\x00", "not an expression"),
    ],
)
def test_a_wrong_condition_is_one_clear_line(features: pa.Table, expression: str, said: str):
    with pytest.raises(ConfigError, match=said) as caught:
        where(features, expression)
    assert "\n" not in str(caught.value)


@given(
    st.lists(st.tuples(*[st.one_of(st.none(), st.integers(-5, 5))] * 2), min_size=1),
    st.sampled_from(
        ["a < b", "a == b or b > 2", "a != 0 and not (b <= 1)", "a + b > 1", "-1 <= a < b", "a in [1, 2, 3]"]
    ),
)
def test_where_agrees_with_python_on_rows_without_missing_values(rows: list[tuple], expression: str):
    table = pa.table({"a": pa.array([a for a, _ in rows], pa.int64()), "b": pa.array([b for _, b in rows], pa.int64())})
    whole = [(a, b) for a, b in rows if a is not None and b is not None]
    got = where(table, f"a is not None and b is not None and ({expression})")
    assert list(zip(*got.to_pydict().values())) == [(a, b) for a, b in whole if eval(expression, {"a": a, "b": b})]


@given(st.text())
def test_visible_text_is_one_line_without_control_characters(text: str):
    shown = visible(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in shown)
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.83, ".83"),
        (-0.123, "-.12"),
        (0.999, "1.00"),
        (-0.001, ".00"),
        (None, "–"),
        (12.5, "12.50"),
        (float("nan"), "–"),
    ],
)
def test_numbers_as_printed(value: float | None, text: str):
    assert number(value) == text
    assert interval(value, None, None) == text


def test_the_summary_pairs_score_and_control(features: pa.Table):
    summary = summarise(features)
    assert summary.statuses == {"ok": 9, "dead": 1, "too_rare": 1, "failed": 1}
    detection, simulation = summary.scorers
    assert (detection.mean.n, detection.control.n, detection.difference.n, simulation.mean.n) == (8, 8, 8, 9)
    assert detection.difference.value == pytest.approx(detection.mean.value - detection.control.value)
    assert detection.difference.low < detection.difference.value < detection.difference.high
    assert detection.n_unscored == 20 + 4


def test_a_control_s_interval_allows_for_who_lent_to_several(features: pa.Table):
    control = features["detection_control"].to_pylist()
    order = sorted((f for f, value in enumerate(control) if value is not None), key=lambda f: control[f])
    lender = [None if value is None else float(order.index(f) // 3) for f, value in enumerate(control)]
    told = summarise(features.append_column("detection_lent_by_1", pa.array(lender, pa.float64()))).scorers[0]
    alone = summarise(features).scorers[0]
    assert told.mean == alone.mean
    assert told.control.value == alone.control.value
    assert told.control.high - told.control.low > 1.2 * (alone.control.high - alone.control.low)


def test_means_are_over_all_features_asked_for(features: pa.Table):
    detection = summarise(features).scorers[0]
    assert (detection.asked, detection.mean.n, detection.chance, detection.quantiles) == (12, 8, 0.54, [0.6, 0.7])
    assert detection.as_chance == pytest.approx((8 * detection.mean.value + 4 * 0.54) / 12)
    assert detection.mean.low is not None
    assert "97%" in detection.doubt
    assert summarise(features).scorers[1].doubt is None


def test_a_quantile_without_a_column_leaves_its_place_empty(features: pa.Table):
    at = features.column_names.index("detection_q2")
    renamed = features.rename_columns([*features.column_names[:at], "detection_q3", *features.column_names[at + 1 :]])
    assert summarise(renamed).scorers[0].quantiles == [0.6, None, 0.7]


def test_what_reads_no_explanation_stands_beside_every_mean(run: Path, features: pa.Table):
    assert [s.scorer for s in summarise(features).ceilings] == ["lexical"]
    lines = text_of(run).splitlines()
    assert "lexical" not in lines[0]
    assert sum("lexical .83 (corrected .65)" in line for line in lines) == 2
    page = write_report(run).read_text()
    assert page.count("lexical") >= 3


def test_a_ceiling_on_another_scale_stands_beside_no_mean(features: pa.Table):
    """A correlation has the chance 0, an average precision of windows of which half fire ½."""
    zero, half = (pa.array([chance] * len(features)) for chance in (0.0, 0.5))
    at = features.column_names.index("simulation_chance")
    mixed = features.set_column(at, "simulation_chance", zero).append_column("lexical_chance", half)
    summary = summarise(mixed)
    beside = {s.scorer: [c.scorer for c in s.on_my_scale(summary.ceilings)] for s in summary.scorers}
    assert beside == {"detection": ["lexical"], "simulation": []}
    assert sum("lexical .83" in line for line in footer(mixed)) == 1
    assert [len(c.marks) for c in charts(mixed, summary, ranges_of(mixed))] == [1, 0]


def test_json_csv_and_parquet_hold_all_columns_and_missing_is_null(run: Path, features: pa.Table, tmp_path: Path):
    rows = json.loads(text_of(run, format="json", sort_by="feature"))
    assert rows == features.to_pylist()
    assert rows[-1]["detection"] is None
    read = list(csv.DictReader(io.StringIO(text_of(run, format="csv", sort_by="feature"))))
    assert list(read[0]) == features.column_names
    assert read[0]["explanation"] == rows[0]["explanation"]
    assert read[-1]["detection"] == ""
    with open(tmp_path / "out.parquet", "w") as out:
        print_table(run, format="parquet", sort_by="feature", limit=3, out=out)
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == rows[:3]


def test_a_run_is_found_by_folder_and_by_name(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "tiny").symlink_to(run)
    (tmp_path / "half").mkdir()
    assert find_run("tiny") == Path("results/tiny")
    assert find_run(run) == run
    with pytest.raises(ConfigError, match="did you mean 'tiny'"):
        find_run("tinny")
    with pytest.raises(AutointerpError, match="not done"):
        find_run("half")


def test_a_torn_table_says_which(run: Path, tmp_path: Path):
    (tmp_path / "features.parquet").write_bytes((run / "features.parquet").read_bytes()[:100])
    with pytest.raises(AutointerpError, match=r"features\.parquet cannot be read"):
        print_table(tmp_path)


def test_a_run_without_controls_composites_or_scores_still_prints(tmp_path: Path):
    row = {"feature": 1, "firings": 5, "explanation": "x", "composite": None, "status": "ok", "failure": None}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "features.parquet")
    assert text_of(tmp_path).splitlines() == [
        "feature  firings  explanation",
        "      1        5  x",
        "",
        "1 feature: 1 ok",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


BIDI = "\u202egnp.exe\u2066 \u200f\x9b31m"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    texts = ["=1+1", "+49", "-2", "@SUM(A1)", "\tx", "a=b", "\x1b[31mred", BIDI, 'two\nlines, "quoted"']
    rows = [
        {"feature": i, "firings": -5, "explanation": text, "composite": None, "status": "ok", "failure": None}
        for i, text in enumerate(texts)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "features.parquet")
    return tmp_path


def test_csv_cells_that_a_spreadsheet_would_compute_are_text(hostile: Path):
    cells = [row["explanation"] for row in csv.DictReader(io.StringIO(text_of(hostile, format="csv")))]
    assert cells[:6] == ["'=1+1", "'+49", "'-2", "'@SUM(A1)", "'\tx", "a=b"]
    assert cells[-1] == 'two\nlines, "quoted"'
    read = next(csv.DictReader(io.StringIO(text_of(hostile, format="csv"))))
    assert read["firings"] == "-5", "numbers stay numbers"
    raw = [row["explanation"] for row in csv.DictReader(io.StringIO(text_of(hostile, format="csv", raw_cells=True)))]
    assert raw[:4] == ["=1+1", "+49", "-2", "@SUM(A1)"]


def test_blanks_and_wide_letters_hide_no_formula_and_no_number_is_beyond_json(tmp_path: Path):
    texts = [" =1+1", "\n=1+1", "＝1+1", "a - b"]
    rows = [{"feature": i, "ece": float("inf"), "explanation": text, "status": "ok"} for i, text in enumerate(texts)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "features.parquet")
    cells = [row["explanation"] for row in csv.DictReader(io.StringIO(text_of(tmp_path, format="csv")))]
    assert cells == ["' =1+1", "'\n=1+1", "'＝1+1", "a - b"]
    read = json.loads(text_of(tmp_path, format="json"), parse_constant=pytest.fail)
    assert [row["ece"] for row in read] == [None] * 4


def test_an_interval_holds_its_mean_where_values_are_larger_than_one():
    large, shares = mean_of(np.array([1.5, 2.5, 4.0])), mean_of(np.array([0.9, 1.0, 1.0, 1.0]))
    assert large.value is not None
    assert large.high is not None
    assert large.high > large.value > 2
    assert shares.high == 1.0


@pytest.mark.parametrize("format", ["csv", "json"])
def test_data_on_a_terminal_steers_nothing(hostile: Path, format: str):
    out = Terminal()
    print_table(hostile, format=format, out=out)  # type: ignore[arg-type]
    text = out.getvalue()
    assert all(unicodedata.category(c) not in ("Cc", "Cf") or c == "\n" for c in text)
    assert "\\u001b[31mred" in text
    assert "\\u202e" in text
    if format == "json":
        assert json.loads(text)[7]["explanation"] == BIDI, "escaped as JSON has it: still the same data"


def test_data_off_a_terminal_is_whole(hostile: Path):
    assert BIDI in text_of(hostile, format="csv")


def test_characters_that_turn_a_line_around_are_shown_as_such(hostile: Path):
    assert "\\u202egnp.exe\\u2066 \\u200f\\u009b31m" in text_of(hostile)
    assert visible("a\u2067b\U000e0001") == "a\\u2067b\\udb40\\udc01"


def test_a_few_features_of_a_large_table_are_read_from_their_row_groups(tmp_path: Path):
    table = pa.table({"feature": list(range(1000)), "value": [f"v{i}" for i in range(1000)]})
    pq.write_table(table, tmp_path / "contexts.parquet", row_group_size=100)
    pq.write_table(pa.table({"feature": [1], "status": ["ok"]}), tmp_path / "features.parquet")
    folder = RunFolder(tmp_path)
    assert folder.rows("contexts", [5, 998, 4000]) == [
        {"feature": 5, "value": "v5"},
        {"feature": 998, "value": "v998"},
    ]
    assert folder.rows("contexts", [5], ["value", "not there"]) == [{"value": "v5"}]
    assert folder.rows("contexts", [4000]) == []
    assert sum(len(batch) for batch in folder.batches("contexts", ["value"])) == 1000


def test_who_lent_to_a_control_is_in_the_file_and_not_printed(features: pa.Table):
    lent = pa.array([1.0] * len(features), pa.float64())
    for name in ("detection", "simulation"):
        features = features.append_column(f"{name}_lent_by_1", lent)
    lines, _ = lay_out(features, None)
    assert "lent_by" not in lines[0]
