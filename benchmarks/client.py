"""Requests a second of one client process over HTTP, by its processor's time.

    python benchmarks/client.py [--requests 2000] [--rounds 5] [--out results/reference/client.json]

An endpoint in another process answers at once. Each prompt has 2,500 characters that all share and 2,000 of its own, as
a judge's prompts have. What is counted is all that a request costs its client: the key, the look into the cache, the
budget, sending, reading, keeping the answer, the row of the journal. Answers that are kept already are counted apart.
One process uses one core; two processes, or two workers of a cluster, use two. The best of the rounds counts, for other
work on the machine costs each of them as it comes.

Bar: 300 requests a second of the processor. Exits 1 where it is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from autointerp.config import LLMConfig
from autointerp.llm import Client, open_llm
from autointerp.records import Message

BAR = 300
SHARED, OWN = "You are judging windows of text. " * 75, "the text of one more example "
ENDPOINT = Path(__file__).parents[1] / "tests" / "endpoint.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("results/reference/client.json"))
    options = parser.parse_args()
    server = subprocess.Popen([sys.executable, str(ENDPOINT)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        url = server.stdout.readline().strip()
        rounds = [asyncio.run(measured(url, options.requests, options.concurrency)) for _ in range(options.rounds)]
    finally:
        server.kill()
    best = {name: max(each[name] for each in rounds) for name in rounds[0]}
    made = {
        "command": f"python benchmarks/client.py --requests {options.requests} --rounds {options.rounds}",
        "concurrency": options.concurrency,
        "rounds": rounds,
        "bars": {"requests_a_cpu_second": [best["requests_a_cpu_second"], BAR]},
    }
    options.out.write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(best))
    sys.exit(best["requests_a_cpu_second"] < BAR)


async def measured(url: str, requests: int, concurrency: int) -> dict[str, float]:
    given = {"model": "test-model", "base_url": url, "api_key_env": None, "logprobs": False, "concurrency": concurrency}
    with tempfile.TemporaryDirectory() as folder:
        config, place = LLMConfig.model_validate(given), Path(folder)
        async with open_llm(config, cache=place / "c.sqlite", journal=place / "usage.jsonl", seed=0) as llm:
            await asked(llm, ["one to begin with"])
            own = [f"question {number}: {OWN * 70}" for number in range(requests)]
            spent = [await asked(llm, own) for _ in range(2)]
    names = ("requests_a_cpu_second", "kept_answers_a_cpu_second")
    return {name: round(requests / seconds, 1) for name, seconds in zip(names, spent)}


async def asked(llm: Client, own: list[str]) -> float:
    """Seconds of the processor that the requests took."""
    gate = asyncio.Semaphore(256)

    async def ask(text: str) -> None:
        async with gate:
            answer = await llm.complete([Message("system", SHARED), Message("user", text)])
            assert answer.text is not None, answer.failure

    begun = time.process_time()
    await asyncio.gather(*map(ask, own))
    return time.process_time() - begun


if __name__ == "__main__":
    main()
