"""What an endpoint does on a bad day means the same to every backend over HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pytest
from endpoint import Drip, Endpoint, _Dropped, failure, kind_of, serving
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from autointerp.config import LLMConfig
from autointerp.llm.backend import Complete, Reply, RequestFailed
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
    return LLMConfig(model=request.param, base_url=base, api_key_env="PLANTED", logprobs=False)


async def outcomes(
    config: LLMConfig, endpoint: Endpoint, answers: Iterable[Callable[[], Response]]
) -> list[tuple[str, Any]]:
    """What comes of one request to which each is the answer: a word, and the failure or the reply."""
    backend = open_backend(config, None)
    endpoint.instead = lambda body: None
    given = []
    try:
        await backend.start()
        for answer in answers:
            endpoint.instead = lambda body, answer=answer: answer()
            try:
                reply = backend.read(json.loads(json.dumps(await backend.ask(QUESTION))), QUESTION)
                kind = "answered" if reply.failure is None else "retryable" if reply.retryable else "unread"
                given.append((kind, reply))
            except RequestFailed as error:
                given.append((kind_of(error), error))
    finally:
        await backend.close()
    return given


MEANINGS = {
    (400, "context length exceeded"): "refused",
    (400, "Your credit balance is too low"): "stop",
    (401, "who are you"): "stop",
    (402, "pay first"): "stop",
    (403, "no access"): "stop",
    (403, "flagged by moderation"): "final",
    (404, "no such model"): "stop",
    (408, "too slow"): "retryable",
    (413, "too long"): "final",
    (418, "teapot"): "retryable",
    (429, "slow down"): "wait",
    (500, "oh"): "retryable",
    (503, "oh"): "retryable",
    (529, "overloaded"): "retryable",
}


async def test_a_status_means_the_same_and_no_key_is_in_its_reason(config: LLMConfig, endpoint: Endpoint) -> None:
    headers = {"retry-after": "7"}
    answers = [partial(failure, status, f"{text} {KEY}", headers=headers) for status, text in MEANINGS]
    given = await outcomes(config, endpoint, answers)
    assert {case: kind for case, (kind, _) in zip(MEANINGS, given)} == MEANINGS
    assert not [error for _, error in given if KEY in str(error)]
    assert [error.retry_after for kind, error in given if kind == "wait"] == [7]


NO_ANSWERS: dict[str, Callable[[], Response]] = {
    "a page": lambda: HTMLResponse("<html>maintenance"),
    "sent elsewhere": lambda: RedirectResponse("http://127.0.0.1:9/login", 302),
    "sent elsewhere, as it is": lambda: RedirectResponse("http://127.0.0.1:9/login", 307),
    "cut JSON": lambda: Response("{", media_type="application/json"),
    "a list": lambda: Response("[1]", media_type="application/json"),
    "deep JSON": lambda: Response('{"choices":' + "[" * 100_000, media_type="application/json"),
    "an empty object": lambda: JSONResponse({}),
    "null": lambda: JSONResponse(None),
    "an error with HTTP 200": lambda: JSONResponse({"error": {"message": "overloaded"}}),
    "nothing": lambda: Response(b""),
    "dropped": _Dropped,
}


async def test_what_is_no_answer_may_be_asked_again(config: LLMConfig, endpoint: Endpoint) -> None:
    given = dict(zip(NO_ANSWERS, await outcomes(config, endpoint, NO_ANSWERS.values())))
    assert {name: kind for name, (kind, _) in given.items()} == dict.fromkeys(NO_ANSWERS, "retryable")
    reasons = [error.failure if isinstance(error, Reply) else str(error) for _, error in given.values()]
    assert not [reason for reason in reasons if not reason or re.search(r"Traceback|\n", reason)]


async def test_an_answer_that_drips_ends_with_the_timeout(config: LLMConfig, endpoint: Endpoint) -> None:
    hasty = config.model_copy(update={"timeout": 1.0})
    ((kind, error),) = await outcomes(hasty, endpoint, [lambda: Drip(json.dumps({"a": "b" * 100_000}), 0.02)])
    assert kind == "retryable", error
    assert "no answer within 1 s" in str(error)
