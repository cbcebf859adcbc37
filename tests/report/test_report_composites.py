"""A composite in the table, in `show` and on the page: its constituents, and each figure beside its controls."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic import write_run

from autointerp.report import RunFolder, show, write_report
from autointerp.report.plane import members_of
from autointerp.report.tables import lay_out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Feature 10 is a confirmed composite of 3 and 17, 38 one of 31 and of a latent of a union SAE."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "composites")
    features = pq.read_table(folder / "features.parquet").to_pylist()
    for row in features:
        row["constituents"] = {10: "3+17", 38: "31+union 5"}.get(row["feature"])
        row["composite"] = "confirmed" if row["feature"] == 10 else row["composite"]
    pq.write_table(pa.Table.from_pylist(features), folder / "features.parquet")
    found = {
        "feature": 10, "label": "confirmed", "constituents": [3, 17], "coefficients": [0.8, 0.6], "r2": 0.91,
        "partial_r2": 0.5, "max_cosine": 0.7, "p_value": 1e-9, "reencode": 0.87, "reencode_swapped": 0.02,
        "reencode_random": 0.0, "lift": 3.2, "lift_swapped": 1.1, "lift_random": 0.9, "mode": "additive",
        "tokens": 312, "semantic": 0.75, "semantic_swapped": 0.2, "semantic_random": None,
        "causal": 0.9, "causal_low": 0.8, "causal_high": 0.95, "causal_together": 0.98, "causal_swapped": 0.02,
        "causal_turned": 0.4, "failure": "semantic: too few other features",
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist([found]), folder / "composites.parquet")
    windows = [
        {"feature": 10, "example": 0, "latent": latent, "document": 1, "position": 2,
         "tokens": ["The", " <b>", "\n"], "activations": activations}
        for latent, activations in ((10, [0.0, 2.0, 0.0]), (3, [1.0, 2.5, 0.0]), (17, [0.0, 0.0, 0.0]))
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(windows), folder / "cofiring.parquet")
    info = json.loads((folder / "run.json").read_text())
    above = {"mean": 0.4, "low": 0.3, "high": 0.5, "wins": 9, "losses": 1, "n": 10, "dropped": 0}
    lost = {"mean": None, "low": None, "high": None, "wins": 0, "losses": 0, "n": 0, "dropped": 10}
    pair = {"swapped": 0.1, "random": None, "above_swapped": above, "above_random": lost}
    info["stages"] |= {
        "reencode": {"key": "cc", "status": "ran", "seconds": 2.0, "facts": {
            "labels": {"atomic": 1000, "confirmed": 10},
            "reencode": {"own": 0.5, **pair, "no_sums": {"n": 90, "mean": 0.25, "pass": 9}},
            "union": {"n": 7, "mean": 0.4, "pass": 3, "no_sums": {"n": 80, "mean": 0.2, "pass": 5}}}},
        "causal": {"key": "ee", "status": "ran", "seconds": 2.0, "facts": {
            "composites": 12, "known": 11, "own": 0.9, "together": 0.97, "swapped": 0.1, "turned": 0.5,
            "above_swapped": above, "above_turned": lost}},
        "semantic": {"key": "dd", "status": "ran", "seconds": 2.0, "facts": {
            "composites": 12, "judged": 10, "entailed": 0.7, "own": 0.6, **pair}},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(info))
    return folder


def test_the_table_names_the_constituents_where_there_is_room(run: Path):
    features = RunFolder(run).features
    wide = "\n".join(lay_out(features, 200)[0])
    assert "confirmed composite 3+17" in wide
    assert "composite 31+union 5" in wide
    assert "split child  " in wide
    narrow, _ = lay_out(features, 110)
    assert all(len(line) <= 110 for line in narrow)
    assert "3+17" not in "\n".join(narrow)
    assert "confirmed" in "\n".join(narrow)


def test_show_prints_the_verdict_with_every_figure_beside_its_controls(run: Path):
    out = io.StringIO()
    show(run, 10, out)
    text = out.getvalue()
    start = text.index("composite check: confirmed")
    assert text[start : text.index("\nneighbours by")].splitlines() == [
        "composite check: confirmed",
        "  .80 × feature 3: <script>alert('x')</script> & \"quotes\" — names⏎of \\u001b[31mcolours</td>",
        next(line for line in text.splitlines() if line.startswith("  .60 × feature 17: words about topic 2")),
        "  R² 0.91, partial R² 0.5, highest cosine 0.7, p 1e-09",
        "  re-encode .87 (swapped pair .02, random pair .00) over 312 tokens",
        "  lift 3.20 (swapped pair 1.10, random pair .90), additive (they are on with it)",
        "  its effect on the output is that of its parts added up .90 [.80 .95] (all at once .98, swapped pair .02,"
        " other parts of the same sum .40)",
        "  explanation entails them .75 (swapped pair .20)",
        "  semantic: too few other features",
        "",
        "co-firing contexts (1)",
        "  The« <b>»⏎",
        "      3: “<b>” 2.5, “The” 1; 17: off",
    ]


def test_the_page_has_the_same_and_sums_up_all_composites(run: Path, tmp_path: Path):
    page = write_report(run, tmp_path / "page.html").read_text()
    for part in (
        "confirmed composite 3+17",
        "re-encode .87 (swapped pair .02, random pair .00) over 312 tokens",
        "co-firing contexts",
        "“&lt;b&gt;” 2.5",
        "Of 1,010 latents: 1,000 atomic, 10 confirmed.",
        "a share of .50 of the tokens; swapped pairs .10 (paired difference .40 [.30 .50] over 10).",
        "Of 90 latents that are no composites, refitted by their two nearest neighbours, 9 pass the same test",
        "Of 7 with constituents of the union SAE, all constituents are on together, on average, on a share of .40 of "
        "the tokens; by the two nearest rows of 80 latents that are no sums, .20; 3 on .6 or more.",
        "Of 12 ablated and steered, 11 can be compared: what their constituents do to the output, each alone and added"
        " up, agrees with what they do by .90 on average, all at once by .97; swapped pairs .10",
        "<title>feature 10: .40</title>",
        "10 of 12 could be judged; of these .70 entail all their constituents",
    ):
        assert part in page


def test_a_week_is_drawn_as_a_circle_with_what_its_days_are(run: Path, tmp_path: Path):
    week = [3, 10, 17, 24, 31, 38, 45]
    turn = 2 * np.pi * np.arange(7) / 7
    shared = {"feature": 10, "label": "subspace", "rank": 2, "members": week, "circular": True,
              "places": np.stack([np.cos(turn), np.sin(turn)], 1).flatten().tolist(), "constituents": []}  # fmt: skip
    other = shutil.copytree(run, tmp_path / "week")
    pq.write_table(pa.Table.from_pylist([shared]), other / "composites.parquet")
    out = io.StringIO()
    show(other, 10, out)
    text = out.getvalue()
    assert "subspace of rank 2, a circle: 7 latents" in text
    start = text.index("a circle: 7 latents")
    drawing = text[start : text.index("  a feature ")].splitlines()[1:]
    marks = {c: (x, 2 * y) for y, line in enumerate(drawing) for x, c in enumerate(line) if c in "abcdefg·"}
    radii = [np.hypot(x - marks["·"][0], y - marks["·"][1]) for c, (x, y) in marks.items() if c != "·"]
    assert len(radii) == 7
    assert max(radii) - min(radii) < 5  # characters
    assert "feature 17: words about topic 2" in text
    page = write_report(other, tmp_path / "week.html").read_text()
    plane = page[page.index('<svg class="plane"') :].partition("</svg>")[0]
    assert [int(number) for number in re.findall(r">(\d+)</text>", plane)] == [m.feature for m in members_of(shared)]
    at = [(float(x), float(y)) for x, y in re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', plane)]
    assert np.allclose(np.hypot(*np.array(at).T), 1, atol=0.002)
    assert "<title>17: words about topic 2" in plane
    assert plane.count('class="own"') == 1
    assert '<a href="#f17">' in plane


def test_of_a_crowded_subspace_the_page_names_forty_and_draws_all(run: Path, tmp_path: Path):
    members = [10, *range(1000, 1200)]
    crowd = {"feature": 10, "label": "subspace", "rank": 3, "members": members, "circular": False,
             "places": np.random.default_rng(0).normal(size=402).tolist(), "constituents": []}  # fmt: skip
    other = shutil.copytree(run, tmp_path / "crowd")
    pq.write_table(pa.Table.from_pylist([crowd]), other / "composites.parquet")
    page = write_report(other, tmp_path / "crowd.html").read_text()
    plane = page[page.index('<svg class="plane"') :].partition("</svg>")[0]
    assert plane.count("</text>") == 41
    assert ">10</text>" in plane
    assert plane.count("h0") == 160
    assert "with 200 others" in page
