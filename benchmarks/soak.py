"""A soak in miniature: planted features against an endpoint that is now well, now ill; memory, descriptors, requests.

    python benchmarks/soak.py [--features 20000] [--latency 0.3] [--out results/reference/soak.json]

1. Artifacts up to the harvest are planted, as in scale.py. The run explains each feature and detects in lists, two
   requests a feature, 64 at a time.
2. The endpoint, a process of its own, answers after `latency` seconds. Of each 20 seconds it is ill for 4: then one
   request in ten is answered with HTTP 500, one in ten with HTTP 429, and one in ten is dropped.
3. Memory, open descriptors and requests in flight are sampled five times a second while the run asks.

Bars: memory at the end of each asking stage within 5 % of that after its first fifth; no more descriptors at the end
than then, but for eight; the median of requests in flight while the endpoint is well is at least 60 of 64; every
feature is scored. Exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

CONCURRENCY = 64
PERIOD, ILL = 20.0, 4.0  # seconds
GROWTH, IN_FLIGHT, DESCRIPTORS = 1.05, 60, 8
STAGES = ("explain/default", "score/detection/default")


def is_ill(now: float) -> bool:
    """By the wall clock, so that both processes agree."""
    return now % PERIOD > PERIOD - ILL


# --- the endpoint -----------------------------------------------------------------------------


def serve(latency: float) -> None:
    import asyncio
    import socket

    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    class Dropped(Response):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"999")]})
            await send({"type": "http.response.body", "body": b"{", "more_body": True})

    async def chat(request: Request) -> Response:
        body = await request.json()
        await asyncio.sleep(latency)
        draw = random.random() if is_ill(time.time()) else 1.0
        if draw < 0.1:
            return JSONResponse({"error": {"message": "ill"}}, 500)
        if draw < 0.2:
            return JSONResponse({"error": {"message": "slow down"}}, 429, {"retry-after": "0.05"})
        if draw < 0.3:
            return Dropped()
        said = body["messages"][-1]["content"]
        numbers = re.findall(r"^(\d+)\. ", said, re.M)
        judged = json.dumps({number: int(number) % 2 for number in numbers})
        text = judged if "Property:" in said else "EXPLANATION: a planted token"
        usage = {"prompt_tokens": len(said) // 4, "completion_tokens": len(text) // 4}
        message = {"role": "assistant", "content": text}
        return JSONResponse({"choices": [{"index": 0, "finish_reason": "stop", "message": message}], "usage": usage})

    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/models", lambda request: JSONResponse({"data": [{"id": "soak"}]})),
    ]
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", flush=True)
    listener.listen(1024)
    uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="critical")).run(sockets=[listener])


# --- the run ----------------------------------------------------------------------------------


class Samples(threading.Thread):
    """What the process holds, five times a second: (time, stage, memory in MB, descriptors, requests in flight)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.rows: list[tuple[float, str, float, int, int]] = []
        self.clients: list[Any] = []
        self.stage = ""
        self.over = threading.Event()

    def run(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE") / 2**20
        while not self.over.wait(0.2):
            memory = int(Path("/proc/self/statm").read_text().split()[1]) * page
            in_flight = sum(client._limiter.in_flight for client in self.clients)
            self.rows.append((time.time(), self.stage, memory, len(os.listdir("/proc/self/fd")), in_flight))

    def watch(self) -> None:
        """Hear of each client that is opened and of each stage that begins."""
        from autointerp.commands import live
        from autointerp.llm import build

        begun, opened = live.Live.begun, build.Client

        def beginning(lives: Any, stage: str, folder: Path) -> None:
            self.stage = stage
            begun(lives, stage, folder)

        def opening(*given: Any, **options: Any) -> Any:
            self.clients.append(opened(*given, **options))
            return self.clients[-1]

        live.Live.begun = beginning  # type: ignore[method-assign]
        build.Client = opening  # type: ignore[misc, assignment]


def measure(features: int, url: str) -> dict[str, Any]:
    from scale import plant_artifacts, planted_config

    import autointerp as ai

    samples = Samples()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ["AUTOINTERP_CACHE"] = str(place / "cache")
        config = planted_config(place, features)
        given = {"model": "soak", "base_url": url, "api_key_env": None, "logprobs": False, "concurrency": CONCURRENCY}
        llm = config.llm.model_copy(update=given)
        config = config.model_copy(update={"llm": llm, "name": "soak"})
        plant_artifacts(config, place, features)
        samples.watch()
        samples.start()
        begun = time.monotonic()
        run = ai.run(config, out=place / "run")
        seconds = time.monotonic() - begun
        samples.over.set()
        usage = run.usage
        scored = int(run.features["detection"].notna().sum())
    asked = usage[~usage["cached"]]
    return {
        "features": features,
        "scored": scored,
        "seconds": round(seconds, 1),
        "requests": len(asked),
        "asked_more_than_once": int((asked["attempts"] > 1).sum()),
        "failed": int((asked["outcome"] != "ok").sum()),
        "stages": {stage: of_stage([row for row in samples.rows if row[1] == stage]) for stage in STAGES},
    }


def of_stage(rows: list[tuple[float, str, float, int, int]]) -> dict[str, Any]:
    """The first fifth is left out: pools of connections and buffers are being filled."""
    rows = [row for row in rows if row[4]]  # while it asks
    fifth = len(rows) // 5
    early, late = rows[fifth : 2 * fifth], rows[-fifth:]
    well = [row[4] for row in rows[fifth:-fifth] if not (is_ill(row[0]) or is_ill(row[0] - 3))]
    return {
        "seconds": round(rows[-1][0] - rows[0][0], 1),
        "memory_mb": [round(statistics.median(row[2] for row in part)) for part in (early, late)],
        "descriptors": [max(row[3] for row in part) for part in (early, late)],
        "in_flight_while_well": statistics.median(well),
    }


def bars(report: dict[str, Any]) -> dict[str, bool]:
    stages = report["stages"].values()
    return {
        "all scored": report["scored"] == report["features"],
        "memory": all(s["memory_mb"][1] <= GROWTH * s["memory_mb"][0] for s in stages),
        "descriptors": all(s["descriptors"][1] <= s["descriptors"][0] + DESCRIPTORS for s in stages),
        "in flight": all(s["in_flight_while_well"] >= IN_FLIGHT for s in stages),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=20_000)
    parser.add_argument("--latency", type=float, default=0.3, help="seconds before each answer")
    parser.add_argument("--out", type=Path, default=Path("results/reference/soak.json"))
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.latency)
        return
    command = [sys.executable, __file__, "--serve", "--latency", str(options.latency)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        report = measure(options.features, server.stdout.readline().strip())
    finally:
        server.kill()
    report = {
        "command": f"python benchmarks/soak.py --features {options.features} --latency {options.latency}",
        "bars": bars(report),
        **report,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    sys.exit(not all(report["bars"].values()))


if __name__ == "__main__":
    main()
