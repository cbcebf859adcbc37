"""What goes wrong for a user ends in one line and the right exit code, and leaves nothing half-written as done."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from endpoint import serving
from planted import config, oracle
from typer.testing import CliRunner

from autointerp.cli import app


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache shared by these tests, so that the corpus is made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def well() -> Iterator[str]:
    """The address of an endpoint that answers, so that nothing but the setting is wrong."""
    with serving(oracle) as endpoint:
        yield endpoint.url


@pytest.fixture
def attempt(stories15m: Path, sae: Path, warm: Path, well: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run a config with some keys changed; returns exit code, last line on stderr, run folder."""
    monkeypatch.setenv("AUTOINTERP_CACHE", str(warm))

    def run(change: Callable[[dict[str, Any]], None], url: str = well) -> tuple[int, str, Path]:
        wanted = config(stories15m, sae, url)
        wanted["corpus"]["tokens"] = 20_000
        change(wanted)
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(wanted))
        result = CliRunner().invoke(app, ["run", str(file), "--out", str(tmp_path / "out")])
        lines = [line for line in result.stderr.splitlines() if line.startswith("autointerp:")]
        assert len(lines) == 1, result.stderr
        assert "Traceback" not in result.output
        assert not (tmp_path / "out" / "features.parquet").exists()
        return result.exit_code, lines[0], tmp_path / "out"

    return run


def setting(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(wanted: dict[str, Any]) -> None:
        *sections, key = path.split(".")
        for section in sections:
            wanted = wanted[section]
        wanted[key] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "code", "said"),
    [
        ("corpus.tokns", 5, 2, "unknown key 'corpus.tokns' – did you mean 'tokens'?"),
        ("subject.hook", "blocks.1.hook_resid_pots", 2, "did you mean 'blocks.1.hook_resid_post'"),
        ("subject.hook", "blocks.77.hook_resid_post", 2, "the layers 0 to 5"),
        ("subject.hook", "blocks.1.mlp.hook_pre", 1, "the SAE reads vectors of 288"),
        ("subject.model", "stories16m", 2, "did you mean 'stories15m'"),
        ("corpus.text_column", "body", 2, "text"),
        ("corpus.source", "nowhere.jsonl", 2, "nowhere.jsonl"),
        ("corpus.context", 999, 2, "256"),
        ("sae.load", "/no/such/sae", 2, "/no/such/sae"),
        ("explainers", ["defualt"], 2, "did you mean 'default'"),
        ("scorers", [{"name": "detection", "bach": 3}], 2, "did you mean 'batch'"),
        ("features.ids", [0, 99], 2, "latents 0 to 3"),
        ("features.min_firings", 10**6, 1, "raise corpus.tokens"),
        ("llm", None, 2, "needs a language model"),
    ],
)
def test_a_wrong_setting(attempt, path: str, value: Any, code: int, said: str) -> None:
    exit_code, line, _ = attempt(setting(path, value))
    assert said in line
    assert exit_code == code


def test_a_missing_key_is_told_before_any_work(attempt, monkeypatch: pytest.MonkeyPatch, warm: Path) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    made = sorted(warm.rglob("manifest.json"))
    code, line, _ = attempt(
        lambda wanted: wanted["llm"].update(api_key_env="NO_SUCH_KEY", base_url="https://api.example.com/v1")
    )
    assert code == 2
    assert "NO_SUCH_KEY" in line
    assert sorted(warm.rglob("manifest.json")) == made


def test_a_dead_endpoint(attempt, warm: Path) -> None:
    made = sorted(warm.rglob("manifest.json"))
    code, line, _ = attempt(lambda wanted: None, "http://127.0.0.1:9/v1")
    assert code == 1
    assert "no answer at http://127.0.0.1:9/v1" in line
    assert sorted(warm.rglob("manifest.json")) == made, "it is told before any work"


def test_a_wrong_key_is_told_and_not_shown(attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "sk-wrong-and-secret")
    with serving(oracle, key="right") as endpoint:
        code, line, out = attempt(setting("llm.api_key_env", "A_KEY"), endpoint.url)
    assert code == 1
    assert "A_KEY" in line or "key" in line.lower()
    for file in [p for p in out.rglob("*") if p.is_file()]:
        assert b"sk-wrong-and-secret" not in file.read_bytes()
    assert "sk-wrong-and-secret" not in line


def test_a_full_disk_while_harvesting(attempt, monkeypatch: pytest.MonkeyPatch, warm: Path) -> None:
    from safetensors import numpy as written

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(written, "save_file", full)
    shutil.rmtree(warm / "store" / "harvest", ignore_errors=True)
    code, line, _ = attempt(lambda wanted: None)
    assert code == 1
    assert "disk full" in line
    assert not list((warm / "store" / "harvest").glob("*/manifest.json"))


def test_a_damaged_sae(attempt, sae: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(sae, broken)
    weights = broken / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    code, line, _ = attempt(setting("sae.load", str(broken)))
    assert code == 1
    assert "sae_weights.safetensors" in line
