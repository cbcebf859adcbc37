"""Batch APIs: what is asked goes in few batches, and none is paid for twice, whenever the run is stopped."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_endpoint import BatchEndpoint, serving_batches
from endpoint import failure
from test_client import ask, ask_many, echo

from autointerp.config import LLMConfig, PluginConfig, parse_config
from autointerp.engine.asking import width
from autointerp.errors import AutointerpError
from autointerp.llm import Client, open_llm
from autointerp.llm.backends import batches
from autointerp.llm.prices import Prices
from autointerp.llm.registry import prices


@pytest.fixture(params=["openai", "anthropic"])
def word(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "QUIET", 0.05)
    monkeypatch.setattr(batches, "FIRST_LOOK", 0.02)


@pytest.fixture
def endpoint() -> Iterator[BatchEndpoint]:
    with serving_batches(echo) as served:
        yield served


def opened(word: str, endpoint: BatchEndpoint, folder: Path, *, live: bool = False, **options: Any) -> Client:
    url = endpoint.url if word == "openai" else endpoint.url.removesuffix("/v1")
    name = f"{word}{'' if live else '-batch'}:test-model"
    given = {"model": name, "base_url": url, "api_key_env": None, "logprobs": False, "retries": 2, **options}
    config = LLMConfig.model_validate(given)
    return open_llm(config, cache=folder / "cache.sqlite", journal=folder / "usage.jsonl", seed=0)


def bodies(endpoint: BatchEndpoint) -> Counter[str]:
    return Counter(body["messages"][-1]["content"] for body in endpoint.requests)


async def test_many_requests_are_one_batch(word: str, endpoint: BatchEndpoint, tmp_path: Path) -> None:
    async with opened(word, endpoint, tmp_path) as llm:
        answers = await ask_many(llm, 60)
        assert [answer.text for answer in answers] == [f"heard question {i}" for i in range(60)]
        assert [len(batch["asked"]) for batch in endpoint.batches.values()] == [60]
    async with opened(word, endpoint, tmp_path, live=True) as llm:
        await ask_many(llm, 60)
    assert bodies(endpoint) == {f"question {i}": 1 for i in range(60)}, "live, the kept answers count"


async def test_a_run_that_is_stopped_takes_its_batch_up(word: str, endpoint: BatchEndpoint, tmp_path: Path) -> None:
    endpoint.looks = 10**9
    async with opened(word, endpoint, tmp_path) as llm:
        asking = asyncio.create_task(ask_many(llm, 20))
        await asyncio.to_thread(endpoint.until, lambda: any(batch["looked"] for batch in endpoint.batches.values()))
        asking.cancel()
    endpoint.looks = 0
    async with opened(word, endpoint, tmp_path) as llm:
        assert all(answer.text for answer in await ask_many(llm, 15)), "some of them, and the others are kept"
    async with opened(word, endpoint, tmp_path) as llm:
        assert all(answer.text for answer in await ask_many(llm, 20))
    assert len(endpoint.batches) == 1
    assert max(bodies(endpoint).values()) == 1


async def test_a_kill_before_the_batch_is_known_by_its_id_finds_it(
    word: str, endpoint: BatchEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(batches.Batches, "_note", killed)
        llm = opened(word, endpoint, tmp_path)
        await llm.__aenter__()
        asking = asyncio.create_task(ask_many(llm, 20))
        await asyncio.to_thread(endpoint.until, lambda: bool(endpoint.batches))
        await asyncio.sleep(0.1)
        asking.cancel()
        patch.setattr(batches.Batches, "close", lambda self: asyncio.sleep(0))  # as a kill leaves things
        await asyncio.gather(llm.close(), asking, return_exceptions=True)
    async with opened(word, endpoint, tmp_path) as llm:
        assert all(answer.text for answer in await ask_many(llm, 20))
    assert len(endpoint.batches) == 1


@pytest.mark.parametrize("step", ["_note", "_fetched"])
async def test_a_disk_that_is_full_ends_the_run_and_nobody_waits(
    word: str, endpoint: BatchEndpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: Any) -> None:
        raise AutointerpError("the disk is full")

    monkeypatch.setattr(batches.Batches, step, full)
    async with opened(word, endpoint, tmp_path) as llm:
        with pytest.raises(AutointerpError, match="the disk is full"):
            await asyncio.wait_for(ask_many(llm, 5), 60)


async def test_a_submission_whose_answer_was_lost_is_not_repeated(
    word: str, endpoint: BatchEndpoint, tmp_path: Path
) -> None:
    endpoint.lose_submissions = 1
    async with opened(word, endpoint, tmp_path) as llm:
        assert all(answer.text for answer in await ask_many(llm, 20))
    assert len(endpoint.batches) == 1


@pytest.mark.parametrize("lists", [1, 9])
async def test_a_connection_that_is_lost_while_submitting_and_after_pays_for_no_second_batch(
    word: str, endpoint: BatchEndpoint, tmp_path: Path, lists: int
) -> None:
    endpoint.lose_submissions, endpoint.lose_lists = 1, lists
    async with opened(word, endpoint, tmp_path) as llm:
        answers = await ask_many(llm, 20)
        assert all(answer.text or answer.retryable for answer in answers)
        assert all(answer.text for answer in answers) == (lists < 9), "two more tries, then in another run"
    endpoint.lose_lists = 0
    async with opened(word, endpoint, tmp_path) as llm:
        assert all(answer.text for answer in await ask_many(llm, 20))
    assert len(endpoint.batches) == 1


async def test_a_request_that_failed_in_its_batch_is_asked_in_another(
    word: str, endpoint: BatchEndpoint, tmp_path: Path
) -> None:
    bad = iter(["error"] * 2)

    def instead(body: dict[str, Any]) -> Any:
        poisoned = body["messages"][-1]["content"] == "question 3" and next(bad, None)
        return failure(500, "overloaded") if poisoned else None

    endpoint.instead = instead
    async with opened(word, endpoint, tmp_path) as llm:
        assert all(answer.text for answer in await ask_many(llm, 20))
    assert [len(batch["asked"]) for batch in endpoint.batches.values()] == [20, 1, 1]


async def test_a_refused_request_is_a_row_with_its_reason_and_a_spent_account_stops_the_run(
    endpoint: BatchEndpoint, tmp_path: Path
) -> None:
    endpoint.instead = lambda body: (
        failure(400, "context length exceeded") if body["messages"][-1]["content"] == "question 3" else None
    )
    async with opened("openai", endpoint, tmp_path) as llm:
        answers = await ask_many(llm, 5)
        assert [bool(answer.text) for answer in answers] == [True, True, True, False, True]
        assert "context length exceeded" in (answers[3].failure or "")
        endpoint.instead = lambda body: failure(400, "Your credit balance is too low")
        with pytest.raises(AutointerpError, match="no credit left"):
            await llm.complete(ask("another"))


async def test_a_refused_parameter_is_learnt_from_the_first_batch(endpoint: BatchEndpoint, tmp_path: Path) -> None:
    endpoint.refuses = {"seed": "Unknown parameter: 'seed' is not supported."}
    async with opened("openai", endpoint, tmp_path) as llm:
        assert all(
            answer.text for answer in await asyncio.gather(*(llm.complete(ask(f"q {i}"), attempt=1) for i in range(9)))
        )
        assert [len(batch["asked"]) for batch in endpoint.batches.values()] == [9, 9]
        assert (await llm.complete(ask("q 10"), attempt=1)).text
        assert len(endpoint.batches) == 3


def test_batches_cost_half_and_many_features_are_in_work() -> None:
    assert prices(LLMConfig(model="openai-batch:gpt-4o-mini")) == Prices(0.075, 0.3)
    assert prices(LLMConfig(model="anthropic-batch:claude-haiku-4-5")) == Prices(0.5, 2.5)
    assert prices(LLMConfig(model="openai-batch:gpt-4o-mini", price_in=1, price_out=2)) == Prices(1, 2)
    config = parse_config(
        {
            "name": "x",
            "subject": {"model": "stories15m"},
            "corpus": {"source": "stories"},
            "sae": {"load": "x"},
            "llm": {"model": "openai-batch:gpt-4o-mini"},
        }
    )
    assert width(config, PluginConfig(name="default")) >= 10_000
