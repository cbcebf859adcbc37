from __future__ import annotations

import json
import math
import re
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest
from endpoint import serving
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.config import LLMConfig
from autointerp.errors import AutointerpError, ConfigError
from autointerp.llm.backend import (
    Choose,
    Complete,
    Fill,
    FinalFailure,
    RateLimited,
    Reply,
    Request,
    RequestFailed,
    RetryableFailure,
    Weigh,
)
from autointerp.llm.backends.failures import retry_after
from autointerp.llm.backends.openai import OpenAIBackend
from autointerp.llm.backends.openai_read import Token, Unreadable, find_slots, keep, read, read_choices
from autointerp.llm.backends.wire import Wire
from autointerp.records import Message

QUESTION = [Message("user", "Does it fire?")]
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}}


def backend(url: str, **options: Any) -> OpenAIBackend:
    return OpenAIBackend(LLMConfig.model_validate({"model": "test-model", "base_url": url, **options}))


@asynccontextmanager
async def started(url: str, **options: Any) -> AsyncIterator[OpenAIBackend]:
    api = backend(url, **options)
    try:
        await api.start()
        yield api
    finally:
        await api.close()


async def complete(api: OpenAIBackend, schema: Mapping[str, object] | None = None) -> str | None:
    return (await reply(api, Complete(QUESTION, 50, 0.5, 7, schema, ("\n",)))).text


async def reply(api: OpenAIBackend, request: Request) -> Reply:
    """What is read from the answer after its stay in the cache, where it is JSON."""
    return api.read(json.loads(json.dumps(await api.ask(request))), request)


def tokens(likely: Mapping[str, float]) -> list[Token]:
    return [(text, math.log(p)) for text, p in likely.items()]


# --- starting


async def test_a_dead_endpoint_is_one_clear_line() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(AutointerpError, match=rf"no answer at {url} .*start it or set llm\.base_url"):
        async with started(url):
            pass


async def test_an_unknown_model_names_the_nearest() -> None:
    with (
        serving(models=("gpt-large", "test-modal")) as endpoint,
        pytest.raises(AutointerpError, match="no model 'test-model' – did you mean 'test-modal'"),
    ):
        async with started(endpoint.url):
            pass


async def test_a_missing_key_names_its_variable_and_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="environment variable NO_SUCH_KEY"):
        async with started("https://llm.example/v1", api_key_env="NO_SUCH_KEY"):
            pass


async def test_a_wrong_key_is_fatal_and_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRONG_KEY", "sk-wrong-1234567890")
    with serving(key="sk-right") as endpoint, pytest.raises(FinalFailure, match="WRONG_KEY") as caught:
        async with started(endpoint.url, api_key_env="WRONG_KEY"):
            pass
    assert caught.value.fatal
    assert "1234567890" not in str(caught.value)


@pytest.mark.parametrize(
    ("server", "options", "able"),
    [
        ({}, {}, {"choices", "schema"}),
        ({"slots": lambda messages, before: {"No": 1.0}}, {}, {"choices", "slots", "schema"}),
        ({"slots": lambda messages, before: {"No": 1.0}}, {"logprobs": False}, {"schema"}),
        ({"logprobs": 5}, {}, {"choices", "schema"}),
        ({"logprobs": 0}, {}, {"schema"}),
        ({"schema": 400}, {}, {"choices"}),
        ({"schema": 500}, {}, {"choices"}),
        ({"models": None, "completion_tokens_only": True}, {}, {"choices", "schema"}),
    ],
)
async def test_what_an_endpoint_can_do_is_found_out(
    server: dict[str, Any], options: dict[str, Any], able: set[str]
) -> None:
    with serving(**server) as endpoint:
        async with started(endpoint.url, **options) as api:
            assert api.capabilities == able
            assert await complete(api, SCHEMA) == "Yes"
            if "choices" in able:
                (choices,) = (await reply(api, Choose(QUESTION, ["Yes", "No"]))).choices
                assert choices.probabilities == pytest.approx((0.75, 0.25))
            again = OpenAIBackend(api._config)
            again.memory = api.memory
            before = endpoint.received
            await again.start()
            await again.close()
            assert endpoint.received == before  # what was found out is not tried again
            assert again.capabilities == able


@pytest.mark.parametrize("status", [403, 404])
async def test_probabilities_that_a_model_forbids_do_not_end_the_run(status: int) -> None:
    with serving() as endpoint:
        endpoint.refuses = {"logprobs": "You are not allowed to request logprobs from this model"}
        endpoint.refuses_with = status
        async with started(endpoint.url) as api:
            assert api.capabilities == {"schema"}
            assert await complete(api) == "Yes"


async def test_a_key_that_may_ask_a_model_and_not_list_them_is_good_enough() -> None:
    with serving() as endpoint:
        endpoint.lists_with = 403
        async with started(endpoint.url) as api:
            assert await complete(api) == "Yes"


async def test_a_key_that_may_do_nothing_is_not_taken_for_a_model_without_probabilities() -> None:
    with serving() as endpoint:
        endpoint.refuses, endpoint.refuses_with = {"messages": "you may not use this model"}, 403
        api = backend(endpoint.url)
        with pytest.raises(FinalFailure, match="may not use this"):
            await api.start()
        await api.close()
        assert "top_logprobs" not in api.memory


async def test_a_model_that_thinks_first_is_asked_for_text_unless_probabilities_are_demanded() -> None:
    thoughts = lambda messages, body: ("<think>", {"<think>": 0.999, "Yes": 6e-4, "No": 4e-4})  # noqa: E731
    with serving(slots=lambda messages, before: {"No": 1.0}) as endpoint:
        endpoint.at_probes = thoughts
        async with started(endpoint.url) as api:
            assert api.capabilities & {"choices", "slots"} == {"slots"}  # a turn that is given has no thoughts
        async with started(endpoint.url, logprobs=True) as api:
            assert "choices" in api.capabilities


@pytest.mark.parametrize(
    ("listed", "model"),
    [("m:latest", "m"), ("org/m", "org/m:nitro"), ("models/m", "m")],
)
async def test_a_model_is_known_by_its_name_without_a_tag_or_a_path(
    listed: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def models(self: Wire, path: str) -> list[str]:
        return ["another", listed]

    monkeypatch.setattr(Wire, "models", models)
    with serving(models=None) as endpoint:
        async with started(endpoint.url, model=model) as api:
            assert await complete(api) == "Yes"
        with pytest.raises(AutointerpError, match="has no model 'm:7b'"):
            async with started(endpoint.url, model="m:7b"):
                pass


async def test_token_probabilities_that_are_demanded_and_missing_are_an_error() -> None:
    with serving(logprobs=0) as endpoint, pytest.raises(AutointerpError, match=r"set llm\.logprobs to null"):
        async with started(endpoint.url, logprobs=True):
            pass


async def test_an_endpoint_in_trouble_is_not_taken_for_one_that_can_do_nothing() -> None:
    with serving(error=1.0) as endpoint:
        api = backend(endpoint.url)
        with pytest.raises(RetryableFailure):
            await api.start()
        assert not api.memory
        endpoint.shares["error"] = 0.0
        await api.start()
        assert api.capabilities == {"choices", "schema"}
        await api.close()


# --- asking


async def test_a_request_carries_what_was_asked() -> None:
    with serving() as endpoint:
        async with started(endpoint.url) as api:
            await complete(api, SCHEMA)
    (body,) = endpoint.requests
    form = body.pop("response_format")
    assert form["json_schema"]["schema"] == SCHEMA
    assert body == {
        "model": "test-model",
        "messages": [{"role": "user", "content": "Does it fire?"}],
        "max_tokens": 50,
        "temperature": 0.5,
        "seed": 7,
        "stop": ["\n"],
    }


async def test_one_refused_schema_is_left_out_and_others_stay() -> None:
    with serving() as endpoint:
        async with started(endpoint.url) as api:
            endpoint.schema = 400
            assert await complete(api, SCHEMA) == "Yes"
            endpoint.schema = 200
            await complete(api, SCHEMA)
            await complete(api, {"type": "array"})
    assert ["response_format" in body for body in endpoint.requests] == [False, False, True]


async def test_a_retryable_500_does_not_cost_the_schema() -> None:
    with serving() as endpoint:
        async with started(endpoint.url) as api:
            endpoint.shares["error"] = 1.0
            with pytest.raises(RetryableFailure):
                await complete(api, SCHEMA)
            endpoint.shares["error"] = 0.0
            await complete(api, SCHEMA)
    assert "response_format" in endpoint.requests[0]


@pytest.mark.parametrize(
    ("share", "failure"), [("limit", RateLimited), ("error", RetryableFailure), ("drop", RetryableFailure)]
)
async def test_failures_that_pass_are_told_as_such(share: str, failure: type[Exception]) -> None:
    with serving(retry_after=1.5) as endpoint:
        async with started(endpoint.url) as api:
            endpoint.shares[share] = 1.0
            with pytest.raises(failure) as caught:
                await complete(api)
            if isinstance(caught.value, RateLimited):
                assert caught.value.retry_after == 1.5


async def test_no_answer_in_time_is_a_retryable_failure() -> None:
    with serving(latency=5) as endpoint:
        async with started(endpoint.url, timeout=0.5) as api:
            with pytest.raises(RetryableFailure, match=r"no answer within 0\.5 s"):
                await complete(api)


def choice(message: object, finish_reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"message": message, "finish_reason": finish_reason}]}


NO_ANSWER: list[tuple[object, str]] = [
    ([], "without choices"),
    ("text", "without choices"),
    ({"choices": []}, "without choices"),
    ({"choices": [None]}, "without choices"),
    ({"error": {"message": "overloaded"}}, "an error instead of an answer .overloaded"),
]


@pytest.mark.parametrize(("body", "reason"), NO_ANSWER)
async def test_what_is_no_answer_is_asked_for_again(body: object, reason: str) -> None:
    with serving() as endpoint:
        async with started(endpoint.url) as api:
            endpoint._reply = lambda *_: body  # type: ignore[method-assign]
            with pytest.raises(RetryableFailure, match=reason):
                await complete(api)


ODD: list[tuple[dict[str, Any], bool, str]] = [
    (choice(None), True, "without text"),
    (choice({"content": None}), True, "without text"),
    (choice({"content": None}, "length"), False, r"gave no text within 50 tokens: set llm\.answer_tokens"),
    (choice({"content": "", "reasoning_content": "Hm"}, "length"), False, "only thought within 50 tokens"),
    (choice({"content": None, "refusal": "I will\nnot"}), False, "I will not"),
    (choice({"content": "x"}, "content_filter"), False, "content filter"),
    (choice({"content": "half an ans"}, "error"), True, "broke its answer off"),
    (choice({"content": "half an ans"}, "insufficient_system_resource"), True, "broke its answer off"),
]


@pytest.mark.parametrize(("body", "retryable", "reason"), ODD)
def test_an_answer_without_text_or_end_is_a_failure_with_a_reason(
    body: dict[str, Any], retryable: bool, reason: str
) -> None:
    request = Complete(QUESTION, 50)
    got = read(keep(body, request), request)
    assert got.text is None
    assert got.retryable == retryable
    assert re.search(reason, got.failure or "")
    judged = Choose(QUESTION, ["Yes"])
    assert "without token probabilities" in (read(keep(body, judged), judged).failure or "")


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": [{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "Yes"}]}, "Yes"),
        ({"content": "Yes", "reasoning_content": "Hm"}, "Yes"),
        ({"content": "Yes STOP and more"}, "Yes "),
        ({"content": ""}, ""),
    ],
)
def test_the_text_is_read_in_every_form_it_is_given(message: dict[str, Any], text: str) -> None:
    request = Complete(QUESTION, 50, stop=("STOP",))
    assert read(keep(choice(message), request), request).text == text


@pytest.mark.parametrize(
    "usage",
    [
        "n/a",
        [],
        {"prompt_tokens": "n/a"},
        {"completion_tokens": -3},
        {"prompt_tokens": 1e300},
        {"prompt_tokens": math.nan},
        None,
    ],
)
def test_a_count_of_tokens_that_cannot_be_is_none_and_the_answer_stays(usage: object) -> None:
    request = Complete(QUESTION, 50)
    got = read(keep(choice({"content": "Yes"}) | {"usage": usage}, request), request)
    assert (got.text, got.failure, got.counted) == ("Yes", None, False)
    assert min(got.prompt_tokens, got.completion_tokens) >= 0


@pytest.mark.parametrize("logprob", [0.5, math.inf, math.nan, "n/a", None, True, pytest.param(10**400, id="huge")])
def test_a_log_probability_that_cannot_be_is_a_reason_and_no_number(logprob: Any) -> None:
    said = {"token": "Yes", "logprob": -0.1, "top_logprobs": [{"token": "Yes", "logprob": -0.1}]}
    said["top_logprobs"].append({"token": "No", "logprob": logprob})  # type: ignore[attr-defined]
    request = Choose(QUESTION, ["Yes", "No"])
    raw = keep({"choices": [{"logprobs": {"content": [said]}}]}, request)
    (got,) = read(json.loads(json.dumps(raw)), request).choices
    assert got.probabilities is None
    assert "which cannot be" in (got.failure or "")


def test_probabilities_that_sum_to_more_than_1_are_a_reason_and_no_number() -> None:
    assert "sum to 1.6" in (read_choices(tokens({"Yes": 0.8, "No": 0.8}), ["Yes", "No"]).failure or "")


def test_a_token_that_cannot_come_has_no_probability() -> None:
    assert read_choices([("Yes", 0.0), ("No", -math.inf), ("no", -(10**400))], ["Yes", "No"]).probabilities == (1, 0)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "logprobs", "top_logprobs", "token", "logprob", "usage"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=25,
)


@settings(max_examples=300)
@given(
    json_values,
    st.sampled_from([Complete(QUESTION, 9), Choose(QUESTION, ["Yes", "No"]), Fill(QUESTION, ["a\t"], "No", ["No"])]),
)
def test_no_json_crashes_the_reader(value: Any, request_: Request) -> None:
    for body in (value, {"choices": value}, {"choices": [value]}, {"choices": [{"logprobs": value, "message": value}]}):
        try:
            raw = keep(body, request_)
        except RequestFailed:
            continue
        got = read(json.loads(json.dumps(raw)), request_)
        assert got.failure is not None or got.text is not None or got.choices


def test_retry_after_is_read_in_all_its_forms() -> None:
    assert retry_after({"retry-after": "2"}) == 2
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert retry_after({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}) == 0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None


# --- reading probabilities


@pytest.mark.parametrize(
    ("likely", "answers", "expected", "mass"),
    [
        ({"Yes": 0.5, " yes": 0.1, "YES": 0.1, "No": 0.2, "Maybe": 0.1}, ["Yes", "No"], (0.7 / 0.9, 0.2 / 0.9), 0.9),
        ({"1": 0.2, "10": 0.6, "0": 0.1}, ["0", "1", "10"], (1 / 9, 2 / 9, 6 / 9), 0.9),
        ({"act": 0.6, "No": 0.2, "A": 0.1}, ["Activating", "No"], (0.75, 0.25), 0.8),
        ({"un": 0.6, "b": 0.4}, ["unlit", "undone", "b"], (0, 0, 1), 0.4),
        ({"N": 0.3, "Yes": 0.3}, ["Yes", "No"], (1, 0), 0.3),
    ],
)
def test_tokens_count_for_the_answers_they_spell(
    likely: dict[str, float], answers: list[str], expected: tuple[float, ...], mass: float
) -> None:
    choices = read_choices(tokens(likely), answers)
    assert choices.probabilities == pytest.approx(expected)
    assert choices.mass == pytest.approx(mass)


def test_ten_is_told_from_one_where_it_is_two_tokens() -> None:
    choices = read_choices(tokens({"1": 0.8, "0": 0.2}), ["0", "1", "10"], tokens({"0": 0.75, "\n": 0.25}))
    assert choices.probabilities == pytest.approx((0.2, 0.2, 0.6))


def test_no_answer_among_the_tokens_is_a_reason_and_no_number() -> None:
    choices = read_choices(tokens({"Well": 0.9}), ["Yes", "No"])
    assert choices.probabilities is None
    assert choices.mass == 0
    assert "none of the answers" in (choices.failure or "")


@given(st.dictionaries(st.sampled_from(["Yes", " No", "0", "1", "10", "é", "", " "]), st.floats(1e-9, 1), min_size=1))
def test_probabilities_sum_to_one_or_are_absent(likely: dict[str, float]) -> None:
    choices = read_choices(tokens(likely), ["Yes", "No", "1", "10"])
    assert (choices.probabilities is None) == (choices.failure is not None)
    if choices.probabilities is not None:
        assert sum(choices.probabilities) == pytest.approx(1)
        assert choices.mass is not None
        assert 0 < choices.mass <= 1


# --- slots


def cut(text: str, at: Sequence[int]) -> list[str]:
    places = sorted({0, len(text), *(place % (len(text) + 1) for place in at)})
    return [text[a:b] for a, b in pairwise(places)]


@given(
    st.lists(st.text("abé \n\tN", max_size=6).map(lambda s: s + "\t"), min_size=1, max_size=4),
    st.lists(st.integers(0, 1000), max_size=12),
    st.booleans(),
)
def test_slots_are_the_tokens_that_begin_the_fillers_or_a_refusal(
    segments: list[str], at: list[int], mangled: bool
) -> None:
    """However the text is cut into tokens and whatever decoding one by one does to spaces and shared characters."""
    turn = "".join(segment + "No" for segment in segments)
    pieces = ["<s>", *cut("user: No?\n" + turn, at)]
    position, truth = 0, []
    begins: set[int] = set()
    offset = len("user: No?\n")
    for segment in segments:
        offset += len(segment)
        begins.add(offset)
        offset += 2
    for index, piece in enumerate(pieces[1:], 1):
        leading = len(piece) - len(piece.lstrip())
        if position + leading in begins and piece.strip():
            truth.append(index)
        position += len(piece)
    shown = [piece.strip().replace("é", "\ufffd") if mangled else piece for piece in pieces]
    prompt = [(text, [(str(index), 0.0)]) for index, text in enumerate(shown)]
    try:
        slots = find_slots(prompt, segments, "No")
    except Unreadable:
        return
    assert [int(slot[0][0]) for slot in slots] == truth


def test_every_filler_is_found_where_tokens_are_single_characters() -> None:
    turn = "No\tNo\n é\tNo\nIt\tNo"
    prompt = [(text.strip(), [(str(index), 0.0)]) for index, text in enumerate("user: No?\n" + turn)]
    slots = find_slots(prompt, ["No\t", "\n é\t", "\nIt\t"], "No")
    assert [turn[int(slot[0][0]) - len("user: No?\n") :][:3] for slot in slots] == ["No\n", "No\n", "No"]


def test_a_prompt_that_does_not_end_with_the_text_is_refused() -> None:
    prompt: list[tuple[str, list[Token]]] = [("a", []), ("\t", []), ("No", []), ("<end>", [])]
    with pytest.raises(Unreadable, match="does not end with the text"):
        find_slots(prompt, ["a\t"], "No")


def test_a_filler_that_shares_its_token_is_refused() -> None:
    with pytest.raises(Unreadable, match="segment 0 does not begin with a token of its own"):
        find_slots([("a:No", [])], ["a:"], "No")


async def test_each_slot_has_the_distribution_after_its_segment() -> None:
    def slots(messages: list[dict[str, str]], before: str) -> Mapping[str, float]:
        return {"Yes": 0.9, "No": 0.1} if before.endswith("fires\t") else {"Yes": 0.2, "No": 0.8}

    with serving(slots=slots) as endpoint:
        async with started(endpoint.url) as api:
            filled = await reply(api, Fill(QUESTION, ["No\t", "\nfires\t", "\nit\t"], "No", ["Yes", "No"]))
    assert [choice.probabilities for choice in filled.choices] == [
        pytest.approx(expected) for expected in ((0.2, 0.8), (0.9, 0.1), (0.2, 0.8))
    ]
    (body,) = endpoint.requests
    assert body["messages"][-1] == {"role": "assistant", "content": "No\tNo\nfires\tNo\nit\tNo"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


async def test_a_text_weighs_as_much_as_its_tokens() -> None:
    def slots(messages: list[dict[str, str]], before: str) -> Mapping[str, float]:
        return {" cold": 0.25, " wet": 0.75} if before else {"Ice": 0.5}

    request = Weigh(QUESTION, "Ice cold")
    with serving(slots=slots) as endpoint:
        async with started(endpoint.url) as api:
            raw = await api.ask(request)
            weighed, elsewhere = api.read(raw, request), api.read(raw, Weigh(QUESTION, "Hot"))
    assert weighed.weight is not None
    assert weighed.weight.logprob == pytest.approx(math.log(0.5 * 0.25))
    assert weighed.weight.tokens == 2
    assert elsewhere.weight is None
    assert "does not end with" in (elsewhere.failure or "")


async def test_digits_that_the_tokens_cannot_tell_apart_are_refused_in_slots() -> None:
    with serving(slots=lambda messages, before: {"1": 0.5, "0": 0.5}) as endpoint:
        async with started(endpoint.url) as api:
            filled = await reply(api, Fill(QUESTION, ["a\t"], "0", ["0", "1", "10"]))
    assert "cannot tell '10' from '1'" in (filled.failure or "")
    assert not filled.choices


@pytest.mark.parametrize(
    "damage",
    [
        lambda reply: reply.pop("prompt_logprobs"),
        lambda reply: reply.update(prompt_logprobs=[None, {"5": {"decoded_token": "x"}}], prompt_token_ids=None),
        lambda reply: reply.update(prompt_token_ids=[1, 2]),
        lambda reply: reply["prompt_logprobs"].pop(),
    ],
)
async def test_an_unknown_form_of_prompt_probabilities_is_refused(damage: Callable[[dict[str, Any]], None]) -> None:
    with serving(slots=lambda messages, before: {"No": 1.0}) as endpoint:
        async with started(endpoint.url) as api:
            whole = endpoint._reply

            def damaged(*arguments: Any) -> dict[str, Any]:
                reply = whole(*arguments)
                damage(reply)
                return reply

            endpoint._reply = damaged  # type: ignore[method-assign]
            with suppress(FinalFailure):
                assert (await reply(api, Fill(QUESTION, ["a\t"], "No", ["Yes", "No"]))).failure
