from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from endpoint import Endpoint, serving
from pydantic import ValidationError

from autointerp.config import LLMConfig
from autointerp.errors import AutointerpError, EndpointDown, OutOfBudget
from autointerp.llm.backend import Raw, Reply, Request, RetryableFailure
from autointerp.llm.backends.openai import OpenAIBackend
from autointerp.llm.books import of_this_process
from autointerp.llm.client import Client
from autointerp.llm.usage import Meter, read_usage, tag
from autointerp.records import LLM, Capability, Completion, Message


def echo(messages: list[dict[str, str]], body: dict[str, Any]) -> str:
    return f"heard {messages[-1]['content']}"


def ask(text: str) -> list[Message]:
    return [Message("system", "Repeat."), Message("user", text)]


def opened(url: str, folder: Path, *, seed: int = 0, backoff: float = 0.001, **options: Any) -> Client:
    config = LLMConfig.model_validate({"model": "test-model", "base_url": url, "logprobs": False, **options})
    books = of_this_process(config, config.model, folder / "cache.sqlite", folder / "usage.jsonl", None)
    return Client(OpenAIBackend(config), config, books, seed=seed, backoff=backoff)


async def ask_many(llm: Client, count: int) -> list[Completion]:
    return await asyncio.gather(*(llm.complete(ask(f"question {i}")) for i in range(count)))


async def test_the_client_is_an_llm(tmp_path: Path) -> None:
    with serving(echo) as endpoint:
        async with opened(endpoint.url, tmp_path) as llm:
            assert isinstance(llm, LLM)
            assert llm.model == "test-model"
            assert await llm.complete(ask("this")) == Completion("heard this")


async def test_a_second_run_sends_nothing_at_all_not_even_a_probe(tmp_path: Path) -> None:
    with serving(echo) as endpoint:
        for _ in range(2):
            async with opened(endpoint.url, tmp_path, logprobs=None) as llm:
                first = await ask_many(llm, 5), await llm.choose(ask("q"), ["heard", "seen"]), llm.capabilities
        received = endpoint.received
        url = endpoint.url
    async with opened(url, tmp_path, logprobs=None) as llm:  # the endpoint is gone
        assert (await ask_many(llm, 5), await llm.choose(ask("q"), ["heard", "seen"]), llm.capabilities) == first
    assert len(endpoint.requests) == 6
    assert received == 6 + endpoint.probes
    rows = list(read_usage(tmp_path / "usage.jsonl"))
    assert [row.cached for row in rows] == [False] * 6 + [True] * 12
    assert {row.prompt_tokens for row in rows if row.cached} == {row.prompt_tokens for row in rows if not row.cached}


async def test_everything_is_answered_through_rate_limits_errors_and_lost_connections(tmp_path: Path) -> None:
    faults = {"limit": 0.3, "retry_after": 0.002, "error": 0.05, "drop": 0.05, "broken": 0.02}
    with serving(echo, **faults) as endpoint:
        async with opened(endpoint.url, tmp_path, concurrency=32) as llm:
            answers = await ask_many(llm, 200)
    assert [answer.text for answer in answers] == [f"heard question {i}" for i in range(200)]
    assert min(endpoint.outcomes[fault] for fault in ("limit", "error", "drop", "broken")) > 0
    assert len(endpoint.requests) == 200  # what was answered was not asked again
    rows = list(read_usage(tmp_path / "usage.jsonl"))
    assert sum(row.attempts for row in rows) == sum(endpoint.outcomes.values()) - endpoint.probe_attempts


async def test_sixty_four_are_in_flight_at_once(tmp_path: Path) -> None:
    with serving(echo, hold=64) as endpoint:  # answers none before 64 are there together
        async with opened(endpoint.url, tmp_path, concurrency=64) as llm:
            await ask_many(llm, 200)
    assert endpoint.max_in_flight == 64


async def test_equal_requests_in_flight_are_asked_once(tmp_path: Path) -> None:
    with serving(echo, hold=2) as endpoint:
        async with opened(endpoint.url, tmp_path) as llm:
            same = [llm.complete(ask("the same")) for _ in range(10)]
            answers = await asyncio.gather(*same, llm.complete(ask("another")))
    assert {answer.text for answer in answers[:10]} == {"heard the same"}
    assert len(endpoint.requests) == 2
    rows = list(read_usage(tmp_path / "usage.jsonl"))
    assert Counter(row.cached for row in rows) == {False: 2, True: 9}


async def test_what_the_endpoint_is_answering_is_kept_though_its_asker_is_gone(tmp_path: Path) -> None:
    with serving(echo, hold=2) as endpoint:
        async with opened(endpoint.url, tmp_path) as llm:
            gone = asyncio.create_task(llm.complete(ask("first")))
            await asyncio.to_thread(endpoint.until, lambda: endpoint.in_flight > 0)
            gone.cancel()
            await llm.complete(ask("second"))  # lets the endpoint answer both
            await asyncio.to_thread(endpoint.until, lambda: endpoint.in_flight == 0)
            assert (await llm.complete(ask("first"))).text == "heard first"
        assert len(endpoint.requests) == 2


async def test_an_asker_that_is_cancelled_takes_no_other_with_it(tmp_path: Path) -> None:
    with serving(echo, hold=2) as endpoint:
        async with opened(endpoint.url, tmp_path) as llm:
            first = asyncio.create_task(llm.complete(ask("the same")))
            second = asyncio.create_task(llm.complete(ask("the same")))
            await asyncio.to_thread(endpoint.until, lambda: endpoint.in_flight > 0)
            first.cancel()
            await llm.complete(ask("another"))
            assert (await second).text == "heard the same"
            assert first.cancelled()


class Gated:
    """Loses the first request once the gate opens, and answers the others."""

    model, identity, capabilities = "gated", "gated", frozenset[Capability]()

    def __init__(self) -> None:
        self.began, self.gate = asyncio.Event(), asyncio.Event()

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def probe(self) -> None: ...

    async def ask(self, request: Request) -> Raw:
        if not self.began.is_set():
            self.began.set()
            await self.gate.wait()
            raise RetryableFailure("lost")
        return {}

    def read(self, raw: Raw, request: Request) -> Reply:
        return Reply(text="heard")


@pytest.mark.parametrize("turns", range(5))
async def test_who_asks_at_the_moment_that_a_request_is_given_up_is_answered(tmp_path: Path, turns: int) -> None:
    backend, config = Gated(), LLMConfig(model="gated")
    books = of_this_process(config, "gated", tmp_path / "cache.sqlite", tmp_path / "usage.jsonl", None)

    async def later() -> Completion:
        await backend.gate.wait()
        for _ in range(turns):  # of the loop
            await asyncio.sleep(0)
        return await llm.complete(ask("q"))

    async with Client(backend, config, books, backoff=0.0) as llm:
        first = asyncio.create_task(llm.complete(ask("q")))
        await backend.began.wait()
        first.cancel()
        second = asyncio.create_task(later())
        await asyncio.sleep(0)
        backend.gate.set()
        assert (await second).text == "heard"


async def test_an_attempt_asks_afresh_and_is_kept_apart(tmp_path: Path) -> None:
    with serving(lambda messages, body: f"seed {body['seed']}") as endpoint:
        async with opened(endpoint.url, tmp_path, seed=3) as llm:
            warm = [await llm.complete(ask("q"), temperature=1.0, attempt=attempt) for attempt in (0, 1, 0)]
            greedy = await llm.complete(ask("q"))
        async with opened(endpoint.url, tmp_path, seed=4) as llm:  # another run: only its samples differ
            other = await llm.complete(ask("q"), temperature=1.0)
            assert await llm.complete(ask("q")) == greedy
    assert warm[0] == warm[2] != warm[1]
    assert other not in warm
    assert len(endpoint.requests) == 4


# --- limits -----------------------------------------------------------------------------------


async def test_the_budget_stops_at_the_very_request_and_goes_on_when_raised(tmp_path: Path) -> None:
    with serving(echo) as endpoint:
        async with opened(endpoint.url, tmp_path, max_requests=10) as llm:
            answers = await asyncio.gather(
                *(llm.complete(ask(f"question {i}")) for i in range(25)), return_exceptions=True
            )
        refused = [answer for answer in answers if isinstance(answer, OutOfBudget)]
        assert len(endpoint.requests) == 10
        assert len(refused) == 15
        assert "max_requests=10" in str(refused[0])
        async with opened(endpoint.url, tmp_path, max_requests=10) as llm:  # run again: nothing more is spent
            with pytest.raises(OutOfBudget):
                await ask_many(llm, 25)
        assert len(endpoint.requests) == 10
        async with opened(endpoint.url, tmp_path, max_requests=25) as llm:
            await ask_many(llm, 25)
        assert len(endpoint.requests) == 25


async def test_tokens_and_cost_never_exceed_their_limits(tmp_path: Path) -> None:
    with serving(echo) as endpoint:
        async with opened(endpoint.url, tmp_path, max_tokens=300) as llm:
            for i in range(100):
                try:
                    await llm.complete(ask(f"question {i}"), max_tokens=20)
                except OutOfBudget:
                    break
            used = sum(row.prompt_tokens + row.completion_tokens for row in read_usage(tmp_path / "usage.jsonl"))
            assert llm.spent.tokens == used
    assert 200 < used <= 300


# --- failures ---------------------------------------------------------------------------------


async def test_a_request_that_keeps_failing_is_a_value_that_is_retryable_and_is_not_kept(tmp_path: Path) -> None:
    with serving(echo) as endpoint:
        async with opened(endpoint.url, tmp_path, retries=2) as llm:
            endpoint.shares["error"] = 1.0
            failed = await llm.complete(ask("q"))
            assert failed.text is None
            assert failed.retryable
            assert "HTTP 500" in (failed.failure or "")
            endpoint.shares["error"] = 0.0
            assert (await llm.complete(ask("q"))).text == "heard q"
    rows = list(read_usage(tmp_path / "usage.jsonl"))
    assert [(row.attempts, row.outcome[:16]) for row in rows] == [(3, "failed: http://1"), (1, "ok")]


async def test_an_endpoint_that_dies_midway_ends_the_run_with_one_line_and_keeps_the_answers(tmp_path: Path) -> None:
    with serving(echo) as endpoint:

        def dies(messages: list[dict[str, str]], body: dict[str, Any]) -> str:
            endpoint.dying = len(endpoint.requests) >= 29
            return echo(messages, body)

        endpoint.answer = dies
        async with opened(endpoint.url, tmp_path, concurrency=8) as llm:
            with pytest.raises(EndpointDown, match=r"does not answer any more.*run again") as caught:
                await ask_many(llm, 200)
        assert "\n" not in str(caught.value)
        endpoint.answer, endpoint.dying = echo, False
        async with opened(endpoint.url, tmp_path, concurrency=8) as llm:
            await ask_many(llm, 200)
        assert len(endpoint.requests) == 200


async def test_a_hiccup_of_every_connection_at_once_is_survived(tmp_path: Path) -> None:
    with serving(echo, hold=16) as endpoint:
        async with opened(endpoint.url, tmp_path, concurrency=16) as llm:
            endpoint.dying = True
            asking = asyncio.create_task(ask_many(llm, 40))
            await asyncio.to_thread(endpoint.until, lambda: endpoint.outcomes["ok"] >= 16)
            endpoint.dying = False
            assert all(answer.text for answer in await asking)


async def test_a_wrong_key_ends_the_run_after_one_request(tmp_path: Path) -> None:
    with serving(echo, models=None) as endpoint:
        async with opened(endpoint.url, tmp_path, concurrency=1) as llm:
            before = endpoint.received
            endpoint.key = "sk-right"
            with pytest.raises(AutointerpError, match="HTTP 401"):
                await ask_many(llm, 20)
            assert endpoint.received == before + 1


# --- usage ------------------------------------------------------------------------------------


async def test_rows_say_what_was_asked_for_whom(tmp_path: Path) -> None:
    with serving(echo) as endpoint:
        async with opened(endpoint.url, tmp_path) as llm:

            async def explain(feature: int) -> Meter:
                with tag(feature=feature), llm.meter() as meter:
                    await asyncio.gather(llm.complete(ask(f"{feature} a")), llm.complete(ask(f"{feature} b")))
                return meter

            with tag(stage="explain"), llm.meter() as whole:
                meters = await asyncio.gather(explain(1), explain(2))
            await llm.complete(ask("outside"))
    rows = list(read_usage(tmp_path / "usage.jsonl"))
    assert Counter((row.stage, row.feature) for row in rows) == {("explain", 1): 2, ("explain", 2): 2, (None, None): 1}
    assert meters[0].prompt_hash in {row.prompt_hash for row in rows if row.feature == 1}
    assert whole.requests == 4
    assert whole.prompt_tokens == sum(meter.prompt_tokens for meter in meters) > 0


async def test_a_torn_line_of_the_journal_is_left_out_and_the_next_is_whole(tmp_path: Path) -> None:
    with serving(echo) as endpoint:
        async with opened(endpoint.url, tmp_path) as llm:
            await ask_many(llm, 2)
        journal = tmp_path / "usage.jsonl"
        journal.write_bytes(journal.read_bytes()[:-20])
        assert len(list(read_usage(journal))) == 1
        async with opened(endpoint.url, tmp_path) as llm:
            await ask_many(llm, 2)
    assert [row.cached for row in read_usage(journal)] == [False, True, True]


def test_a_long_journal_is_read_row_by_row(tmp_path: Path) -> None:
    (tmp_path / "usage.jsonl").write_text(GOLDEN * 20_000)
    tracemalloc.start()
    rows = sum(row.prompt_tokens for row in read_usage(tmp_path / "usage.jsonl"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 200_000
    assert peak < 1 << 20


async def test_a_client_keeps_no_row_of_a_long_run(tmp_path: Path) -> None:
    with serving(echo) as endpoint:
        async with opened(endpoint.url, tmp_path) as llm:
            await ask_many(llm, 10)
            tracemalloc.start()
            with llm.meter() as meter:
                for _ in range(200):
                    await ask_many(llm, 10)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    assert meter.requests == 2000
    assert peak < 1 << 20


def test_the_form_of_a_usage_row(tmp_path: Path) -> None:
    (tmp_path / "usage.jsonl").write_text(GOLDEN + GOLDEN[:50])
    (row,) = list(read_usage(tmp_path / "usage.jsonl"))
    assert (row.stage, row.feature, row.model, row.kind) == ("score", 7, "m", "choose")
    assert (row.prompt_tokens, row.completion_tokens, row.cached_tokens, row.cached) == (10, 1, 5, False)
    assert (row.seconds, row.outcome, row.attempts, row.prompt_hash) == (0.5, "ok", 2, "ab")


GOLDEN = (
    '{"stage": "score", "feature": 7, "model": "m", "kind": "choose", "prompt_tokens": 10, "completion_tokens": 1,'
    ' "cached_tokens": 5, "cached": false, "seconds": 0.5, "outcome": "ok", "attempts": 2, "prompt_hash": "ab"}\n'
)


def contents(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in folder.iterdir()]


async def test_the_key_is_in_no_file_and_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = "sk-very-secret-0123456789"
    monkeypatch.setenv("TEST_KEY", key)
    said = []
    with serving(echo, key=key, error=0.3, models=None) as endpoint:
        async with opened(endpoint.url, tmp_path, api_key_env="TEST_KEY", retries=1) as llm:
            said += [answer.failure for answer in await ask_many(llm, 20) if answer.failure]
            endpoint.key = "other"
            with pytest.raises(AutointerpError, match="TEST_KEY") as caught:
                await llm.complete(ask("new"))
            said.append(str(caught.value))
    assert said
    assert key not in " ".join(said) + caplog.text
    assert not any(key.encode() in content for content in contents(tmp_path))


# --- kill -9 ----------------------------------------------------------------------------------

RUN = """
import asyncio, sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from test_client import ask_many, opened

async def main():
    async with opened(sys.argv[1], Path(sys.argv[2]), concurrency=8) as llm:
        answers = await ask_many(llm, 150)
        assert all(answer.text for answer in answers)

asyncio.run(main())
"""


def test_after_kill_9_nothing_that_was_answered_is_asked_again(tmp_path: Path) -> None:
    here = Path(__file__).parent
    log = tmp_path / "answered.jsonl"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(here.parent)!r})\n{RUN}"]
    with serving(echo, latency=0.01, log=log) as endpoint:
        arguments = [endpoint.url, str(tmp_path), str(here)]
        process = subprocess.Popen(command + arguments)
        endpoint.until(lambda: len(endpoint.requests) >= 60)
        process.kill()
        process.wait()
        assert len(endpoint.requests) < 150
        subprocess.run(command + arguments, check=True)
    asked = Counter(json.loads(line)["hash"] for line in log.read_text().splitlines())
    again = sum(count - 1 for count in asked.values())
    assert len(endpoint.requests) == 150 + again
    assert again <= 8  # only what was on its way when the process was killed


def test_the_endpoint_runs_as_a_process_of_its_own(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "endpoint.py"
    command = [sys.executable, str(script), "--log", str(tmp_path / "log.jsonl"), "--limit", "0.2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        url = process.stdout.readline().strip()

        async def main() -> Completion:
            async with opened(url, tmp_path) as llm:
                return await llm.complete(ask("q"))

        assert asyncio.run(main()).text == "Yes"
    finally:
        process.kill()
        process.wait()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2  # a probe and the question


def test_faults_hang_on_the_seed_and_the_body_only() -> None:
    outcomes = [[Endpoint(limit=0.5, seed=seed)._fault(str(i)) for i in range(50)] for seed in (1, 1, 2)]
    assert outcomes[0] == outcomes[1] != outcomes[2]


async def test_requests_are_divided_among_replicas_and_one_that_dies_is_left_alone(tmp_path: Path) -> None:
    with serving(echo, latency=0.05) as first, serving(echo, latency=0.05) as second, serving(echo) as dead:
        dead.stop()
        async with opened(first.url, tmp_path, replicas=[second.url, dead.url], concurrency=4) as llm:
            answers = await ask_many(llm, 40)
    assert [answer.text for answer in answers] == [f"heard question {i}" for i in range(40)]
    assert len(first.requests) + len(second.requests) == 40
    assert min(len(first.requests), len(second.requests)) > 10


async def test_replicas_share_what_was_answered_and_need_an_address(tmp_path: Path) -> None:
    with serving(echo) as first, serving(echo) as second:
        async with opened(first.url, tmp_path) as llm:
            await ask_many(llm, 5)
        async with opened(first.url, tmp_path, replicas=[second.url]) as llm:
            await ask_many(llm, 5)
        assert not second.requests
    with pytest.raises(ValidationError, match="base_url, which is missing"):
        LLMConfig.model_validate({"model": "m", "replicas": ["http://127.0.0.1:1/v1"]})
