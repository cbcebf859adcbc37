"""Kill runs at random moments, over all stages, and compare what they come to with an undisturbed run.

    python benchmarks/kills.py [--kills 100] [--out results/reference/kills.json] [--go-on]

1. A tiny run that trains its SAE, explains by live requests, and is judged by a batch API, is made undisturbed.
2. The same run, with caches of its own, is started and killed (KILL, INT or TERM, in turn) at random moments until it
   ends by itself; then again from the beginning, until there were as many kills as wanted.
3. A process is forked from one that has torch imported, so that a start costs no import.
4. The report is written after each round. With `--go-on` the kills of an earlier report count, and the rest is made.

Bars: tables equal to the undisturbed ones; no request that was answered is asked again. An answer counts as received
when later requests have taken its turn before the kill; a request of a batch, when the batch was submitted.
Exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
CONCURRENCY = 4
STOPPED = (-signal.SIGKILL, -signal.SIGTERM, 130)  # how a process ends that was killed


# --- the endpoint, in a process of its own ----------------------------------------------------


def oracle(messages: list[dict[str, str]], body: dict[str, Any]) -> str:
    """Explains by the most frequent marked text; judges by whether that text stands there."""
    said = messages[-1]["content"]
    if "Property:" in said:
        rule = re.search(r"Property: .*?the text (\S+)", said)
        numbered = re.findall(r"^(\d+)\. (.*)$", said, re.M)
        return json.dumps({number: int(bool(rule) and rule[1] in text) for number, text in numbered})
    marked = re.findall(r"«\s*(\S+?)\s*»", said)
    return f"EXPLANATION: the text {max(sorted(set(marked)), key=marked.count) if marked else 'nothing'}"


def serve(log: Path) -> None:
    from batch_endpoint import BatchEndpoint
    from starlette.requests import Request
    from starlette.responses import Response

    class Logged(BatchEndpoint):
        """Each request, answer and batch as a line of the log, in their order."""

        async def _one(self, request: Request, body: dict[str, Any]) -> Response:
            name = json.dumps(body["messages"])
            probe = "Is water wet?" in name
            if not probe:
                self.note("asked", name)
                if "Property:" not in name:  # an explanation: live requests take as long as the other stages
                    await asyncio.sleep(0.6)
            answer = await super()._one(request, body)
            if not probe:
                self.note("answered", name)
            return answer

        async def _batches(self, request: Request) -> Response:
            before = len(self.batches)
            answer = await super()._batches(request)
            for batch in list(self.batches.values())[before:]:
                for _, body in batch["asked"]:
                    self.note("submitted", json.dumps(body["messages"]))
            return answer

        def note(self, what: str, name: str) -> None:
            with open(log, "a") as file:
                file.write(json.dumps([what, name]) + "\n")

    endpoint = Logged(oracle, latency=0.02, looks=3)
    print(endpoint.url, flush=True)
    endpoint.run()


# --- the run ----------------------------------------------------------------------------------


def config(url: str) -> dict[str, Any]:
    from autointerp.catalog import resolve

    judge = {"model": "openai-batch:test-model", "base_url": url, "api_key_env": None, "logprobs": False}
    return {
        "name": "killed",
        "subject": {"model": str(resolve("stories15m", "model")), "hook": "blocks.0.hook_resid_post"},
        "corpus": {"source": str(ROOT / "tests" / "data" / "stories.jsonl"), "tokens": 20_000, "context": 128},
        "sae": {"train": {"d_sae": 64, "k": 4, "tokens": 300_000, "batch_size": 1024}},
        "features": {"select": "top", "count": 12, "min_firings": 30},
        "contexts": {"window": 16, "quantiles": 2, "train": 6, "test_activating": 10, "test_random": 5, "test_near": 5},
        "llm": {
            **{"model": "test-model", "base_url": url, "api_key_env": None, "logprobs": False},
            **{"concurrency": CONCURRENCY},
        },
        "scorers": [{"name": "detection", "llm": judge}],
    }


def start(arguments: list[str], cache: Path, log: Path) -> int:
    """``autointerp ARGUMENTS`` in a fork of this process; returns its number."""
    child = os.fork()
    if child:
        return child
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ["AUTOINTERP_CACHE"] = str(cache)
        sys.argv = ["autointerp", *arguments]
        from autointerp.cli import main as command

        command()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:  # before the command could catch it: what Python itself would end with
        code = 130
    except BaseException as error:
        print(repr(error), flush=True)
        code = 99
    sys.stdout.flush()
    os._exit(code)


def ended(child: int, seconds: float) -> int | None:
    """The exit code of a process that ended within `seconds`; minus its signal where it was killed by one."""
    until = time.monotonic() + seconds
    while True:
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.01)


def stage_of(log: Path) -> str:
    """The stage that a run was in, by the last line of its log that names one."""
    lines = re.findall(r"^\[\d+/\d+\] ([\w/]+)(: done)?", log.read_text(), re.M) if log.exists() else []
    return lines[-1][0] + (" ended" if lines[-1][1] else "") if lines else "start"


def killed_until_it_ends(
    wanted: int, place: Path, file: Path, seconds: float, chance: random.Random, mark: Callable[[str], None]
) -> Counter[str]:
    """Kill a run up to `wanted` times, then let it end; where it was when it was killed."""
    kills: Counter[str] = Counter()
    while True:
        log = place / f"log-{sum(kills.values())}.txt"
        child = start(["run", str(file), "--out", str(place / "run")], place / "cache", log)
        leave = sum(kills.values()) >= wanted
        code = ended(child, 3600 if leave else chance.uniform(0.0, seconds))
        if code is None:
            number = SIGNALS[sum(kills.values()) % len(SIGNALS)]
            os.kill(child, number)
            code = ended(child, 120)
            if code not in (*STOPPED, 0):
                raise RuntimeError(f"{number.name}: ended with {code}: {log.read_text()[-2000:]}")
        mark("ended")
        if code == 0:
            return kills
        if code not in STOPPED:
            raise RuntimeError(f"failed with {code}: {log.read_text()[-2000:]}")
        kills[f"{SIGNALS[sum(kills.values()) % len(SIGNALS)].name} {stage_of(log)}"] += 1


def asked_again(lines: list[list[str]]) -> dict[str, int]:
    """Requests that were asked though an answer to them had been received by an earlier process of the same round."""
    received: set[str] = set()
    answered: list[tuple[str, int]] = []  # and how many requests had been asked then
    asked = live = submitted = 0
    batched: set[str] = set()
    for what, name in lines:
        if what == "asked":
            asked += 1
            live += name in received
        elif what == "answered":
            answered.append((name, asked))
        elif what == "submitted":
            submitted += name in batched
            batched.add(name)
        else:  # a process ended, or a round
            received |= {name for name, then in answered if asked - then > CONCURRENCY}
            answered = []
            if what == "round":
                received, batched = set(), set()
    return {"live": live, "in_batches": submitted}


def differences(one: Path, other: Path) -> list[str]:
    import pandas as pd

    from autointerp.stages import TABLES

    wrong = []
    for table in TABLES:
        files = [folder / f"{table}.parquet" for folder in (one, other)]
        if [file.exists() for file in files] != [False, False]:
            try:
                first, second = (pd.read_parquet(file) for file in files)
                pd.testing.assert_frame_equal(first, second)
            except (AssertionError, OSError) as error:
                wrong.append(f"{table}: {str(error)[:300]}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/reference/kills.json"))
    parser.add_argument("--go-on", action="store_true")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "requests.jsonl"
        server = subprocess.Popen([sys.executable, __file__, "--serve", str(log)], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            report = measure(options, server.stdout.readline().strip(), Path(folder), log)
        finally:
            server.kill()
    print(json.dumps(report, indent=1))
    sys.exit(bool(report["differences"] or any(report["asked_again"].values())))


def measure(options: argparse.Namespace, url: str, folder: Path, log: Path) -> dict[str, Any]:
    import yaml

    for module in ("commands.run", "report", "subject.model", "sae.train", "llm.backends.openai_batch"):
        __import__(f"autointerp.{module}")
    __import__("openai")
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config(url)))

    def mark(what: str) -> None:
        with open(log, "a") as lines:
            lines.write(json.dumps([what, ""]) + "\n")

    before = json.loads(options.out.read_text()) if options.go_on and options.out.exists() else {}
    report: dict[str, Any] = {"command": f"python benchmarks/kills.py --kills {options.kills}"} | before
    begun = time.monotonic()
    undisturbed = folder / "undisturbed"
    undisturbed.mkdir()
    chance = random.Random(f"{options.seed} {report.get('kills', 0)}")
    killed_until_it_ends(0, undisturbed, file, 0, chance, mark)
    seconds = time.monotonic() - begun
    mark("round")
    rounds = 0
    while report.get("kills", 0) < options.kills:
        place = folder / f"round-{rounds}"
        place.mkdir()
        left = options.kills - report.get("kills", 0)
        where = killed_until_it_ends(min(left, 20), place, file, 0.4 * seconds, chance, mark)
        mark("round")
        rounds += 1
        wrong = differences(place / "run", undisturbed / "run")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        report = added(report, where, wrong, asked_again(lines[lines.index(["round", ""]) + 1 :]))
        log.write_text('["round", ""]\n')  # the next round counts its own
        report["undisturbed_seconds"] = round(seconds, 1)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
        print(f"{report['kills']} kills, {len(report['differences'])} tables differ", file=sys.stderr, flush=True)
    return report


def added(report: dict[str, Any], where: Counter[str], wrong: list[str], again: dict[str, int]) -> dict[str, Any]:
    """`report` with one round more."""
    places = where + Counter(report.get("where", {}))
    return report | {
        "kills": places.total(),
        "rounds": report.get("rounds", 0) + 1,
        "differences": report.get("differences", []) + wrong,
        "asked_again": {name: n + report.get("asked_again", {}).get(name, 0) for name, n in again.items()},
        "where": dict(sorted(places.items())),
    }


if __name__ == "__main__":
    main()
