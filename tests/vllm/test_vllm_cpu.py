"""A real vLLM server on a small real model. Needs $AUTOINTERP_VLLM_PYTHON or vLLM in this environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autointerp.config import LLMConfig
from autointerp.llm.backend import Choose, Complete, Fill, Reply, Request
from autointerp.llm.backends.vllm import VllmBackend
from autointerp.records import Message

WET = [Message("user", "Is water wet? Answer Yes or No.")]

pytestmark = [pytest.mark.vllm, pytest.mark.weights]


async def test_served_model_completes_chooses_and_fills_and_its_processes_end(smollm2: Path):
    config = LLMConfig(
        model=f"vllm:{smollm2}",
        timeout=600,
        server_args=["--max-model-len", "1024", "--max-num-seqs", "8"],
        env={"VLLM_CPU_KVCACHE_SPACE": "1"},
    )
    backend = VllmBackend(config)
    try:
        await backend.start()
        assert backend.capabilities >= {"choices", "slots"}
        assert backend._server is not None
        group = _descendants(backend._server.pid)
        assert len(group) > 1

        ask = [Message("user", "What is the capital of France?")]
        reply = await answered(backend, Complete(ask, 16))
        assert (reply.text or "").strip()
        again = await answered(backend, Complete(ask, 16))
        assert again.text == reply.text, "greedy"  # what a small model knows hangs on the processor's rounding
        assert reply.prompt_tokens > 8

        chosen = (await answered(backend, Choose(WET, ["Yes", "No"]))).choices[0]
        assert chosen.probabilities is not None
        assert sum(chosen.probabilities) == pytest.approx(1)

        slots = await answered(backend, Fill(ask, ["Paris: ", "\nRome: "], "1", [str(n) for n in range(10)]))
        assert len(slots.choices) == 2
        assert all(slot.probabilities for slot in slots.choices)
    finally:
        await backend.close()
    assert not [pid for pid in group if _alive(pid)]


async def answered(backend: VllmBackend, request: Request) -> Reply:
    return backend.read(await backend.ask(request), request)


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
