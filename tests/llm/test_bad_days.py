"""What an endpoint can do wrong: nothing is lost that may pass, nothing stops that need not, nothing is made up."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tenacity
from endpoint import Drip, failure, kind_of, serving
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from test_client import ask, ask_many, contents, echo, opened

from autointerp.errors import AutointerpError, EndpointDown, OutOfBudget
from autointerp.llm.again import again
from autointerp.llm.backends import openai
from autointerp.llm.backends.failures import Failures
from autointerp.llm.usage import read_usage


def poisoned(count: int, answer: Callable[[], Response]) -> Callable[[dict[str, Any]], Response | None]:
    """`answer` to the first `count` questions, whenever they come."""
    questions = {f"question {i}" for i in range(count)}
    return lambda body: answer() if body["messages"][-1]["content"] in questions else None


def reply(message: object, **more: Any) -> Response:
    return JSONResponse({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], **more})


# --- a few requests that always fail


@pytest.mark.parametrize(
    "answer", [lambda: failure(503, "overloaded"), lambda: reply({"content": None}), lambda: failure(502, "bad")]
)
async def test_requests_that_always_fail_are_rows_with_reasons_in_each_run(
    tmp_path: Path, answer: Callable[[], Response]
) -> None:
    with serving(echo) as endpoint:
        endpoint.instead = poisoned(3, answer)
        for _ in range(3):
            async with opened(endpoint.url, tmp_path, concurrency=8) as llm:
                answers = await ask_many(llm, 60)
            assert [bool(each.text) for each in answers] == [False] * 3 + [True] * 57
            assert all(each.failure and each.retryable for each in answers[:3])
        assert len(endpoint.requests) == 57
        endpoint.instead = lambda body: None
        async with opened(endpoint.url, tmp_path) as llm:
            assert all(each.text for each in await ask_many(llm, 60))
        assert len(endpoint.requests) == 60


async def test_an_endpoint_whose_probes_fail_too_is_down(tmp_path: Path) -> None:
    with serving(echo) as endpoint:
        async with opened(endpoint.url, tmp_path, concurrency=8) as llm:
            endpoint.shares["error"] = 1.0
            with pytest.raises(EndpointDown, match=r"3 probes, the last: .*HTTP 500"):
                await ask_many(llm, 60)


# --- what is final, and what heals

QUOTA = "You exceeded your current quota, please check your plan and billing details"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda: failure(402, "Payment required"), "HTTP 402.*no credit left"),
        (lambda: failure(400, "Your credit balance is too low to access the API"), "no credit left"),
        (lambda: failure(429, "You exceeded your quota", code="insufficient_quota"), "no credit left"),
        (lambda: failure(401, "no"), "does not take the key"),
        (lambda: failure(404, "no such page"), r"see llm\.model"),
    ],
)
async def test_what_no_request_will_pass_stops_the_run_and_keeps_what_was_answered(
    tmp_path: Path, answer: Callable[[], Response], reason: str
) -> None:
    with serving(echo) as endpoint:
        async with opened(endpoint.url, tmp_path, concurrency=2) as llm:
            await ask_many(llm, 5)
            endpoint.instead = lambda body: answer()
            with pytest.raises(AutointerpError, match=reason):
                await ask_many(llm, 60)
            assert endpoint.received <= 5 + endpoint.probes + 4
        endpoint.instead = lambda body: None
        async with opened(endpoint.url, tmp_path) as llm:
            assert all(each.text for each in await ask_many(llm, 60))
        assert len(endpoint.requests) == 60


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda: HTMLResponse("<html>maintenance"), "web page"),
        (lambda: HTMLResponse("<html>maintenance", 400), "web page"),
        (lambda: RedirectResponse("https://login.example/?token=secret", 302), r"HTTP 302.*https://login\.example"),
        (lambda: Response(status_code=204), "no JSON"),
        (lambda: failure(418, "teapot"), "HTTP 418"),
        (lambda: Response('{"choices":' + "[" * 100_000, media_type="application/json"), "no JSON"),
        (lambda: reply({"content": None}), "without text"),
    ],
)
async def test_what_may_pass_is_retryable_and_heals_in_the_next_run(
    tmp_path: Path, answer: Callable[[], Response], reason: str
) -> None:
    with serving(echo) as endpoint:
        endpoint.instead = poisoned(2, answer)
        async with opened(endpoint.url, tmp_path, retries=1) as llm:
            answers = await ask_many(llm, 6)
        assert [each.retryable for each in answers] == [True] * 2 + [False] * 4
        assert re.search(reason, answers[0].failure or "")
        assert "secret" not in (answers[0].failure or "")
        endpoint.instead = lambda body: None
        async with opened(endpoint.url, tmp_path) as llm:
            assert all(each.text for each in await ask_many(llm, 6))
        assert len(endpoint.requests) == 6


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (300, "", "retryable"),
        (307, "", "retryable"),
        (400, "context length exceeded", "refused"),
        (400, "API key not valid. Please pass a valid API key.", "stop"),
        (401, "", "stop"),
        (402, "", "stop"),
        (403, "no access", "stop"),
        (403, "Your input was flagged by moderation", "final"),
        (404, "", "stop"),
        (405, "", "stop"),
        (408, "", "retryable"),
        (409, "", "retryable"),
        (413, "", "final"),
        (422, "", "refused"),
        (425, "", "retryable"),
        (429, "slow down", "wait"),
        (429, "insufficient_quota", "stop"),
        (429, f"{QUOTA}. For more information on this error, read the docs: error-codes/api-errors.", "stop"),
        (429, f"{QUOTA}. See gemini-api/docs/rate-limits. * Quota exceeded: free_tier_requests, limit: 10", "wait"),
        (429, f"{QUOTA}. See gemini-api/docs/rate-limits. * Quota exceeded: free_tier_requests, limit: 0", "stop"),
        (429, "Rate limit reached on requests per min. Limit: 3 / min. Visit account/billing to pay", "wait"),
        (451, "", "final"),
        (499, "", "retryable"),
        (500, "", "retryable"),
        (503, "", "retryable"),
        (529, "overloaded", "retryable"),
        (599, "", "retryable"),
    ],
)
def test_every_status_has_a_meaning(status: int, text: str, expected: str) -> None:
    failures = Failures("https://llm.example/v1", "m", "KEY")
    assert kind_of(failures.of_status(status, {}, {"message": text}, None)) == expected


def test_a_model_that_thought_for_too_long_says_what_to_set() -> None:
    said = "Could not finish the message because max_tokens or model output limit was reached. Please try again."
    failure = Failures("https://llm.example/v1", "m", "KEY").of_status(400, {}, {"message": said}, None)
    assert str(failure).endswith("; set llm.answer_tokens higher")


def test_a_rate_limit_that_says_how_long_is_no_spent_account() -> None:
    failures = Failures("https://llm.example/v1", "m", "KEY")
    assert kind_of(failures.of_status(429, {"retry-after": "16"}, {"message": QUOTA}, None)) == "wait"
    assert kind_of(failures.of_status(429, {"retry-after": "16"}, {"message": "insufficient_quota"}, None)) == "stop"


# --- what cannot be stored


async def test_an_answer_that_no_file_can_hold_is_cleaned_and_the_next_run_reads_it_again(tmp_path: Path) -> None:
    spoken = '{"choices": [{"message": {"content": "a\\ud800b\\u0000c\\u001b[31m"}, "finish_reason": "stop"}]}'
    with serving(echo) as endpoint:
        endpoint.instead = lambda body: Response(spoken, media_type="application/json")
        for _ in range(2):
            async with opened(endpoint.url, tmp_path) as llm:
                answer = await llm.complete(ask("q"))
            assert answer.text == "a\ufffdb\ufffdc\ufffd[31m"
            pa.array([answer.text])


async def test_a_prompt_with_a_lone_surrogate_is_sent_without_it(tmp_path: Path) -> None:
    with serving(echo) as endpoint:
        async with opened(endpoint.url, tmp_path) as llm:
            assert (await llm.complete(ask("a\ud800b"))).text == "heard a\ufffdb"


async def test_a_reason_with_unstorable_text_is_cleaned(tmp_path: Path) -> None:
    with serving(echo) as endpoint:
        endpoint.instead = lambda body: reply({"content": None, "refusal": "no\x00\x1b"})
        async with opened(endpoint.url, tmp_path) as llm:
            assert (await llm.complete(ask("q"))).failure == "the model refused: no\ufffd\ufffd"
    assert all("\x1b" not in row.outcome for row in read_usage(tmp_path / "usage.jsonl"))


@pytest.mark.parametrize("characters", [600_000, 5_000_000, 9_000_000])
async def test_an_answer_without_end_is_a_reason(tmp_path: Path, characters: int) -> None:
    with serving(echo) as endpoint:
        endpoint.instead = lambda body: reply({"content": "x" * characters})
        async with opened(endpoint.url, tmp_path) as llm:
            answer = await llm.complete(ask("q"))
    assert answer.text is None
    assert "an answer of " in (answer.failure or "")
    assert not answer.retryable


# --- time


async def test_an_answer_that_drips_is_given_up_after_the_timeout(tmp_path: Path) -> None:
    with serving(echo) as endpoint:
        endpoint.instead = lambda body: Drip(json.dumps({"choices": [{"message": {"content": "late"}}]}), 0.1)
        async with opened(endpoint.url, tmp_path, timeout=0.5, retries=0) as llm:
            answer = await llm.complete(ask("q"))
    assert answer.retryable
    assert "no answer within 0.5 s" in (answer.failure or "")


@pytest.mark.parametrize("wait", ["86400", "inf", "Fri, 31 Dec 2100 00:00:00 GMT"])
async def test_a_pause_without_end_is_cut_short_and_said(
    tmp_path: Path, wait: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(echo) as endpoint:
        limits = iter([failure(429, "slow down", headers={"retry-after": wait})])
        endpoint.instead = lambda body: next(limits, None)
        async with opened(endpoint.url, tmp_path, max_retry_after=0.01) as llm:
            assert (await llm.complete(ask("q"))).text == "heard q"
    assert "waiting 0.01 s (llm.max_retry_after)" in caplog.text


@pytest.mark.parametrize(("wait", "limits", "pauses"), [("0.001", 3, 0), ("0", 3, 3), ("0.001", 9, 6)])
async def test_pauses_grow_where_what_the_endpoint_asks_for_is_not_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: str, limits: int, pauses: int
) -> None:
    grown: list[object] = []
    monkeypatch.setattr(tenacity.wait_random_exponential, "__call__", lambda self, state: grown.append(state) or 0.0)
    with serving(echo) as endpoint:
        left = iter([failure(429, "slow down", headers={"retry-after": wait})] * limits)
        endpoint.instead = lambda body: next(left, None)
        async with opened(endpoint.url, tmp_path, retries=3) as llm:
            assert (await llm.complete(ask("q"))).text == "heard q"
    assert len(grown) == pauses


async def test_a_rate_limit_of_all_that_is_on_its_way_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(echo, hold=20) as endpoint:
        limits = iter([failure(429, "slow down", headers={"retry-after": "600"})] * 20)
        endpoint.instead = lambda body: next(limits, None)
        async with opened(endpoint.url, tmp_path, concurrency=20, max_retry_after=0.01) as llm:
            assert all(answer.text for answer in await ask_many(llm, 20))
    assert caplog.text.count("rate limit") == 1


# --- parameters


@pytest.mark.parametrize("parameter", ["temperature", "seed", "stop", "max_tokens"])
async def test_a_refused_parameter_is_learnt_once_and_what_was_on_its_way_is_sent_again(
    tmp_path: Path, parameter: str
) -> None:
    said = f"Unsupported parameter: '{parameter}' is not supported with this model."
    said += " Use 'max_completion_tokens' instead." * (parameter == "max_tokens")
    with serving(echo) as endpoint:
        async with opened(endpoint.url, tmp_path, concurrency=8) as llm:
            endpoint.refuses, endpoint.late_refusals = {parameter: said}, True
            warm = [
                llm.complete(ask(f"question {i}"), temperature=1.0, attempt=1, stop=["never"], max_tokens=20)
                for i in range(40)
            ]
            assert all(answer.text for answer in await asyncio.gather(*warm))
        refused = endpoint.outcomes[f"refused {parameter}"]
        assert 1 <= refused <= 8 + 1
        async with opened(endpoint.url, tmp_path) as llm:
            await llm.complete(ask("another"), temperature=1.0, attempt=1, stop=["never"])
        assert endpoint.outcomes[f"refused {parameter}"] == refused
        assert len(endpoint.requests) == 41


async def test_refused_probabilities_fail_this_run_and_are_not_counted_on_in_the_next(tmp_path: Path) -> None:
    with serving(echo) as endpoint:
        async with opened(endpoint.url, tmp_path, logprobs=None) as llm:
            assert "choices" in llm.capabilities
            endpoint.refuses = {"logprobs": "logprobs are not supported"}
            judged = await asyncio.gather(*(llm.choose(ask(f"q {i}"), ["Yes", "No"]) for i in range(20)))
        assert all(choices.failure and choices.retryable for choices in judged)
        async with opened(endpoint.url, tmp_path, logprobs=None) as llm:
            assert "choices" not in llm.capabilities


async def test_fewer_alternatives_are_asked_for_where_twenty_are_refused(tmp_path: Path) -> None:
    with serving(lambda messages, body: ("Yes", {"Yes": 0.75, "No": 0.25})) as endpoint:
        async with opened(endpoint.url, tmp_path, logprobs=None) as llm:
            endpoint.logprobs = 5
            judged = await asyncio.gather(*(llm.choose(ask(f"q {i}"), ["Yes", "No"]) for i in range(20)))
    assert all(choices.probabilities for choices in judged)


async def test_options_of_the_config_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "sesame-open")
    options = {
        "answer_tokens": 7,
        "reasoning_effort": "low",
        "extra_body": {"top_p": 0.5},
        "headers": {"X-Token": "$MY_SECRET", "X-Mode": "fast"},
    }
    with serving(echo) as endpoint:
        async with opened(endpoint.url, tmp_path, **options) as llm:
            await llm.complete(ask("q"), max_tokens=100)
    (body,) = endpoint.requests
    assert (body["max_tokens"], body["reasoning_effort"], body["top_p"]) == (7, "low", 0.5)
    assert all((each["x-token"], each["x-mode"]) == ("sesame-open", "fast") for each in endpoint.headers)
    assert not any(b"sesame-open" in content for content in contents(tmp_path))


async def test_a_secret_of_a_header_is_in_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "sesame-open")
    with serving(echo) as endpoint:
        endpoint.instead = lambda body: failure(413, "you sent sesame-open")
        async with opened(endpoint.url, tmp_path, headers={"X-Token": "$MY_SECRET"}) as llm:
            assert "sesame" not in ((await llm.complete(ask("q"))).failure or "")


async def test_a_model_that_only_thinks_is_told_how_to_be_heard(tmp_path: Path) -> None:
    with serving(echo) as endpoint:
        endpoint.instead = lambda body: reply({"content": "", "reasoning_content": "Let me see"})
        async with opened(endpoint.url, tmp_path) as llm:
            answer = await llm.complete(ask("q"), max_tokens=20)
    assert "only thought within 20 tokens: set llm.answer_tokens higher" in (answer.failure or "")


# --- numbers


async def test_an_impossible_number_leaves_its_example_unscored(tmp_path: Path) -> None:
    with serving(echo) as endpoint:

        def impossible(body: dict[str, Any]) -> Response:
            top = [{"token": "Yes", "logprob": 7.5}, {"token": "No", "logprob": -1.0}]
            logprobs = {"content": [{**top[0], "top_logprobs": top}]}
            return JSONResponse({"choices": [{"message": {"content": "Yes"}, "logprobs": logprobs}], "usage": "n/a"})

        async with opened(endpoint.url, tmp_path, logprobs=None) as llm:
            endpoint.instead = impossible
            choices = await llm.choose(ask("q"), ["Yes", "No"])
    assert choices.probabilities is None
    assert "log probability of 7.5, which cannot be" in (choices.failure or "")


async def test_a_budget_counts_an_uncountable_answer_as_the_most_it_may_have_been(tmp_path: Path) -> None:
    with serving(echo) as endpoint:
        endpoint.instead = lambda body: reply({"content": "x"}, usage={"prompt_tokens": -9, "completion_tokens": -9})
        async with opened(endpoint.url, tmp_path, max_tokens=1000) as llm:
            await llm.complete(ask("q"), max_tokens=100)
            assert llm.spent.tokens > 100


async def test_answers_that_could_not_be_used_are_paid_for_and_count_in_this_run_and_when_it_goes_on(
    tmp_path: Path,
) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 900}
    with serving(echo) as endpoint:
        empty = iter([reply({"content": None}, usage=usage)] * 2)
        endpoint.instead = lambda body: next(empty, None)
        async with opened(endpoint.url, tmp_path, max_tokens=100_000) as llm:
            with llm.meter() as meter:
                assert (await llm.complete(ask("q"))).text == "heard q"
            answered = meter.prompt_tokens + meter.completion_tokens  # as a later run counts it, from the cache
            assert llm.spent.tokens == 2000 + answered
        endpoint.instead = lambda body: reply({"content": None}, usage=usage)
        async with opened(endpoint.url, tmp_path, max_tokens=100_000, retries=2) as llm:
            assert (await llm.complete(ask("never"))).failure
            assert llm.spent.tokens == 5000 + answered
        async with opened(endpoint.url, tmp_path, max_tokens=100_000) as llm:
            assert (llm.spent.requests, llm.spent.tokens) == (2, 5000 + answered)


async def test_the_budget_holds_for_text_of_many_tokens_a_letter(tmp_path: Path) -> None:
    def answered(body: dict[str, Any]) -> Response:
        tokens = len(body["messages"][-1]["content"])  # one a letter, as of Chinese
        return reply({"content": "好"}, usage={"prompt_tokens": tokens, "completion_tokens": 1})

    with serving(echo) as endpoint:
        endpoint.instead = answered
        async with opened(endpoint.url, tmp_path, max_tokens=1000, concurrency=64) as llm:
            asked = (llm.complete(ask(f"{'特征' * 50}{i}"), max_tokens=1) for i in range(40))
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            assert any(isinstance(each, OutOfBudget) for each in outcomes)
            assert 500 < llm.spent.tokens <= 1000


# --- what is kept


async def test_a_corrected_reader_corrects_old_answers_without_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(echo) as endpoint:
        async with opened(endpoint.url, tmp_path) as llm:
            assert (await llm.complete(ask("q"))).text == "heard q"
        read = openai.read
        monkeypatch.setattr(openai, "read", lambda raw, request: read({**raw, "content": "as it should be"}, request))
        async with opened(endpoint.url, tmp_path) as llm:
            assert (await llm.complete(ask("q"))).text == "as it should be"
        assert len(endpoint.requests) == 1


async def test_an_unreadable_answer_is_kept_and_asked_again_on_demand_only(tmp_path: Path) -> None:
    with serving(echo) as endpoint:
        endpoint.instead = lambda body: reply({"content": None, "refusal": "no"})
        async with opened(endpoint.url, tmp_path) as llm:
            first = await llm.complete(ask("q"))
        endpoint.instead = lambda body: None
        async with opened(endpoint.url, tmp_path) as llm:
            assert await llm.complete(ask("q")) == first
        assert not endpoint.requests
        async with opened(endpoint.url, tmp_path) as llm:
            with again("unread") as renewed:
                assert (await llm.complete(ask("q"))).text == "heard q"
                assert (await llm.complete(ask("q"))).text == "heard q"
        assert (renewed.asked, len(endpoint.requests)) == (1, 1)


async def test_a_damaged_answer_is_asked_for_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(echo) as endpoint:
        async with opened(endpoint.url, tmp_path) as llm:
            first = await ask_many(llm, 3)
        with sqlite3.connect(tmp_path / "cache.sqlite") as db:
            db.execute("UPDATE raw_answers SET answer = zeroblob(40) WHERE rowid = 2")
        async with opened(endpoint.url, tmp_path) as llm:
            assert await ask_many(llm, 3) == first
        assert len(endpoint.requests) == 4
    assert caplog.text.count("is damaged and is asked for again") == 1
