"""How far a stage and a run are: the figures, and where they are shown."""

from __future__ import annotations

import io
import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from autointerp import progress as shown
from autointerp.progress import Asked, Bars, Line, RunProgress, progress

STAGES = ["corpus", "harvest", "score/detection/a", "score/detection/b", "score/simulation/a"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its one value is the time."""
    now = [0.0]
    monkeypatch.setattr(shown.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_adds_up_what_is_expected_of_the_stages_that_are_not_over(clock: list[float]):
    run = RunProgress(STAGES, {"corpus": 0.0, "harvest": 100.0, STAGES[2]: 10.0, STAGES[3]: 20.0, STAGES[4]: 30.0})
    assert run.seconds_left() == (160.0, True)
    run.end("corpus", 0.0)
    run.begin("harvest")
    clock[0] = 40.0
    assert run.seconds_left() == (120.0, True)
    with run.shown(), progress("harvest", 1000, "tokens") as bar:
        clock[0] = 50.0
        bar.advance(100)  # 10 a second: 90 seconds for the other 900
        assert run.seconds_left() == (150.0, True)
        assert run.figures() == "stage 2 of 5, 2m30s left"


def test_estimates_are_corrected_by_the_stages_of_the_same_kind(clock: list[float]):
    run = RunProgress(STAGES[2:], {STAGES[2]: 10.0, STAGES[3]: 20.0, STAGES[4]: 30.0})
    run.begin(STAGES[2])
    run.end(STAGES[2], 40.0)
    assert run.seconds_left() == (4 * 50.0, True)


def test_what_nothing_is_known_of_makes_the_time_a_lower_bound(clock: list[float]):
    run = RunProgress(STAGES, {"harvest": 60.0})
    assert run.seconds_left() == (60.0, False)
    assert "at least 1m00s left" in run.figures()
    run.end(STAGES[2], 5.0)
    assert run.seconds_left() == (60.0 + 2 * 5.0, False), "scorers are expected to take what the first one took"
    assert RunProgress(STAGES).seconds_left() == (None, False)
    assert "left" not in RunProgress(STAGES).figures()


def test_requests_spend_and_speed_stand_beside_the_time(clock: list[float]):
    run = RunProgress(["score/a"], {"score/a": 30.0})
    run.asked = Asked(1204, 7, 3, 99_000, 0.41, 812.4)
    expected = "stage 1 of 1, 30.0s left, 1,204 requests, 7 from cache, 3 failed, $0.41, 812 tokens/s"
    assert run.figures() == expected
    assert run.lines() == [Line("run", 0.0, expected)]


def test_a_log_gets_a_line_now_and_then_with_the_stage_and_the_run(
    clock: list[float], caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "autointerp")
    run = RunProgress(["score/a"])
    with run.shown():
        run.begin("score/a")
        with progress("score/a", 400, "features") as bar:
            for second in range(1, 31):
                clock[0] = float(second)
                bar.advance(4)
    assert [record.message for record in caplog.records] == [
        "score/a: 60/400 features, 4/s, 1m25s left; run: stage 1 of 1, 1m25s left",
        "score/a: 120/400 features, 4/s, 1m10s left; run: stage 1 of 1, 1m10s left",
        "score/a: 120 features in 30.0s",
    ]


def test_a_terminal_gets_bars_on_stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "100")
    run = RunProgress(["harvest"], {"harvest": 60.0})
    with run.shown() as update, progress("harvest", 10, "tokens") as bar:
        bar.advance(4)
        update()
    assert "harvest" in terminal.getvalue()
    assert "stage 1 of 1" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_a_notebook_gets_bars_that_need_no_widgets(clock: list[float], monkeypatch: pytest.MonkeyPatch):
    drawn: list[Any] = []
    handle = SimpleNamespace(update=drawn.append)

    def display(thing: Any, *, display_id: bool) -> SimpleNamespace:
        drawn.append(thing)
        return handle

    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    run = RunProgress(["score/<a>"])
    with run.shown():
        run.begin("score/<a>")
        with progress("score/<a>", 4, "features") as bar:
            for second in range(1, 5):
                clock[0] = float(second)
                bar.advance()
    assert len(drawn) == 6, "at the beginning, each second, and at the end"
    half: Bars = drawn[2]
    assert repr(half).splitlines()[0] == "score/<a>: 2/4 features, 1/s, 2.0s left"
    assert "<td>score/&lt;a&gt;</td>" in half._repr_html_()
    assert "value=0.500" in half._repr_html_()
