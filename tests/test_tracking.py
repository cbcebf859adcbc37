"""Runs and trainings in Weights & Biases (offline) and MLflow (a folder): the packages themselves, no server."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from planted import HOOK, STORIES, config

import autointerp as ai
from autointerp.config import TrackingConfig, parse_config
from autointerp.errors import AutointerpError, ConfigError
from autointerp.tracking import Tracker, start, tracked

mlflow = pytest.importorskip("mlflow")
wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server, no home of this user's, nothing said to the terminal."""
    for name, value in {"MLFLOW_ALLOW_FILE_STORE": "true", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path))
    logging.getLogger("mlflow").setLevel(logging.ERROR)


def to_mlflow(folder: Path) -> dict[str, str]:
    return {"to": "mlflow", "project": "features", "uri": (folder / "mlruns").as_uri()}


def mlflow_runs(folder: Path) -> dict[str, Any]:
    client = mlflow.MlflowClient((folder / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("features")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return {run.info.run_name: run for run in runs}


def wandb_records(folder: Path) -> Iterator[tuple[str, Any]]:
    """Name of the run, and what its file holds."""
    from wandb.proto.wandb_internal_pb2 import Record

    for file in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        name = ""
        for data in in_leveldb_log(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            name = record.run.display_name or name
            yield name, record


def in_leveldb_log(data: bytes, block: int = 32_768) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format after W&B's header of 7 bytes: each in parts of a checksum (4
    bytes), a length (2) and a kind (1: whole, 2: first, 3: middle, 4: last), none across the end of a block."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


@pytest.fixture
def plain(stories15m: Path, sae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run that asks no language model."""
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache"))
    wanted = config(stories15m, sae, "http://127.0.0.1:1/v1", explainers=["token_stats"], scorers=["lexical"])
    wanted["corpus"]["tokens"], wanted["features"]["min_firings"] = 20_000, 10
    return wanted | {"llm": None, "controls": [], "calibration": {"features": 0}}


def test_a_run_in_mlflow_has_its_config_figures_and_files(plain: dict[str, Any], tmp_path: Path) -> None:
    wanted = parse_config(plain | {"tracking": to_mlflow(tmp_path)})
    made = ai.run(wanted, out=tmp_path / "run")
    ai.run(wanted, out=tmp_path / "run")  # has nothing to do, so is none
    (name, run), *others = mlflow_runs(tmp_path).items()
    assert (name, others, run.info.status) == ("planted", [], "FINISHED")
    assert run.data.params["corpus.tokens"] == "20000"
    assert not [key for key in run.data.params if key.startswith("tracking")]
    assert run.data.metrics["lexical/value"] == pytest.approx(made.features["lexical"].mean())
    assert run.data.metrics["features/ok"] == (made.features["status"] == "ok").sum()
    assert run.data.metrics["harvest/seconds"] > 0
    assert run.data.metrics["usage/requests"] == 0
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    kept = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert kept == {"report.html", "run.json", "config.yaml", "features.parquet"}
    assert not (tmp_path / "run/.tracking").exists()


def test_a_run_that_was_stopped_goes_on_in_the_same_one(
    plain: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = parse_config(plain | {"tracking": to_mlflow(tmp_path)})
    with monkeypatch.context() as patch:
        patch.setattr("autointerp.stages.tables.assemble", stopped)
        with pytest.raises(KeyboardInterrupt):
            ai.run(wanted, out=tmp_path / "run")
    assert mlflow_runs(tmp_path)["planted"].info.status == "KILLED"
    ai.run(wanted, out=tmp_path / "run")
    (run,) = mlflow_runs(tmp_path).values()
    assert run.info.status == "FINISHED"
    assert "lexical/value" in run.data.metrics


def stopped(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_one_setting_logs_the_run_and_its_training(plain: dict[str, Any], tmp_path: Path) -> None:
    """In Weights & Biases, where a second run in a process would end the first."""
    train = {"architecture": "topk", "d_sae": 64, "k": 4, "tokens": 6_000, "batch_size": 256, "log_every": 5}
    subject = plain["subject"] | {"hook": HOOK}
    wanted = plain | {"subject": subject, "sae": {"train": train}, "tracking": {"to": "wandb", "project": "features"}}
    wanted["corpus"] = {"source": str(STORIES), "tokens": 8_000, "context": 128}
    wanted["features"] = {"count": 4, "min_firings": 5}
    made = ai.run(parse_config(wanted), out=tmp_path / "run")
    logged: dict[str, dict[str, str]] = {}
    for name, record in wandb_records(tmp_path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
        elif record.WhichOneof("record_type") == "summary":
            items = record.summary.update
        else:
            continue
        logged.setdefault(name, {}).update({item.key or "/".join(item.nested_key): item.value_json for item in items})
    assert set(logged) == {"planted", "planted-sae"}
    assert "explained_variance" in logged["planted-sae"] or "loss" in logged["planted-sae"]
    assert float(logged["planted"]["lexical/value"]) == pytest.approx(made.features["lexical"].mean())
    kept = {file.name for file in (tmp_path / "wandb").glob("offline-run-*/files/*")}
    assert {"report.html", "features.parquet"} <= kept


class Refuses:
    id = "7"

    def log(self, *_: Any) -> None:
        raise OSError("no route, key sk-abcdefghijklmnopqrstuvwxyz012345")

    summarise = keep = end = log


def test_a_service_that_fails_later_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker("mlflow", Refuses())
    with caplog.at_level(logging.WARNING):
        tracker.log({"a": 1.0}, 1)
        tracker.summarise({"a": 1.0})
        tracker.end("done")
    assert len(caplog.records) == 1
    assert "no route" in caplog.text
    assert "sk-abc" not in caplog.text


def test_a_service_that_cannot_be_begun_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("no folder")
    there = TrackingConfig(to="mlflow", project="p", uri=(tmp_path / "taken").as_uri())
    with pytest.raises(AutointerpError, match="mlflow cannot be reached") as told:
        start(there, "n", {})
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("to", "extra"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_missing_package_is_told_with_its_extra(to: Any, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, to, None)
    with pytest.raises(ConfigError, match=rf"pip install 'autointerp-sae\[{extra}\]'"):
        start(TrackingConfig(to=to, project="p"), "n", {})


def test_without_a_setting_nothing_is_logged() -> None:
    with tracked(None, "n", {}) as tracker:
        assert tracker is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"to": "wandb", "project": "p", "uri": "http://x"}, "MLflow's"),
        ({"to": "mlflow", "project": "p", "uri": "http://me:secret@x"}, "MLFLOW_TRACKING_USERNAME"),
        ({"to": "neptune", "project": "p"}, "wandb"),
    ],
)
def test_what_cannot_be_is_told_before_the_run(plain: dict[str, Any], given: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_config(plain | {"tracking": given})
