"""What every backend must do, whoever answers. A backend's test is a config and `await conforms(config)`.

The model behind it may say anything; it must answer within 16 tokens.
"""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from autointerp.config import LLMConfig
from autointerp.llm.backend import Choose, Complete, Fill, Reply, Request, Weigh
from autointerp.llm.build import open_llm
from autointerp.llm.prices import Prices
from autointerp.llm.registry import capabilities, check, identity, open_backend, prices
from autointerp.records import Message

ABLE = {"choices", "slots", "schema"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
QUESTION = [Message("system", "Answer shortly."), Message("user", "Is water wet? Say Yes or No, please.")]


def questions(able: frozenset[str]) -> list[Request]:
    asked: list[Request] = [
        Complete(QUESTION, 16),
        Complete(QUESTION, 16, temperature=1.0, seed=3, stop=("\n\n",), attempt=1),
        Complete([Message("user", "é \u2028 😀 \x00")], 16, schema=SCHEMA),
    ]
    if "choices" in able:
        asked += [Choose(QUESTION, ["Yes", "No"]), Choose(QUESTION, ["0", "1", "10"])]
    if "slots" in able:
        asked.append(Fill(QUESTION, ["Water: ", "\nIce: "], "No", ["Yes", "No"]))
        asked.append(Weigh(QUESTION, "Yes, and it is cold."))
    return asked


async def conforms(
    config: LLMConfig, folder: Path, *, names: Sequence[str] = (), resolve: Callable[[str], Path] | None = None
) -> None:
    """Raises AssertionError where the backend of `config` is none. `names` and `resolve` stand for the catalogue."""
    answers_for_itself(config, names)
    await answers(config, resolve)
    await serves_a_client(config, folder, resolve)


def answers_for_itself(config: LLMConfig, names: Sequence[str]) -> None:
    """What is known before anything is asked."""
    check(config, names)
    known = identity(config, lambda name: f"hash of {name}")
    assert json.loads(json.dumps(known)) == known
    assert identity(config.model_copy(update={"answer_tokens": 3}), str) != identity(config, str)
    assert identity(config.model_copy(update={"retries": 1, "concurrency": 3}), str) == identity(config, str)
    assert capabilities(config) <= ABLE
    cost = prices(config)
    assert cost is None or (isinstance(cost, Prices) and cost.tokens_in >= 0 and cost.tokens_out >= 0)
    assert prices(config.model_copy(update={"price_in": 0.0, "price_out": 0.0})) == Prices(0, 0)


async def answers(config: LLMConfig, resolve: Callable[[str], Path] | None) -> None:
    """Alone and side by side; what was kept says the same when it is read again, by another that has not started."""
    await open_backend(config, resolve).close()  # without having started
    backend, reader = open_backend(config, resolve), open_backend(config, resolve)
    assert backend.model
    assert backend.identity == reader.identity
    try:
        await backend.start()
        assert backend.capabilities <= ABLE
        assert capabilities(config) <= backend.capabilities
        await backend.probe()
        asked = questions(backend.capabilities)
        raws = await asyncio.gather(*(backend.ask(request) for request in asked * 2))
        for request, raw in zip(asked * 2, raws):
            kept = json.loads(json.dumps(raw))
            before = pickle.dumps(kept)
            reply = reader.read(kept, request)
            assert pickle.dumps(kept) == before, "read changes what is kept"
            assert reply == reader.read(kept, request) == backend.read(raw, request)
            says_something(reply, request)
    finally:
        await backend.close()
        await backend.close()


def says_something(reply: Reply, request: Request) -> None:
    assert reply.failure is None
    assert min(reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens) >= 0
    if isinstance(request, Complete):
        assert isinstance(reply.text, str)
        assert not any(stop in reply.text for stop in request.stop)
        return
    if isinstance(request, Weigh):
        assert reply.weight is not None
        assert reply.weight.logprob is not None
        assert reply.weight.logprob < 0 < reply.weight.tokens
        return
    assert len(reply.choices) == (len(request.segments) if isinstance(request, Fill) else 1)
    for choices in reply.choices:
        assert (choices.probabilities is None) == (choices.failure is not None)
        if choices.probabilities is not None:
            assert len(choices.probabilities) == len(request.answers)
            assert sum(choices.probabilities) == pytest.approx(1)
            assert choices.mass is not None
            assert 0 < choices.mass <= 1.001


async def serves_a_client(config: LLMConfig, folder: Path, resolve: Callable[[str], Path] | None) -> None:
    """A second run is answered from the cache, word by word, and nothing starts."""
    files = {"cache": folder / "requests.sqlite", "journal": folder / "usage.jsonl", "seed": 0}
    runs = []
    for _ in range(2):
        async with open_llm(config, resolve_model=resolve, **files) as llm:  # type: ignore[arg-type]
            texts = [
                await llm.complete(QUESTION, max_tokens=16),
                await llm.complete(QUESTION, max_tokens=16, attempt=1),
            ]
            judged = await llm.choose(QUESTION, ["Yes", "No"]) if "choices" in llm.capabilities else None
            runs.append((texts, judged, llm.capabilities, llm.spent.requests))
    assert runs[0] == runs[1]
