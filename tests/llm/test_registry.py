"""What is known of a config before anything is asked, by the backend that it names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autointerp.config import LLMConfig, parse_config
from autointerp.errors import ConfigError
from autointerp.llm import open_llm
from autointerp.llm.backends.openai import OpenAIBackend
from autointerp.llm.prices import Prices
from autointerp.llm.registry import backend_name, backend_of, backends, capabilities, check, identity, prices
from autointerp.records import Message


def config(model: str, **options: Any) -> LLMConfig:
    return LLMConfig.model_validate({"model": model, **options})


URL = "https://llm.example/v1"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (config("gpt-4o-mini", base_url=URL), "openai"),
        (config("openai:gpt-4o-mini"), "openai"),
        (config("llama3:8b", base_url=URL), "openai"),
        (config("vllm:org/name"), "vllm"),
        (config("qwen2.5-1.5b"), "local"),
        (config("some/folder"), "local"),
        (config("gpt-4o-mini", backend="openai"), "openai"),
    ],
)
def test_a_config_names_its_backend(given: LLMConfig, name: str) -> None:
    assert backend_name(given) == name
    assert backend_of(given) is backends.get(name)


def test_an_unknown_backend_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no LLM backend named 'opanai' – did you mean 'openai'"):
        backend_of(config("m", backend="opanai"))


def test_a_mistyped_word_before_the_model_names_the_nearest_backend() -> None:
    with pytest.raises(ConfigError, match="no LLM backend is named 'opnai' – did you mean 'openai'"):
        check(config("opnai:gpt-4o"))


def test_what_is_said_of_a_config_loads_no_model_library() -> None:
    source = """
import sys
from autointerp.config import LLMConfig
from autointerp.llm import registry
for llm in (LLMConfig(model="m", base_url="http://127.0.0.1:1/v1"), LLMConfig(model="vllm:a/b"), LLMConfig(model="m")):
    registry.identity(llm, str.upper), registry.capabilities(llm), registry.prices(llm)
registry.check(LLMConfig(model="m"), ["m"])
print(*sorted({"torch", "transformers", "openai", "vllm"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- identity


def test_identity_is_json_of_what_answers_hang_on() -> None:
    plain = config("m", base_url="https://user:pass@llm.example/v1?key=secret-1", concurrency=2)
    assert "secret-1" not in json.dumps(identity(plain, str.upper))
    assert identity(plain, str.upper) == identity(config("m", base_url=URL, concurrency=9, retries=0), str.upper)
    assert identity(config("vllm:org/name"), str.upper)["model"] == "ORG/NAME"
    assert identity(config("name"), str.upper)["model"] == "NAME"


@pytest.mark.parametrize(
    "change",
    [
        {"answer_tokens": 9},
        {"reasoning_effort": "low"},
        {"extra_body": {"top_p": 0.5}},
        {"headers": {"X-Mode": "b"}},
        {"model": "other"},
        {"base_url": "https://other.example/v1"},
        {"logprobs": True},
    ],
)
def test_identity_changes_with_what_changes_answers(change: dict[str, Any]) -> None:
    base = {"model": "m", "base_url": URL}
    assert identity(LLMConfig(**base), str) != identity(LLMConfig.model_validate(base | change), str)


def test_secrets_among_a_servers_arguments_are_left_out_of_its_identity() -> None:
    args = ["--max-model-len", "512", "--hf-token", "hf_secret", "--api-key=sk-secret", "--tokenizer", "a/b"]
    given = config("vllm:org/name", server_args=args)
    assert identity(given, str)["server_args"] == ["--max-model-len", "512", "--tokenizer", "a/b"]
    assert "secret" not in backend_of(given).open(given, None).identity


# --- capabilities and prices


def test_what_a_model_can_do_is_told_as_far_as_the_config_goes() -> None:
    assert capabilities(config("m")) == capabilities(config("vllm:a/b")) == {"choices", "slots"}
    assert capabilities(config("m", base_url=URL)) == set()
    assert capabilities(config("m", base_url=URL, logprobs=True)) == {"choices"}


def test_models_run_here_are_free_and_listed_ones_have_their_price() -> None:
    assert prices(config("m")) == prices(config("vllm:a/b")) == Prices(0, 0)
    assert prices(config("gpt-4o-mini", base_url="https://api.openai.com/v1")) == Prices(0.15, 0.6)
    assert prices(config("openai:gpt-4o-mini")) == Prices(0.15, 0.6)
    assert prices(config("openai/gpt-4o-mini", base_url="https://openrouter.ai/api/v1")) == Prices(0.15, 0.6)


def test_prices_of_the_config_go_before_listed_ones_and_unknown_ones_are_none() -> None:
    openai = {"base_url": "https://api.openai.com/v1"}
    assert prices(config("gpt-4o-mini", price_in=9, **openai)) == Prices(9, 0.6)
    assert prices(config("gpt-4o-mini", price_in=9, price_out=0, **openai)) == Prices(9, 0)
    assert prices(config("no-such-model", **openai)) is None
    assert prices(config("gpt-4o-mini", base_url="http://127.0.0.1:8000/v1")) is None


def test_a_limit_of_cost_works_with_listed_prices(tmp_path: Path) -> None:
    listed = config("gpt-4o-mini", base_url="https://api.openai.com/v1", max_cost=1.0)
    files = {"cache": tmp_path / "cache.sqlite", "journal": tmp_path / "usage.jsonl", "seed": 0}
    client = open_llm(listed, **files)  # type: ignore[arg-type]
    assert client._budget.price(1_000_000, 1_000_000).cost == pytest.approx(0.75)
    with pytest.raises(ConfigError, match=r"prices of 'm' are not known, set llm\.price_in"):
        open_llm(config("m", base_url=URL, max_cost=1.0), **files)  # type: ignore[arg-type]


# --- what can be known wrong


def test_what_is_wrong_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    monkeypatch.setenv("AUTOINTERP_VLLM_PYTHON", str(tmp_path / "absent"))
    wrong = {
        r"'gpt-4o-mini' is neither in the catalogue nor a folder; .* needs llm\.base_url": config("gpt-4o-mini"),
        r"did you mean 'qwen2.5-1.5b'": config("qwen-2.5-1.5b"),
        r"no config\.json": config(str(tmp_path)),
        r"environment variable NO_SUCH_KEY": config("m", base_url=URL, api_key_env="NO_SUCH_KEY"),
        r"llm\.headers\.X needs the environment variable NO_SUCH_KEY": config(
            "m", base_url=URL, api_key_env=None, headers={"X": "$NO_SUCH_KEY"}
        ),
        r"cannot run .*absent": config("vllm:org/name"),
        r"llm\.max_cost": config("m", base_url=URL, api_key_env=None, max_cost=1),
    }
    for message, given in wrong.items():
        with pytest.raises(ConfigError, match=message) as caught:
            check(given, ["qwen2.5-1.5b"])
        assert "\n" not in str(caught.value)


def test_what_is_right_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "x")
    check(config("qwen2.5-1.5b"), ["qwen2.5-1.5b"])
    check(config("org/name"))
    check(config("m", base_url="http://127.0.0.1:1/v1", headers={"X-Key": "$MY_KEY"}))
    check(config("gpt-4o-mini", base_url="https://api.openai.com/v1", api_key_env="MY_KEY", max_cost=1))


@pytest.mark.parametrize(
    "llm", [{"api_key_env": "sk-proj-0123456789"}, {"headers": {"Authorization": "Bearer sk-proj-0123456789"}}]
)
def test_a_key_in_the_config_is_refused_and_not_repeated(llm: dict[str, Any]) -> None:
    raw = {"name": "x", "subject": {"model": "m"}, "corpus": {"source": "s"}, "sae": {"load": "p"}}
    with pytest.raises(ConfigError, match="environment variable") as caught:
        parse_config(raw | {"llm": {"model": "m", **llm}})
    assert "0123456789" not in str(caught.value)


# --- a backend of one's own

MINE = '''
"""A backend in one file."""
from autointerp.llm.backend import Complete, Reply
from autointerp.llm.prices import Prices


class Mine:
    identity, model, capabilities = "mine", "mine-1", frozenset()

    @classmethod
    def open(cls, config, resolve_model):
        return cls()

    @classmethod
    def identify(cls, config, identify_model):
        return {"model": config.model}

    @classmethod
    def expected(cls, config):
        return frozenset()

    @classmethod
    def prices(cls, config):
        return Prices(1.0, 2.0)

    @classmethod
    def check(cls, config, catalogue):
        pass

    async def start(self): ...

    async def close(self): ...

    async def probe(self): ...

    async def ask(self, request):
        return {"text": request.messages[-1].content.upper()}

    def read(self, raw, request):
        return Reply(text=raw["text"], prompt_tokens=1, completion_tokens=1)
'''


async def test_a_backend_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_backend.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    given = config("mine-1", backend="my_backend:Mine")
    check(given)
    assert identity(given, str)["model"] == "mine-1"
    async with open_llm(given, cache=tmp_path / "c.sqlite", journal=tmp_path / "u.jsonl", seed=0) as llm:
        assert (await llm.complete([Message("user", "aloud")])).text == "ALOUD"
        assert llm.spent.cost == pytest.approx(3e-6)


def test_a_class_that_cannot_answer_for_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_backend.py").write_text("class Half: pass")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"Half\) has no 'open'"):
        backend_of(config("m", backend="half_backend:Half"))


def test_built_in_backends_are_what_the_registry_asks_for() -> None:
    assert backends.get("openai") is OpenAIBackend
    assert set(backends.names()) >= {"openai", "vllm", "local"}
