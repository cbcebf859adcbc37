"""`train` and `evaluate` from the command line: an SAE alone, without a language model to ask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from planted import STORIES
from typer.testing import CliRunner, Result

import autointerp as ai
from autointerp.cli import app
from autointerp.sae import SAE, SAEConfig, save_sae


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache shared by these tests, so that the corpus is made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def config(stories15m: Path, warm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """No SAE, no llm: neither is needed."""
    monkeypatch.setenv("AUTOINTERP_CACHE", str(warm))
    wanted: dict[str, Any] = {
        "name": "alone",
        "subject": {"model": str(stories15m), "device": "cpu"},
        "corpus": {"source": str(STORIES), "tokens": 4000, "context": 64},
        "evaluation": {"tokens": 400},
    }
    file = tmp_path / "alone.yaml"
    file.write_text(yaml.safe_dump(wanted))
    return str(file)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_evaluate_writes_tables_saebench_and_plots_once(config: str, sae: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = call("evaluate", sae, config, "--out", out)
    assert first.exit_code == 0, first.output
    assert "ce_loss_recovered" in first.stdout
    assert first.stdout.splitlines()[-1] == f"tables, saebench.json, evaluation.png: {out}"
    figures = pd.read_parquet(out / "evaluation.parquet").set_index("metric")
    assert figures.loc["ce_clean", "value"] == pytest.approx(1.5, abs=1)
    assert figures.loc["l0", "low"] <= figures.loc["l0", "value"] <= figures.loc["l0", "high"]
    assert figures.loc["mmcs_random", "value"] > 0
    positions = pd.read_parquet(out / "evaluation_positions.parquet")
    assert positions["position"].tolist() == list(range(1, 64))
    assert not positions["beyond"].any()
    features = pd.read_parquet(out / "evaluation_features.parquet")
    assert len(features) == 4
    assert features["word_start_share"].dropna().eq(1).all(), "each latent fires on one word"
    told = json.loads((out / "saebench.json").read_text())
    assert told["eval_result_metrics"]["sparsity"]["l0"] == figures.loc["l0", "value"]
    assert told["sae_cfg_dict"]["hook_name"] == "hook_embed"
    assert (out / "evaluation.png").read_bytes()[:4] == b"\x89PNG"
    assert not list(out.glob("features.parquet"))

    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    again = call("evaluate", sae, config, "--out", out)
    assert again.exit_code == 0
    assert "nothing to do" in again.stderr
    assert again.stdout == first.stdout
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir() if file.name in before} == before


@pytest.mark.parametrize(
    ("sae_is", "settings", "code", "said"),
    [
        ("/no/such/sae", [], 2, "/no/such/sae"),
        ("SAE", ["subject.hook=blocks.1.mlp.hook_pre"], 1, "the SAE reads vectors of 288"),
        ("SAE", ["subject.hook=blocks.9.hook_resid_pre"], 2, "the layers 0 to 5"),
        ("SAE", ["evaluation.tokns=5"], 2, "did you mean 'tokens'?"),
        ("SAE", ["evaluation.context=300"], 2, "the model reads 256 tokens at most"),
    ],
)
def test_what_went_wrong_is_one_line(
    config: str, sae: Path, tmp_path: Path, sae_is: str, settings: list[str], code: int, said: str
) -> None:
    given = [part for setting in settings for part in ("--set", setting)]
    result = call("evaluate", sae if sae_is == "SAE" else sae_is, config, "--out", tmp_path / "out", *given)
    lines = [line for line in result.stderr.splitlines() if line.startswith("autointerp:")]
    assert len(lines) == 1
    assert said in lines[0]
    assert result.exit_code == code
    assert not (tmp_path / "out" / "evaluation.parquet").exists()


def test_a_transcoder_is_measured_where_it_writes(config: str, tmp_path: Path) -> None:
    eye = torch.eye(288)
    tensors = {
        "W_enc": torch.cat([eye, -eye], 1),
        "W_dec": torch.zeros(576, 288),
        "b_enc": torch.zeros(576),
        "b_dec": torch.zeros(288),
    }
    facts: dict[str, Any] = {"hook_name": "blocks.1.mlp.hook_in", "d_out": 288, "context_size": 32}
    save_sae(SAE(SAEConfig("relu", 288, 576, "saelens", "float32", False, **facts), tensors), tmp_path / "tc")
    missing = call("evaluate", tmp_path / "tc", config, "--out", tmp_path / "out")
    assert missing.exit_code == 2
    assert "subject.hook_out is missing" in missing.stderr
    run = ai.evaluate(tmp_path / "tc", config, set={"subject.hook_out": "layers.1.mlp"}, out=tmp_path / "out")
    figures = run.evaluation.set_index("metric")["value"]
    assert figures["ce_loss_recovered"] == 0
    assert figures["l0"] == 288
    assert pd.isna(figures["mmcs"])
    assert run.evaluation_positions["beyond"].sum() == 32
    told = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert told["facts"]["hook_out"] == "layers.1.mlp -> blocks.1.hook_mlp_out"


def test_train_leaves_an_sae_that_evaluate_takes(config: str, sae: Path, tmp_path: Path) -> None:
    loads = call("train", config, "--set", f"sae.load={sae}")
    assert loads.exit_code == 2
    assert "give sae.train" in loads.stderr
    settings = {
        "subject.hook": "blocks.0.hook_resid_post",
        "sae.train": {"d_sae": 32, "k": 4, "tokens": 1024, "batch_size": 256},
    }
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    result = call("train", config, "--out", tmp_path / "out", *given)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"SAE: {tmp_path / 'out' / 'sae'}"
    assert "explained_variance" in result.stdout
    assert ai.load_sae(tmp_path / "out" / "sae").cfg.d_sae == 32

    from autointerp.commands.run import run_targets
    from autointerp.config import load_config

    done = run_targets(load_config(config, settings), ["sae", "evaluate"], out=tmp_path / "out")
    assert (done["sae"] / "sae_weights.safetensors").exists()
    figures = pd.read_parquet(done["evaluate"] / "evaluation.parquet").set_index("metric")
    assert 0 < figures.loc["l0", "n"] <= 400, "a tenth was held out from its training: no more is counted"


def test_how_much_of_a_norm_is_outlying_is_the_configs_to_say(config: str, sae: Path, tmp_path: Path) -> None:
    figures, facts = {}, {}
    for multiple in ("1.05", "null"):
        out = tmp_path / multiple
        ran = call("evaluate", sae, config, "--set", f"sae.outlier_norm={multiple}", "--out", out)
        assert ran.exit_code == 0, ran.output
        figures[multiple] = pd.read_parquet(out / "evaluation.parquet").set_index("metric")["value"]
        facts[multiple] = json.loads((out / "evaluation.json").read_text())["facts"]["outlier_threshold"]
    left, everything = figures["1.05"], figures["null"]
    assert facts["1.05"] > 0
    assert facts["null"] is None
    assert 0 < left["outlying_tokens"] < 1
    assert everything["outlying_tokens"] == 0
    assert left["explained_variance_with_outliers"] == pytest.approx(everything["explained_variance"], abs=1e-5)
    assert left["explained_variance"] != everything["explained_variance"]
