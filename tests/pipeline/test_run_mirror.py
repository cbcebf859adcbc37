"""Runs on machines that share no disk but a mirror, and runs whose folder is at a URL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from endpoint import Endpoint, serving
from planted import config, oracle

import autointerp as ai
from autointerp.commands.doctor import doctor
from autointerp.commands.plan import plan
from autointerp.commands.prompts import prompts
from autointerp.config import Config, parse_config
from autointerp.engine import mirror as mirrors

FOUR = {"ids": list(range(4)), "min_firings": 30}


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(oracle) as served:
        yield served


@pytest.fixture
def wanted(stories15m: Path, sae: Path, endpoint: Endpoint) -> Callable[..., Config]:
    return lambda **more: parse_config(config(stories15m, sae, endpoint.url, features=FOUR, **more))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Turns this process into another machine: an empty cache, and nothing remembered of the mirror."""
    monkeypatch.setenv("AUTOINTERP_MIRROR", (tmp_path / "mirror").as_uri())

    def become(name: str) -> Path:
        mirrors.mirror_at.cache_clear()
        cache = tmp_path / name
        monkeypatch.setenv("AUTOINTERP_CACHE", str(cache))
        return cache

    return become


def statuses(run: ai.Run) -> dict[str, str]:
    return {name: stage["status"] for name, stage in run.info["stages"].items()}


def test_a_second_machine_runs_the_same_config_and_computes_nothing(
    wanted: Callable[..., Config], endpoint: Endpoint, machine: Callable[[str], Path], tmp_path: Path
) -> None:
    machine("one")
    first = ai.run(wanted(), out=tmp_path / "first")
    assert set(statuses(first).values()) == {"ran"}
    asked = endpoint.received

    cache = machine("two")
    made = plan(wanted(), tmp_path / "second")
    assert {stage.state for stage in made.stages} == {"done"}
    assert not (cache / "store").exists(), "a plan fetches nothing"
    second = ai.run(wanted(), out=tmp_path / "second")
    assert set(statuses(second).values()) == {"cached"}
    assert endpoint.received == asked
    for table in ("features", "scores", "judgements", "contexts"):
        pd.testing.assert_frame_equal(getattr(first, table), getattr(second, table))
    assert [path.name for path in (cache / "store").iterdir()] == ["tables"]


def test_a_changed_config_fetches_what_its_stages_read(
    wanted: Callable[..., Config], machine: Callable[[str], Path], tmp_path: Path
) -> None:
    machine("one")
    ai.run(wanted(), out=tmp_path / "first")
    cache = machine("two")
    other = wanted(scorers=["fuzzing"])
    planned = {stage.name: stage.state for stage in plan(other, tmp_path / "second").stages}
    assert planned["harvest"] == planned["contexts"] == planned["explain/default"] == "done"
    ran = statuses(ai.run(other, out=tmp_path / "second"))
    assert {name for name, status in ran.items() if status == "cached"} == {
        name for name, state in planned.items() if state == "done"
    }
    assert not (cache / "store" / "harvest").exists()
    shown = list(prompts(other, out=tmp_path / "second"))
    assert {view.stage for view in shown} >= {"explain/default", "score/fuzzing/default"}


def test_a_run_whose_folder_is_at_a_url_is_read_and_gone_on_with_elsewhere(
    wanted: Callable[..., Config], endpoint: Endpoint, machine: Callable[[str], Path], tmp_path: Path
) -> None:
    out = (tmp_path / "bucket" / "mine").as_uri()
    machine("one")
    first = ai.run(wanted(), out=out)
    asked, files = endpoint.received, {path.name for path in (tmp_path / "bucket" / "mine").iterdir()}
    assert {"features.parquet", "usage.parquet", "report.html", "run.json", "config.yaml"} <= files
    assert "progress.json" not in files

    machine("two")
    pd.testing.assert_frame_equal(ai.open_run(out).features, first.features)
    again = ai.run(wanted(), out=out)
    assert endpoint.received == asked
    assert again.info == first.info, "nothing was to do, so nothing was written"


def test_doctor_says_what_a_mirror_is_good_for(
    wanted: Callable[..., Config], machine: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def mirror_line() -> tuple[str, str]:
        mirrors.mirror_at.cache_clear()
        (check,) = (check for check in doctor(wanted()) if check.name == "mirror")
        return check.state, check.text

    machine("one")
    state, text = mirror_line()
    assert state == "ok"
    assert "what is to do puts about" in text
    (tmp_path / "file").touch()
    monkeypatch.setenv("AUTOINTERP_MIRROR", (tmp_path / "file" / "mirror").as_uri())
    state, text = mirror_line()
    assert state == "not known", "a run goes on"
    assert text.endswith("cannot be read (Not a directory): the run goes on without it")
    monkeypatch.setenv("AUTOINTERP_MIRROR", "nodriver://bucket/mirror")
    state, text = mirror_line()
    assert state == "wrong"
    assert text.startswith("AUTOINTERP_MIRROR: nodriver://bucket/mirror")
    monkeypatch.delenv("AUTOINTERP_MIRROR")
    assert not [check for check in doctor(wanted()) if check.name == "mirror"]
