"""A run that shows itself: tables and report grow, progress.json says how far it is, and readers tell of both."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from endpoint import Endpoint, serving
from planted import config, oracle
from synthetic import write_run
from typer.testing import CliRunner

import autointerp as ai
from autointerp.cli import app
from autointerp.commands import live
from autointerp.commands.live import JournalTail, Live, LiveTables
from autointerp.config import Config, parse_config
from autointerp.engine import executor
from autointerp.errors import AutointerpError
from autointerp.progress import Standing, read_standing
from autointerp.report import find_run, print_table, show, so_far, write_report
from autointerp.tables import write_rows

CONFIG: dict[str, Any] = {
    "name": "tiny",
    "subject": {"model": "m"},
    "corpus": {"source": "s"},
    "sae": {"load": "x"},
    "llm": {"model": "judge", "base_url": "http://127.0.0.1:9", "price_in": 1.0, "price_out": 2.0},
    "composites": {"enabled": False},
}
SCORE = "score/detection/default"


@pytest.fixture
def stages(tmp_path: Path) -> dict[str, Path]:
    """Three selected features, all explained; a detection score of the first alone, in a shard."""
    folders = {name: tmp_path / name.replace("/", "__") for name in ("select", "explain/default", SCORE)}
    for folder in folders.values():
        folder.mkdir()
    selected = {"firings": 9, "frequency": 0.1, "max_activation": 1.0, "selected": "first", "status": "ok"}
    write_rows(folders["select"] / "selection.parquet", "selection", [{"feature": f, **selected} for f in range(3)])
    explained = {"explainer": "default", "status": "ok", "model": "judge"}
    rows = [{"feature": f, "explanation": f"the word {f}", **explained} for f in range(3)]
    write_rows(folders["explain/default"] / "explanations.parquet", "explanations", rows)
    add_score(folders[SCORE], 0)
    return folders


def add_score(folder: Path, feature: int) -> None:
    names = {"feature": feature, "explainer": "default", "scorer": "detection"}
    score = {**names, "value": 0.9, "low": 0.8, "high": 1.0, "n_scored": 4, "n_unscored": 0, "base_rate": 0.5}
    write_rows(folder / f"part-{feature:05d}.scores.parquet", "scores", [score])
    judged = {"example": 1, "kind": "near", "truth": 0.0, "prediction": 1.0, "status": "ok"}
    write_rows(folder / f"part-{feature:05d}.judgements.parquet", "judgements", [names | judged])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def standing(**changes: Any) -> Standing:
    of_now = Standing("harvest", 4, 16, "2026-01-02T03:04:05Z", os.getpid(), socket.gethostname(), time.time())
    return replace(of_now, **changes)


# --- tables that grow -------------------------------------------------------------------------


def test_tables_and_report_hold_what_the_shards_have_so_far(stages: dict[str, Path], folder: Path):
    tables = LiveTables(parse_config(CONFIG), folder)
    assert tables.refresh(stages)
    features = pq.read_table(folder / "features.parquet").to_pylist()
    assert [row["explanation"] for row in features] == ["the word 0", "the word 1", "the word 2"]
    assert [row["detection"] for row in features] == [0.9, None, None]
    assert [row["simulation"] for row in features] == [None] * 3, "a scorer that has not begun has its column"
    assert "the word 2" in (folder / "report.html").read_text()
    add_score(stages[SCORE], 1)
    assert tables.refresh(stages)
    assert pq.read_table(folder / "features.parquet")["detection"].to_pylist() == [0.9, 0.9, None]
    assert len(pq.read_table(folder / "judgements.parquet")) == 2
    tables.close()
    assert not list(folder.glob(".*")), "nothing hidden is left"


def test_what_has_not_changed_is_not_written_again(stages: dict[str, Path], folder: Path):
    tables = LiveTables(parse_config(CONFIG), folder)
    tables.refresh(stages)
    before = {name: (folder / f"{name}.parquet").stat().st_ino for name in ("explanations", "scores")}
    add_score(stages[SCORE], 2)
    tables.refresh(stages)
    after = {name: (folder / f"{name}.parquet").stat().st_ino for name in before}
    assert after["explanations"] == before["explanations"]
    assert after["scores"] != before["scores"]


def test_a_table_that_an_earlier_config_wrote_goes(stages: dict[str, Path], folder: Path):
    write_rows(folder / "cofiring.parquet", "cofiring", [])
    LiveTables(parse_config(CONFIG), folder).refresh(stages)
    assert not (folder / "cofiring.parquet").exists()


@pytest.mark.parametrize("state", ["nothing selected", "being renamed", "being merged"])
def test_files_that_come_and_go_are_no_error_and_leave_the_tables_as_they_were(
    stages: dict[str, Path], folder: Path, state: str
):
    tables = LiveTables(parse_config(CONFIG), folder)
    tables.refresh(stages)
    before = {file.name: file.read_bytes() for file in folder.glob("*.parquet")}
    add_score(stages[SCORE], 1)
    if state == "nothing selected":
        stages.pop("select")
    elif state == "being renamed":
        stages[SCORE] = stages[SCORE].with_suffix(".partial")
    else:
        (stages[SCORE] / "scores.parquet").write_bytes(b"PAR1 not whole")
    assert not tables.refresh(stages)
    assert {file.name: file.read_bytes() for file in folder.glob("*.parquet")} == before


@pytest.mark.parametrize(("took", "rest"), [(0.5, 20.0), (10.0, 200.0)])
def test_refreshes_cost_less_than_a_twentieth_of_the_time(
    stages: dict[str, Path], folder: Path, took: float, rest: float
):
    now = iter([0.0, 100.0, 100.0 + took, 100.0 + took])
    tables = LiveTables(parse_config(CONFIG), folder, now=lambda: next(now))
    assert tables.rest() < 0, "the first one begins at once"
    tables.refresh(stages)
    assert tables.rest() == rest


# --- requests ---------------------------------------------------------------------------------


def test_requests_of_this_run_are_counted_with_their_cost(tmp_path: Path):
    journal, clock = tmp_path / "usage.jsonl", [0.0]
    row = {"model": "judge", "cached": False, "prompt_tokens": 1000, "completion_tokens": 100, "outcome": "ok"}
    journal.write_text(json.dumps(row) + "\n")
    tail = JournalTail(journal, live.prices_of(parse_config(CONFIG)), now=lambda: clock[0])
    with journal.open("a") as file:
        file.write(json.dumps(row) + "\n" + json.dumps(row | {"cached": True}) + "\n")
        file.write(json.dumps(row | {"outcome": "failed: HTTP 500", "prompt_tokens": 0}) + "\n" + '{"torn')
        file.flush()
        clock[0] = 10.0
        asked = tail.read()
    assert (asked.requests, asked.from_cache, asked.failed, asked.tokens) == (2, 1, 1, 1200)
    assert asked.cost == pytest.approx((1000 * 1.0 + 200 * 2.0) / 1e6)
    assert asked.tokens_per_second == pytest.approx(120)
    assert tail.read().requests == 2


def test_a_price_that_is_not_known_is_not_shown(tmp_path: Path):
    journal = tmp_path / "usage.jsonl"
    tail = JournalTail(journal, {})
    row = {"model": "other", "cached": False, "prompt_tokens": 1, "completion_tokens": 1, "outcome": "ok"}
    journal.write_text(json.dumps(row) + "\n")
    assert tail.read().cost is None
    assert "$" not in ", ".join(tail.read().figures())


# --- readers ----------------------------------------------------------------------------------


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    run = write_run(tmp_path / "unfinished", features=5, windows=1)
    standing(stage=SCORE, number=12, done=120, total=400, unit="features", seconds_left=310.0, tables=1.0).write(run)
    return run


SENTENCE = f"the run goes on: stage 12 of 16, {SCORE}, 120/400 features, 5m10s left; these are its results so far"


def test_every_reader_says_that_the_run_goes_on(
    unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    out = io.StringIO()
    print_table(unfinished, out=out)
    assert out.getvalue().splitlines()[-1] == SENTENCE
    out = io.StringIO()
    show(unfinished, 3, out)
    assert out.getvalue().splitlines()[-1] == SENTENCE
    assert SENTENCE in write_report(unfinished, tmp_path / "r.html").read_text()
    ai.open_run(unfinished)
    assert SENTENCE in caplog.text
    out = io.StringIO()
    print_table(unfinished, format="json", out=out)
    assert json.loads(out.getvalue())
    assert capsys.readouterr().err == f"{SENTENCE}\n"


def test_a_report_of_a_run_that_goes_on_shows_no_figures_of_an_earlier_run(unfinished: Path):
    page = write_report(unfinished).read_text()
    assert "torch 2.13.0" not in page


@pytest.mark.parametrize(
    "changes", [{"stopped": True}, {"updated": 1_767_323_045.0}, {"pid": 2**22 + 1}], ids=["told", "silent", "killed"]
)
def test_a_run_that_was_stopped_says_when(unfinished: Path, changes: dict[str, Any]):
    standing(number=12, stage=SCORE, tables=1.0, **changes).write(unfinished)
    line = so_far(unfinished)
    assert line is not None
    assert line.startswith("the run was stopped on 20")
    assert line.endswith(f"UTC: stage 12 of 16, {SCORE}; these are its results so far")


def test_before_the_first_scores_readers_say_whose_tables_these_are(unfinished: Path, tmp_path: Path):
    standing().write(unfinished)
    assert "these tables are of an earlier run" in str(so_far(unfinished))
    (tmp_path / "begun").mkdir()
    standing(seconds_left=90.0, whole=False).write(tmp_path / "begun")
    with pytest.raises(AutointerpError, match=r"goes on: stage 4 of 16, harvest, at least 1m30s left; tables come"):
        find_run(tmp_path / "begun")


def test_a_file_that_cannot_be_read_tells_nothing(folder: Path):
    (folder / "progress.json").write_text('{"stage": 3')
    assert read_standing(folder) is None


# --- whole runs -------------------------------------------------------------------------------


def test_ctrl_c_ends_a_run_with_130_and_keeps_what_was_answered(
    stories15m: Path, sae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The endpoint answers none of the requests that are on their way: nobody waits for them."""
    environment = {**os.environ, "AUTOINTERP_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    with serving(oracle, latency=0.02) as endpoint:
        wanted = config(stories15m, sae, endpoint.url, features={"ids": list(range(8)), "min_firings": 30})
        wanted |= {"scorers": ["detection"], "composites": {"enabled": False}}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(wanted))
        arguments = ["run", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run")]
        process = subprocess.Popen(
            [sys.executable, "-m", "autointerp", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored below a shell's background job
        )
        endpoint.until(lambda: len(endpoint.requests) >= 8, timeout=120)
        endpoint.latency = 600.0
        sent = endpoint.received
        endpoint.until(lambda: endpoint.received > sent, timeout=60)
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=30)
        assert (process.returncode, log.splitlines()[-1]) == (130, "autointerp: stopped; run again to go on")
        standing = read_standing(tmp_path / "run")
        assert standing is not None
        assert standing.stopped
        assert standing.requests >= 8
        endpoint.latency = 0.0
        answered = len(endpoint.requests)
        monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache"))
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        assert "8 ok" in done.stdout
        bodies = [json.dumps(body, sort_keys=True) for body in endpoint.requests]
        assert len(set(bodies[:answered]) & set(bodies[answered:])) <= 16, "only what was on its way is asked again"
    assert so_far(tmp_path / "run") is None


@pytest.fixture
def planted(
    stories15m: Path, sae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Config, Endpoint]]:
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(executor, "PART", 4)
    with serving(oracle) as endpoint:
        made = config(stories15m, sae, endpoint.url, features={"ids": list(range(8)), "min_firings": 30})
        made |= {"scorers": ["detection"], "composites": {"enabled": False}}
        yield parse_config(made), endpoint


def test_a_run_inside_a_running_loop_shows_itself_and_ends_clean(
    planted: tuple[Config, Endpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As a notebook calls it. Every shard is refreshed before the next is kept, so that nothing hangs on time."""
    wanted, _ = planted
    lines: list[str | None] = []
    told: list[int] = []

    def shard_kept(self: Live) -> None:
        if str(self.progress.stage).startswith("score/") and self.refresh():
            lines.append(so_far(tmp_path / "run"))
            told.append(
                sum(
                    v is not None
                    for v in pq.read_table(find_run(tmp_path / "run") / "features.parquet")["detection"].to_pylist()
                )
            )

    monkeypatch.setattr(Live, "shard_kept", shard_kept)

    async def cell() -> ai.Run:
        return ai.run(wanted, out=tmp_path / "run")

    run = asyncio.run(cell())
    assert [line and line.split(":")[0] for line in lines] == ["the run goes on"] * len(lines)
    assert told == sorted(told)
    assert told[0] in (4, 8)
    assert so_far(run.folder) is None
    assert run.features["detection"].notna().all()
    assert run.info["usage"]["requests"] > 0
    assert {path.name for path in run.folder.glob(".*")} == {".lock"}
    assert "results so far" not in (run.folder / "report.html").read_text()


def test_a_run_that_fails_leaves_its_tables_and_says_so_and_the_next_run_ends_it(
    planted: tuple[Config, Endpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    wanted, _ = planted
    whole = Live.shard_kept

    def fail(self: Live) -> None:
        if str(self.progress.stage).startswith("score/"):
            self.refresh()
            raise AutointerpError("the disk is full")

    monkeypatch.setattr(Live, "shard_kept", fail)
    with pytest.raises(AutointerpError, match="the disk is full"):
        ai.run(wanted, out=tmp_path / "run")
    assert str(so_far(tmp_path / "run")).startswith("the run was stopped on ")
    assert len(ai.open_run(tmp_path / "run").features) == 8
    monkeypatch.setattr(Live, "shard_kept", whole)
    run = ai.run(wanted, out=tmp_path / "run")
    assert so_far(run.folder) is None
    assert run.features["detection"].notna().all()
