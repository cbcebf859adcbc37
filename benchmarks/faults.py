"""Fault modes against explaining, detection by lists and by probabilities, and simulation, each beside a clean run.

    python benchmarks/faults.py [--modes NAME …] [--out results/reference/faults.json]

1. Five features of planted words, judged by an oracle behind an OpenAI-compatible endpoint, give the clean rows.
2. For each mode and task the endpoint answers one request in three as the mode says, and the task's rows are made as
   a stage makes them: by the executor, through the client, with the request cache.
3. The endpoint is well, and the run is repeated. Then, where rows are still not the clean ones, repeated with
   `--retry-failed`.

Bars: no row that is given differs from the clean one, no count is wrong, nothing that was well answered is asked for
again, each run ends within `BOUND` seconds. After one repetition the rows are the clean ones, but in the modes that
are final by nature (the endpoint has answered, and it is kept), which `--retry-failed` brings to the clean rows too.
Exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))

from endpoint import Endpoint
from fault_modes import Mode, modes
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from autointerp.config import LLMConfig
from autointerp.engine import asking
from autointerp.engine.executor import Rows, each_feature
from autointerp.engine.guard import guarded
from autointerp.engine.session import Session
from autointerp.engine.stage import Job, Use
from autointerp.errors import AutointerpError
from autointerp.explainers.default import explain
from autointerp.llm.backends.http import PROBE
from autointerp.llm.backends.openai import OpenAIBackend
from autointerp.llm.books import of_this_process
from autointerp.llm.client import Client
from autointerp.progress import Progress
from autointerp.records import Context, Explanation, FeatureEvidence, Score
from autointerp.scorers import detection, simulation

BOUND = 60.0  # seconds
WORDS = ("dog", "tree", "house", "river", "bread")
TASKS = ("explain", "list", "probability", "simulation")
Outcome = dict[str, Any]  # what of a row must not hang on the endpoint's health


# --- an endpoint that is well, or not ---------------------------------------------------------


def oracle(messages: list[dict[str, str]], body: dict[str, Any]) -> Any:
    """Knows the word of each explanation."""
    said = messages[-1]["content"]
    word = (re.search(r"the word (\w+)", said) or [None, ""])[1]
    if "Property:" in said:
        return json.dumps(
            {n: int(bool(word) and word in text) for n, text in re.findall(r"^(\d+)\. (.*)$", said, re.M)}
        )
    if "The unit responds to:" in said:
        tokens = json.loads(said[said.index("Tokens: ") + 8 :])
        return json.dumps({"pairs": [[t, 10 if t.strip() == word else 0] for t in tokens]})
    if said.startswith("Text:"):
        sure = 0.9 if word in said.split("\n")[0] else 0.2
        return ("Yes" if sure > 0.5 else "No"), {"Yes": sure, "No": 0.95 - sure}
    words = re.findall(r"«(\w+)»", said)
    return f"EXPLANATION: the word {max(set(words), key=words.count)}"


class BadEndpoint(Endpoint):
    """Well, or bad as `mode` says. `well` counts, by request, the answers that a reader can use."""

    def __init__(self) -> None:
        super().__init__(oracle)
        self.mode: Mode | None = None
        self.seen: Counter[str] = Counter()
        self.well: Counter[str] = Counter()

    def begin(self, mode: Mode | None) -> None:
        self.mode = mode
        self.seen.clear()
        self.well.clear()

    async def _chat(self, request: Request) -> Response:
        body = json.loads(await request.body())
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        probe = any(message["content"] == PROBE for message in body["messages"])
        reply = self._reply(body, "Yes" if probe else oracle(body["messages"], body), digest, probe)
        mode = self.mode
        question = json.dumps(body["messages"])
        hit = mode is not None and (mode.dead or (not probe and _of_three(question)))
        self.seen[question] += hit
        if mode is None or not hit or (mode.times is not None and self.seen[question] > mode.times):
            self.well[digest] += not probe
            return JSONResponse(reply)
        answer = mode.bad(reply, body)
        self.well[digest] += mode.usable and answer.status_code == 200
        return answer


def _of_three(text: str) -> bool:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 3 == 0


# --- the tasks --------------------------------------------------------------------------------


def contexts(feature: int, split: Any) -> list[Context]:
    """Windows of one word among others: ten in which the feature fires, five silent, five near misses."""
    made = []
    for i in range(20):
        kind = "activating" if i < 10 else "random" if i < 15 else "near"
        tokens = ["Once", " there", " was", " a", " big", " lamp", ".", f" {split} {i}"]
        activations = [0.0] * len(tokens)
        if kind == "activating":
            tokens[1 + i % 5], activations[1 + i % 5] = f" {WORDS[feature]}", 1.0 + i % 5
        elif kind == "near":
            tokens[1 + i % 5] = " cat"
        quantile = i % 5 if i < 10 else None
        made.append(Context(feature, i, split, kind, quantile, i, 0, tuple(tokens), tuple(activations)))  # type: ignore[arg-type]
    return made


def task(name: str, feature: int, llm: Client) -> Callable[[], Awaitable[Explanation | Score]]:
    seen, held_out = contexts(feature, "train"), contexts(feature, "test")
    text = f"the word {WORDS[feature]}"
    if name == "explain":
        activating, silent = tuple(c for c in seen if c.fires), tuple(c for c in seen if not c.fires)
        evidence = FeatureEvidence(feature, 100, 0.01, 5.0, activating, silent, ())
        return lambda: explain(evidence, llm, seed=0)
    if name == "simulation":
        return lambda: simulation.score(text, held_out, llm, mode="json", sequences=8, seed=0)
    mode: Any = "list" if name == "list" else "each"
    return lambda: detection.score(text, held_out, llm, mode=mode, batch=10, seed=0)


def outcome(row: Explanation | Score) -> Outcome:
    if isinstance(row, Explanation):
        return {"items": {0: row.text}, "failures": {0: row.failure}, "counts": None}
    items = {j.example: None if j.status == "failed" else (j.prediction, j.probability, j.predictions)
             for j in row.judgements}  # fmt: skip
    failures = {j.example: j.failure for j in row.judgements}
    value = {"value": row.value, "low": row.low, "high": row.high}
    return {"items": items, "failures": failures, "counts": (row.n_scored, row.n_unscored), "value": value}


def run(
    name: str, url: str, folder: Path, mode: Mode | None, retry_failed: bool = False
) -> tuple[dict[int, Outcome], str, int]:
    """The rows of each feature that a run comes to, what ended it (empty: nothing), and how many requests may pass."""
    timeout = (mode and mode.timeout) or 300.0
    config = LLMConfig(
        model="test-model", base_url=url, api_key_env=None, logprobs=name == "probability", retries=3,
        timeout=timeout, max_retry_after=0.05, concurrency=8,
    )  # fmt: skip
    rows: dict[int, Outcome] = {}
    try:
        with Session(None, folder / "usage.jsonl", retry_failed=retry_failed) as session:  # type: ignore[arg-type]
            books = of_this_process(config, config.model, folder / "requests.sqlite", session.journal, None)
            llm = session.enter(Client(OpenAIBackend(config), config, books, backoff=0.002))

            async def work(feature: int, _: None) -> Rows:
                with asking.asked(llm, name, feature) as meter:
                    row = await guarded(
                        task(name, feature, llm), Explanation | Score, lambda why: Explanation(None, why)
                    )
                rows[feature] = outcome(row)
                failed = sum(item is None for item in rows[feature]["items"].values())
                return Rows({}, meter.retryable_failures, failed)

            features = range(len(WORDS))
            with tempfile.TemporaryDirectory() as place:
                to_retry = each_feature(
                    Job(session, Use(name), Path(place), {}), features, lambda: (dict.fromkeys, work), width=8,
                    bar=Progress("x", None, "x"),
                )  # fmt: skip
    except AutointerpError as error:
        return rows, str(error), 0
    return rows, "", to_retry


# --- one cell ---------------------------------------------------------------------------------


def cell(mode: Mode, name: str, endpoint: BadEndpoint, clean: dict[int, Outcome]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        endpoint.begin(mode)
        begun = time.monotonic()
        rows, stopped, to_retry = run(name, endpoint.url, folder, mode)
        seconds = time.monotonic() - begun
        hits = sum(endpoint.seen.values())
        endpoint.mode = None
        again, stopped_again = rows, ""
        if stopped or to_retry:  # else the stage is done, and the next run does not touch it
            again, stopped_again, _ = run(name, endpoint.url, folder, None)
        repeated = sum(count - 1 for count in endpoint.well.values() if count > 1)
        healed = again == clean and not stopped_again
        healed_by_retry = healed or run(name, endpoint.url, folder, None, retry_failed=True)[:2] == (clean, "")
    return {
        "mode": mode.name,
        "task": name,
        "hits": hits,
        "stopped": stopped,
        "unscored": sum(item is None for row in rows.values() for item in row["items"].values()),
        "reasons": sorted({str(why)[:80] for row in rows.values() for why in row["failures"].values() if why})[:2],
        "changed": changed(rows, clean) + changed(again, clean),
        "wrong_counts": sum(map(miscounted, [*rows.values(), *again.values()])),
        "repeated": repeated,
        "seconds": round(seconds, 2),
        "healed": healed,
        "healed_by_retry": healed_by_retry,
        "missed": [],
    }


def changed(rows: dict[int, Outcome], clean: dict[int, Outcome]) -> int:
    """Given rows, or parts of them, that are not the clean ones."""
    return sum(
        item is not None and item != clean[feature]["items"][example]
        for feature, row in rows.items()
        for example, item in row["items"].items()
    )


def miscounted(row: Outcome) -> bool:
    lost = sum(item is None for item in row["items"].values())
    without_reason = any(item is None and not row["failures"][key] for key, item in row["items"].items())
    return without_reason or (row["counts"] is not None and row["counts"] != (len(row["items"]) - lost, lost))


def missed(result: dict[str, Any], mode: Mode) -> list[str]:
    """The bars that a cell misses."""
    wrong = [name for name in ("changed", "wrong_counts", "repeated") if result[name]]
    if result["seconds"] > BOUND:
        wrong.append("seconds")
    if bool(result["stopped"]) != mode.ends and result["hits"]:
        wrong.append("stopped")
    if not (result["healed"] or (mode.final and result["healed_by_retry"])):
        wrong.append("healed")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="*", help="these alone; their rows take the place of those in --out")
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--out", type=Path, default=Path("results/reference/faults.json"))
    options = parser.parse_args()
    logging.getLogger("autointerp").setLevel(logging.CRITICAL)
    chosen = [mode for mode in modes() if not options.modes or mode.name in options.modes]
    begun = time.monotonic()
    results = matrix(chosen, options.tasks)
    seconds = round(time.monotonic() - begun)
    if options.modes and options.out.exists():
        before = json.loads(options.out.read_text())
        results = replaced(before["table"], results)
        seconds += before["seconds"]
    summary = summarised(results, seconds)
    if not options.modes or options.out.exists():
        lines = ",\n".join("  " + json.dumps(result, ensure_ascii=True) for result in results)
        options.out.write_text(f'{json.dumps(summary, indent=1)[:-2]},\n "table": [\n{lines}\n ]\n}}\n')
    for result in results:
        if result["missed"]:
            print(json.dumps(result))
    print(json.dumps(summary, indent=1))
    sys.exit(bool(summary["cells_that_miss_a_bar"]))


def replaced(before: list[dict[str, Any]], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of an earlier table, with `results` in the place of those of the same mode and task."""
    new = {(result["mode"], result["task"]): result for result in results}
    return [new.pop((row["mode"], row["task"]), row) for row in before] + list(new.values())


def summarised(results: list[dict[str, Any]], seconds: int) -> dict[str, Any]:
    return {
        "command": "python benchmarks/faults.py",
        "modes": len({result["mode"] for result in results}),
        "cells": len(results),
        "cells_that_miss_a_bar": sum(bool(result["missed"]) for result in results),
        **{name: sum(result[name] for result in results) for name in ("hits", "changed", "wrong_counts", "repeated")},
        "longest_seconds": max(result["seconds"] for result in results),
        "final_by_nature": sorted({r["mode"] for r in results if not r["healed"]}),
        "stop_the_run": sorted({r["mode"] for r in results if r["stopped"]}),
        "seconds": seconds,
    }


def matrix(chosen: list[Mode], tasks: Any = TASKS) -> list[dict[str, Any]]:
    """A row a mode and task."""
    endpoint = BadEndpoint()
    endpoint.start()
    results = []
    try:
        with tempfile.TemporaryDirectory() as place:
            clean = {}
            for name in tasks:
                (Path(place) / name).mkdir()
                clean[name], stopped, _ = run(name, endpoint.url, Path(place) / name, None)
                assert not stopped, stopped
                assert not any(v is None for row in clean[name].values() for v in row["items"].values())
        for mode in chosen:
            for name in tasks:
                if mode.probabilities and name != "probability":
                    continue
                if mode.group == "text" and name == "probability":
                    continue
                result = cell(mode, name, endpoint, clean[name])
                result["missed"] = missed(result, mode)
                results.append(result)
                print(f"{mode.name}, {name}: {', '.join(result['missed']) or 'holds'}", file=sys.stderr, flush=True)
    finally:
        endpoint.stop()
    return results


if __name__ == "__main__":
    main()
