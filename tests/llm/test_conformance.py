"""Every backend through the same suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from batch_endpoint import serving_batches
from conformance import conforms
from endpoint import serving
from test_local_backend import save
from test_registry import MINE

from autointerp.config import LLMConfig
from autointerp.errors import ConfigError
from autointerp.llm.backends import batches
from autointerp.llm.registry import check

SLOTS = {"Yes": 0.7, "No": 0.3}


async def test_an_endpoint_with_everything_conforms(tmp_path: Path) -> None:
    with serving(slots=lambda messages, before: SLOTS) as endpoint:
        await conforms(LLMConfig(model="test-model", base_url=endpoint.url, logprobs=True), tmp_path)


async def test_an_endpoint_with_nothing_but_text_conforms(tmp_path: Path) -> None:
    with serving(logprobs=0, schema=400, models=None, completion_tokens_only=True) as endpoint:
        endpoint.refuses = {"temperature": "unsupported value", "stop": "not supported", "seed": "unknown field"}
        await conforms(LLMConfig(model="openai:test-model", base_url=endpoint.url), tmp_path)


async def test_anthropics_api_conforms(tmp_path: Path) -> None:
    with serving(models=("claude",)) as endpoint:
        base = endpoint.url.removesuffix("/v1")
        await conforms(LLMConfig(model="anthropic:claude", base_url=base), tmp_path)
        assert all({"model", "messages", "max_tokens"} <= set(body) for body in endpoint.requests)
        assert all(message["role"] != "system" for body in endpoint.requests for message in body["messages"])


async def test_geminis_api_conforms(tmp_path: Path) -> None:
    with serving(models=("gem",)) as endpoint:
        base = endpoint.url.removesuffix("/v1")
        await conforms(LLMConfig(model="gemini:gem", base_url=base, logprobs=True), tmp_path / "probabilities")
    with serving(models=("gem",), logprobs=0) as endpoint:
        endpoint.refuses = {"seed": "seed is not supported"}
        base = endpoint.url.removesuffix("/v1")
        await conforms(LLMConfig(model="gemini:gem", base_url=base), tmp_path / "text")


async def test_what_litellm_reaches_conforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "sk-for-litellm")
    with serving(key="sk-for-litellm") as endpoint:
        asked = LLMConfig(model="litellm:openai/test-model", base_url=endpoint.url, api_key_env="A_KEY", logprobs=True)
        await conforms(asked, tmp_path)
        monkeypatch.delenv("A_KEY")
        with pytest.raises(ConfigError, match="set the environment variable A_KEY"):
            check(asked)


@pytest.mark.parametrize(
    ("model", "more"), [("openai-batch:test-model", {"logprobs": True}), ("anthropic-batch:test-model", {})]
)
async def test_a_batch_api_conforms(
    model: str, more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "QUIET", 0.05)
    monkeypatch.setattr(batches, "FIRST_LOOK", 0.02)
    with serving_batches() as endpoint:
        base = endpoint.url if model.startswith("openai") else endpoint.url.removesuffix("/v1")
        await conforms(LLMConfig.model_validate({"model": model, "base_url": base, **more}), tmp_path)
        assert endpoint.requests
        assert endpoint.in_batches == len(endpoint.requests), "nothing but probes is asked live"


async def test_a_model_in_process_conforms(tmp_path: Path) -> None:
    folder = save(tmp_path / "tiny")
    await conforms(LLMConfig(model=str(folder), dtype="float32", device="cpu"), tmp_path)
    named = LLMConfig(model="tiny", dtype="float32", device="cpu")
    await conforms(named, tmp_path, names=["tiny"], resolve=lambda name: tmp_path / name)


VLLM = """
import os, sys
sys.path.insert(0, {tests!r})
from endpoint import Endpoint
port, model = (sys.argv[sys.argv.index(name) + 1] for name in ("--port", "--served-model-name"))
slots = lambda messages, before: {slots!r}
Endpoint(port=int(port), models=(model,), key=os.environ["VLLM_API_KEY"], slots=slots).run()
"""


async def test_a_server_that_is_started_conforms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "lib" / "vllm" / "entrypoints" / "openai"
    place.mkdir(parents=True)
    tests = Path(__file__).parent.parent
    (place / "api_server.py").write_text(VLLM.format(tests=str(tests), slots=SLOTS))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'lib'}:{tests.parent}")
    monkeypatch.delenv("AUTOINTERP_VLLM_PYTHON", raising=False)
    await conforms(LLMConfig(model="vllm:org/name"), tmp_path)


async def test_a_backend_of_ones_own_conforms_by_its_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conforming.py").write_text(MINE.replace("class Mine", "class Own"))
    monkeypatch.syspath_prepend(tmp_path)
    await conforms(LLMConfig(model="m", backend="conforming:Own"), tmp_path)
