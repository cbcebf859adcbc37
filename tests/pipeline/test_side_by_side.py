"""Variants side by side: bounded, in the order of what waits for what, each one's end told, and none left behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from autointerp.commands import side_by_side as module
from autointerp.commands import variant as process
from autointerp.commands.side_by_side import LOG, Outcome, side_by_side
from autointerp.commands.variant import Key, Measured, Variant
from autointerp.config import parse_config
from autointerp.errors import AutointerpError

PROCESS = """
import json, os, select, sys, time
from pathlib import Path

asked = json.loads(sys.stdin.readline())
folder = Path(asked["folder"])
running, name = folder.parent / "running", asked["name"]
running.mkdir(exist_ok=True)
(running / name).touch()
print("begun", flush=True)
until = time.monotonic() + 60
while name in ("a", "b") and not {"a", "b"} <= set(os.listdir(running)) and time.monotonic() < until:
    time.sleep(0.01)  # both are there at once, or the test fails
told = {"sae": name, "rows": [], "places": [{"beside": sorted(os.listdir(running)), **dict(os.environ)}]}
told["places"][0]["stdin ended"] = bool(select.select([0], [], [], 0)[0])
if name == "crashes":
    os._exit(7)
if name == "stays":
    time.sleep(600)
if name == "fails":
    told = {"failure": "no hook", "exit_code": 2}
(folder / "figures.json").write_text(json.dumps(told))
while name in ("a", "b") and not all((folder.parent / f"{n} 0" / "figures.json").exists() for n in "ab"):
    time.sleep(0.01)
(running / name).unlink()
"""


@pytest.fixture(autouse=True)
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of their own, which measure nothing."""
    monkeypatch.setattr(module, "COMMAND", [sys.executable, "-c", PROCESS])


def variant(folder: Path, name: str) -> Variant:
    given: dict[str, Any] = {"name": "x", "subject": {"model": "m"}, "corpus": {"source": "s"}, "sae": {"load": "s"}}
    return Variant(name, 0, parse_config(given), folder / f"{name} 0")


def run(folder: Path, waits: dict[str, set[str]], jobs: int) -> tuple[list[str], dict[str, Outcome]]:
    """In which order they ended, and what became of each."""
    after: dict[Key, set[Key]] = {(name, 0): {(other, 0) for other in others} for name, others in waits.items()}
    outcomes = {name: end for (name, _), end in side_by_side(after, lambda k: variant(folder, k[0]), ("l0",), jobs)}
    return [*outcomes], outcomes


def test_as_many_as_asked_for_run_at_once_and_no_more(tmp_path: Path) -> None:
    _, outcomes = run(tmp_path, {"a": set(), "b": set(), "c": set()}, jobs=2)
    beside = {name: end.places[0]["beside"] for name, end in outcomes.items() if isinstance(end, Measured)}
    assert beside.keys() == {"a", "b", "c"}
    assert beside["a"] == beside["b"] == ["a", "b"]
    assert len(beside["c"]) <= 2
    assert not any(end.places[0]["stdin ended"] for end in outcomes.values() if isinstance(end, Measured))
    assert "begun" in (tmp_path / "c 0" / LOG).read_text()


def test_a_variant_waits_for_the_one_that_it_reads(tmp_path: Path) -> None:
    order, _ = run(tmp_path, {"reads": {"is read"}, "is read": set(), "other": set()}, jobs=3)
    assert order.index("is read") < order.index("reads")


def test_one_that_fails_or_crashes_is_told_and_the_others_are_kept(tmp_path: Path) -> None:
    _, outcomes = run(tmp_path, {"fails": set(), "crashes": set(), "other": {"fails"}}, jobs=2)
    assert isinstance(outcomes["other"], Measured)
    failed, crashed = outcomes["fails"], outcomes["crashes"]
    assert isinstance(failed, AutointerpError)
    assert (str(failed), failed.exit_code) == ("no hook", 2)
    assert str(crashed) == f"its process ended with 7: see {tmp_path / 'crashes 0' / LOG}"


def test_one_that_cannot_begin_is_told_and_the_others_run(tmp_path: Path) -> None:
    def ready(key: Key) -> Variant:
        if key[0] == "fails":
            raise AutointerpError("what it reads is not there")
        return variant(tmp_path, key[0])

    outcomes = dict(side_by_side({("fails", 0): set(), ("other", 0): set()}, ready, (), 1))
    assert str(outcomes["fails", 0]) == "what it reads is not there"
    assert isinstance(outcomes["other", 0], Measured)


def test_where_the_sweep_ends_its_processes_end_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    original = module.subprocess.Popen
    monkeypatch.setattr(module.subprocess, "Popen", lambda *a, **k: begun.append(original(*a, **k)) or begun[-1])
    ends = side_by_side({("stays", 0): set(), ("other", 0): set()}, lambda k: variant(tmp_path, k[0]), (), 2)
    assert next(ends)[0] == ("other", 0)
    until = time.monotonic() + 60
    while not (tmp_path / "running" / "stays").exists() and time.monotonic() < until:
        time.sleep(0.01)
    ends.close()  # as Ctrl-C, or an error, leaves it
    assert [process.poll() is not None for process in begun] == [True, True]
    assert not (tmp_path / "stays 0" / "figures.json").exists()


def test_each_has_its_part_of_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [module._share(place, 3)["CUDA_VISIBLE_DEVICES"] for place in range(3)] == ["4", "6", "4"]
    assert module._share(0, 3)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert module._share(0, 3) == {"OMP_NUM_THREADS": "5"}


def test_a_process_stops_as_by_ctrl_c_when_the_sweep_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = os.pipe()
    sent: list[tuple[int, int]] = []
    with os.fdopen(theirs) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(process.os, "kill", lambda *given: sent.append(given))
        thread = Thread(target=process._end_with_sweep)
        thread.start()
        assert not sent
        os.close(ours)
        thread.join(60)
    assert sent == [(os.getpid(), signal.SIGINT)]
