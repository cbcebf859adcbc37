"""What an endpoint does on a bad day means the same to every backend over HTTP."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from endpoint import Drip, Endpoint, _Dropped, failure, serving
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from autointerp.config import LLMConfig
from autointerp.llm.backend import Complete, FinalFailure, RateLimited, RequestFailed, RetryableFailure
from autointerp.llm.registry import open_backend
from autointerp.records import Message

QUESTION = Complete((Message("user", "Is it?"),), 16)
KEY = "planted-key-0123456789"
BACKENDS = ("openai:test-model", "anthropic:test-model", "gemini:test-model", "litellm:openai/test-model")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with serving(key=KEY) as endpoint:
        yield endpoint


@pytest.fixture(params=BACKENDS)
def config(request: pytest.FixtureRequest, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> LLMConfig:
    monkeypatch.setenv("PLANTED", KEY)
    like_openai = request.param.startswith(("openai", "litellm"))
    base = endpoint.url if like_openai else endpoint.url.removesuffix("/v1")
    return LLMConfig(model=request.param, base_url=base, api_key_env="PLANTED", logprobs=False, timeout=1.0)


async def outcome(config: LLMConfig, endpoint: Endpoint, answer: Callable[[], Response]) -> tuple[str, Any]:
    """What comes of one request to which `answer` is the answer: a word, and the failure or the reply."""
    backend = open_backend(config, None)
    endpoint.instead = lambda body: None
    try:
        await backend.start()
        endpoint.instead = lambda body: answer()
        raw = await backend.ask(QUESTION)
        reply = backend.read(json.loads(json.dumps(raw)), QUESTION)
        return ("answered" if reply.failure is None else "retryable" if reply.retryable else "unread"), reply
    except RequestFailed as error:
        match error:
            case RateLimited():
                return "wait", error
            case RetryableFailure():
                return "retryable", error
            case FinalFailure(fatal=True):
                return "stop", error
        return "final", error
    finally:
        await backend.close()


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (400, "context length exceeded", "final"),
        (400, "Your credit balance is too low", "stop"),
        (401, "who are you", "stop"),
        (402, "pay first", "stop"),
        (403, "no access", "stop"),
        (403, "flagged by moderation", "final"),
        (404, "no such model", "stop"),
        (408, "too slow", "retryable"),
        (413, "too long", "final"),
        (418, "teapot", "retryable"),
        (429, "slow down", "wait"),
        (500, "oh", "retryable"),
        (503, "oh", "retryable"),
        (529, "overloaded", "retryable"),
    ],
)
async def test_a_status_means_the_same(
    config: LLMConfig, endpoint: Endpoint, status: int, text: str, expected: str
) -> None:
    kind, error = await outcome(
        config, endpoint, lambda: failure(status, f"{text} {KEY}", headers={"retry-after": "7"})
    )
    assert kind == expected, error
    assert KEY not in str(error)
    if status == 429:
        assert error.retry_after == 7


@pytest.mark.parametrize(
    "answer",
    [
        lambda: HTMLResponse("<html>maintenance"),
        lambda: RedirectResponse("http://127.0.0.1:9/login", 302),
        lambda: RedirectResponse("http://127.0.0.1:9/login", 307),
        lambda: Response("{", media_type="application/json"),
        lambda: Response("[1]", media_type="application/json"),
        lambda: Response('{"choices":' + "[" * 100_000, media_type="application/json"),
        lambda: JSONResponse({}),
        lambda: JSONResponse(None),
        lambda: JSONResponse({"error": {"message": "overloaded"}}),
        lambda: Response(b""),
        _Dropped,
    ],
)
async def test_what_is_no_answer_may_be_asked_again(
    config: LLMConfig, endpoint: Endpoint, answer: Callable[[], Response]
) -> None:
    kind, error = await outcome(config, endpoint, answer)
    assert kind == "retryable", error
    assert not re.search(r"Traceback|\n", str(error))


async def test_an_answer_that_drips_ends_with_the_timeout(config: LLMConfig, endpoint: Endpoint) -> None:
    begun = time.monotonic()
    kind, error = await outcome(config, endpoint, lambda: Drip(json.dumps({"a": "b" * 2000}), 0.02))
    assert kind == "retryable", error
    assert "no answer within 1 s" in str(error)
    assert time.monotonic() - begun < 30, "it would drip for 40 seconds"
