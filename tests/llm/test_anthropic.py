"""Anthropic's messages API: what is sent, what is read, and what its failures mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from endpoint import failure, serving
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse, Response

from autointerp.config import LLMConfig
from autointerp.errors import AutointerpError, ConfigError
from autointerp.llm import Client, open_llm
from autointerp.llm.backend import Complete, RetryableFailure
from autointerp.llm.backends.anthropic import keep, read
from autointerp.llm.prices import Prices
from autointerp.llm.registry import check, prices
from autointerp.records import Message

QUESTION = [Message("system", "Be brief."), Message("user", "Why?")]


def opened(url: str, folder: Path, **options: Any) -> Client:
    config = LLMConfig.model_validate({"model": "anthropic:claude", "base_url": url, "retries": 0, **options})
    return open_llm(config, cache=folder / "cache.sqlite", journal=folder / "usage.jsonl", seed=0)


async def test_a_request_carries_what_was_asked_in_their_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-right")
    with serving(lambda messages, body: "because", models=("claude",), key="sk-ant-right") as endpoint:
        async with opened(endpoint.url, tmp_path, reasoning_effort="low") as llm:
            answer = await llm.complete(QUESTION, max_tokens=9, temperature=1.5, stop=["\n", "END"])
    (body,) = endpoint.requests
    assert answer.text == "because"
    assert body == {
        "model": "claude",
        "max_tokens": 9,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "Why?"}],
        "temperature": 1.0,
        "stop_sequences": ["END"],
        "output_config": {"effort": "low"},
    }


def message(*content: dict[str, Any], stop_reason: str = "end_turn", **usage: object) -> dict[str, Any]:
    return {
        "content": list(content),
        "stop_reason": stop_reason,
        "usage": {"input_tokens": 3, "output_tokens": 2, **usage},
    }


def test_text_is_read_without_thoughts_and_tokens_are_counted_with_the_cached_ones() -> None:
    data = message({"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a\nb"}, cache_read_input_tokens=5)
    got = read(keep(data), Complete(QUESTION, 9, stop=("\n",)))
    assert (got.text, got.prompt_tokens, got.completion_tokens, got.cached_tokens) == ("a", 8, 2, 5)
    assert got.counted


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (message(stop_reason="refusal"), "refused"),
        (message(stop_reason="max_tokens"), r"no text within 9 tokens: set llm\.answer_tokens"),
        (message({"type": "thinking", "thinking": "hm"}), "no text within 9 tokens"),
    ],
)
def test_no_text_is_a_failure_with_its_reason(data: dict[str, Any], reason: str) -> None:
    got = read(keep(data), Complete(QUESTION, 9))
    assert got.text is None
    assert reason.replace("\\", "") in (got.failure or "")


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["content", "type", "text", "usage", "input_tokens"]), inner, max_size=3)
    ),
    max_leaves=15,
)


@given(json_values)
def test_no_json_crashes_the_reader(value: Any) -> None:
    for data in (value, {"content": value, "usage": value}, {"content": [value], "stop_reason": value}):
        try:
            raw = keep(data)
        except RetryableFailure:
            continue
        got = read(raw, Complete(QUESTION, 9))
        assert (got.text is None) == (got.failure is not None)


FATAL: list[tuple[int, str, str]] = [
    (400, "Your credit balance is too low to access the API", "no credit left"),
    (401, "invalid x-api-key", "does not take the key in ANTHROPIC_API_KEY"),
    (404, "model: claude", r"see llm\.model"),
]


@pytest.mark.parametrize(("status", "text", "reason"), FATAL)
async def test_what_no_request_will_pass_stops_the_run(tmp_path: Path, status: int, text: str, reason: str) -> None:
    with serving(models=("claude",)) as endpoint:
        async with opened(endpoint.url, tmp_path) as llm:
            endpoint.instead = lambda body: failure(status, text)
            with pytest.raises(AutointerpError, match=reason):
                await llm.complete(QUESTION)


@pytest.mark.parametrize(
    "answer",
    [
        lambda: failure(529, "Overloaded"),
        lambda: JSONResponse({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
        lambda: JSONResponse({"type": "message"}),
    ],
)
async def test_what_may_pass_is_retryable(tmp_path: Path, answer: Any) -> None:
    def instead(body: dict[str, Any]) -> Response:
        return answer()

    with serving(models=("claude",)) as endpoint:
        async with opened(endpoint.url, tmp_path) as llm:
            endpoint.instead = instead
            assert (await llm.complete(QUESTION)).retryable


def test_what_can_be_known_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="environment variable ANTHROPIC_API_KEY"):
        check(LLMConfig(model="anthropic:claude-haiku-4-5"))
    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    check(LLMConfig(model="anthropic:claude-haiku-4-5", max_cost=1))
    with pytest.raises(ConfigError, match="gives no token probabilities"):
        check(LLMConfig(model="anthropic:claude-haiku-4-5", logprobs=True))
    assert prices(LLMConfig(model="anthropic:claude-haiku-4-5")) == Prices(1, 5)
