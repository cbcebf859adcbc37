"""The whole pipeline with a real vLLM server, which it starts and ends itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted import config, plant

import autointerp as ai
from autointerp.config import parse_config

pytestmark = [pytest.mark.vllm, pytest.mark.weights]


def test_vllm_explains_and_scores_features(
    stories15m: Path, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache"))
    plant(stories15m, tmp_path / "sae")
    wanted = config(stories15m, tmp_path / "sae", "", features={"ids": [0, 1], "min_firings": 30})
    wanted["llm"] = {
        "model": f"vllm:{smollm2}",
        "timeout": 600,
        "server_args": ["--max-model-len", "2048", "--max-num-seqs", "8"],
        "env": {"VLLM_CPU_KVCACHE_SPACE": "1"},
    }
    run = ai.run(parse_config(wanted), out=tmp_path / "run")
    features, usage = run.features, run.usage
    assert features["explanation"].notna().any(), features["failure"].tolist()
    scored = features[features["explanation"].notna()]
    assert scored["detection"].between(0, 1).all()
    assert (scored["detection_n_unscored"] == 0).all()
    assert scored["simulation"].between(-1, 1).all()
    assert set(usage["kind"]) == {"complete", "choose", "fill"}
