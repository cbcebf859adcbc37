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
from autointerp.engine import remote

FOUR = {"ids": list(range(4)), "min_firings": 30}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with serving(oracle) as served:
        yield served


@pytest.fixture(scope="module")
def wanted(stories15m: Path, sae: Path, endpoint: Endpoint) -> Callable[..., Config]:
    return lambda **more: parse_config(config(stories15m, sae, endpoint.url, features=FOUR, **more))


def become(patch: pytest.MonkeyPatch, cache: Path, mirror: Path) -> None:
    """Turn this process into another machine: an empty cache, and nothing remembered of the mirror."""
    mirrors.mirror_at.cache_clear()
    patch.setenv("AUTOINTERP_CACHE", str(cache))
    patch.setenv("AUTOINTERP_MIRROR", mirror.as_uri())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the mirror lies, and runs' folders at a URL."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def first(wanted: Callable[..., Config], shared: Path, tmp_path_factory: pytest.TempPathFactory) -> ai.Run:
    """What one machine has made, its folder at a URL."""
    with pytest.MonkeyPatch.context() as patch:
        become(patch, tmp_path_factory.mktemp("one"), shared / "mirror")
        return ai.run(wanted(), out=(shared / "mine").as_uri())


@pytest.fixture
def cache(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a second machine."""
    become(monkeypatch, tmp_path / "two", shared / "mirror")
    return tmp_path / "two"


def statuses(run: ai.Run) -> dict[str, str]:
    return {name: stage["status"] for name, stage in run.info["stages"].items()}


def test_a_second_machine_runs_the_same_config_and_computes_nothing(
    first: ai.Run, wanted: Callable[..., Config], endpoint: Endpoint, cache: Path, tmp_path: Path
) -> None:
    assert set(statuses(first).values()) == {"ran"}
    asked = endpoint.received
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
    first: ai.Run, wanted: Callable[..., Config], cache: Path, tmp_path: Path
) -> None:
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
    first: ai.Run, wanted: Callable[..., Config], endpoint: Endpoint, cache: Path, shared: Path
) -> None:
    out = (shared / "mine").as_uri()
    asked, files = endpoint.received, {path.name for path in (shared / "mine").iterdir()}
    assert {"features.parquet", "usage.parquet", "report.html", "run.json", "config.yaml"} <= files
    assert "progress.json" not in files
    pd.testing.assert_frame_equal(ai.open_run(out).features, first.features)
    again = ai.run(wanted(), out=out)
    assert endpoint.received == asked
    assert again.info == first.info, "nothing was to do, so nothing was written"


def test_doctor_says_what_a_mirror_is_good_for(
    wanted: Callable[..., Config], cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def mirror_line() -> tuple[str, str]:
        mirrors.mirror_at.cache_clear()
        (check,) = (check for check in doctor(wanted()) if check.name == "mirror")
        return check.state, check.text

    monkeypatch.setattr(remote, "FIRST", 0.0)
    monkeypatch.setattr(remote, "LONGEST", 0.0)
    monkeypatch.setenv("AUTOINTERP_MIRROR", (tmp_path / "mirror").as_uri())
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
    monkeypatch.setenv("AUTOINTERP_MIRROR", str(cache / "store"))
    state, text = mirror_line()
    assert state == "wrong"
    assert "lies in the store that it is to mirror" in text
