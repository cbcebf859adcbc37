"""One feature, printed."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic import FAILURE, write_run

from autointerp.errors import AutointerpError
from autointerp.report import RunFolder, show
from autointerp.report.feature import gather, level
from autointerp.report.html import page_of
from autointerp.report.overview import judgements


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "shown")


def shown(run: Path, feature: int) -> str:
    out = io.StringIO()
    show(run, feature, out)
    return out.getvalue()


def test_a_feature_shows_all_that_the_run_knows(run: Path):
    text = shown(run, 10)
    for part in (
        "feature 10 · ok · composite",
        "default, detection: .92 [.82 .97]; control: other feature .51",
        "20 scored, 1 unscored, base rate .50; corrected .92, f1 .92, auprc .92",
        "token_stats (tiny): tokens 1",
        "quantile 3 of 3 (3 of 8)",
        "near misses: a neighbour fires, this feature is silent (3 of 8)",
        "detection said yes (.80) to a window that is ",
        ".80 × feature 3: <script>",
        ".60 × feature 99999: (not among the features of this run)",
        "logits down",
    ):
        assert part in text
    assert text.index("quantile 3 of 3") < text.index("quantile 2 of 3") < text.index("quantile 1 of 3")


def test_off_a_terminal_marks_stand_for_colours_and_nothing_steers_the_terminal(run: Path):
    text = shown(run, 3)
    assert "«" in text
    assert "\x1b" not in text
    assert "\\u001b[2J" in text


@pytest.mark.parametrize(
    ("feature", "reason"),
    [(59, "never fires in 10,000 tokens"), (66, "12 firings"), (73, "the explainer's answer was empty"), (80, FAILURE)],
)
def test_what_is_missing_says_why(run: Path, feature: int, reason: str):
    assert reason in shown(run, feature)


def test_a_feature_that_is_not_there_names_the_nearest(run: Path):
    with pytest.raises(AutointerpError, match=r"feature 11 is not in .*; nearest: 3, 10, 17, 24, 31"):
        shown(run, 11)


def test_strongest_windows_are_chosen_and_controls_are_no_mistakes(run: Path):
    view = gather(RunFolder(run), [10], per_quantile=2)[10]
    every = gather(RunFolder(run), [10], per_quantile=100)[10]
    for key, windows in view.windows.items():
        peaks = [max(w.activations) for w in windows]
        assert peaks == sorted((max(w.activations) for w in every.windows[key]), reverse=True)[:2]
    judgements = [j for j in RunFolder(run).rows("judgements", [10]) if j["control"] is None and j["status"] == "ok"]
    assert view.n_mistakes == sum(j["truth"] != j["prediction"] for j in judgements)


@pytest.fixture(scope="module")
def with_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with judgements of texts that a scorer made, whose numbers are those of windows which were not judged."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "texts")
    judged = pq.read_table(folder / "judgements.parquet").to_pylist()
    made = {"feature": 10, "explainer": "default", "control": None, "quantile": None, "status": "ok", "failure": None}
    judged += [
        made | {"scorer": scorer, "kind": kind, "example": i, "truth": truth, "prediction": said, "probability": p,
                "text": text}
        for i, (scorer, kind, truth, said, p, text) in enumerate([
            ("generation", "neutral", 0.0, 1.0, None, "a text of the judge's own"),
            ("generation", "generated", 1.0, 1.0, None, "another"),
            ("fuzzing", "mismarked", 0.0, 1.0, 0.99, "the «cat» sat"),
            ("fuzzing", "marked", 1.0, 0.0, 0.4, "the cat «sat»"),
        ])
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist([{"text": None} | row for row in judged]), folder / "judgements.parquet")
    return folder


def test_a_wrong_judgement_stands_beside_what_was_judged(with_texts: Path):
    text = shown(with_texts, 10)
    assert "generation said yes to a text that is neutral: a text of the judge's own\n" in text
    assert "fuzzing said yes (.99) to a text that is mismarked: the «cat» sat\n" in text
    page = page_of(RunFolder(with_texts))
    assert "the text is neutral</p>" in page
    assert '<span class="text">a text of the judge&#39;s own</span>' in page


def test_yes_is_right_where_it_is_the_truth(with_texts: Path):
    rows, _ = judgements(RunFolder(with_texts))
    right = {row.what.partition(",")[0]: row.right for row in rows}
    wrong = dict.fromkeys(("neutral", "mismarked", "random", "near"), False)
    assert right == {"activating": True, "marked": True, "generated": True} | wrong


def test_many_features_at_once_are_as_one_by_one(run: Path):
    ids = [3, 10, 80]
    together = gather(RunFolder(run), ids, per_quantile=2)
    assert together == {i: gather(RunFolder(run), [i], per_quantile=2)[i] for i in ids}


def test_shades_span_the_features_range():
    assert [level(a, 5.0, 5) for a in (0.01, 1.0, 1.01, 4.9, 5.0, 9.0)] == [1, 1, 2, 5, 5, 5]
    assert level(2.0, None, 5) == 5
