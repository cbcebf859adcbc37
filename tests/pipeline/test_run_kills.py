"""A run that is killed in one stage after another."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml
from endpoint import Endpoint, bodies, serving
from planted import config, oracle

import autointerp as ai
from autointerp.progress import read_standing
from autointerp.stages import TABLES

CONCURRENCY = 4
AT_STAGES = (4, 10)  # harvest, contexts
AFTER_REQUESTS = (10, 28, 44, 200)  # while it explains, calibrates, scores by one scorer and by the other


def start(file: Path, out: Path, cache: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "AUTOINTERP_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "autointerp", "run", str(file), "--out", str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill(process: subprocess.Popen[bytes]) -> None:
    assert process.poll() is None, f"finished, or failed, before it was killed: {process.communicate()[1]!r}"
    process.send_signal(signal.SIGKILL)
    process.communicate()


def wait_for_stage(process: subprocess.Popen[bytes], out: Path, number: int) -> None:
    """Until the process says that it has come so far."""
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        standing = read_standing(out)
        if standing is not None and standing.pid == process.pid and standing.number >= number:
            return
        time.sleep(0.01)


def wait_for_requests(endpoint: Endpoint, number: int) -> list[str]:
    """Until `number` were received in all, and then some more; what was answered before these, which is received."""
    endpoint.until(lambda: endpoint.received >= number, timeout=120)
    answered, sent = bodies(endpoint), endpoint.received
    endpoint.until(lambda: endpoint.received > sent + CONCURRENCY, timeout=120)
    return answered


def test_kills_lose_nothing_that_was_answered(
    stories15m: Path, sae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer counts as received once its request's turn has gone to later requests."""
    chance = random.Random(7)
    with serving(oracle, latency=0.02) as endpoint:
        wanted = config(stories15m, sae, endpoint.url)
        wanted["llm"]["concurrency"] = CONCURRENCY
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(wanted))
        cache, out = tmp_path / "cache", tmp_path / "killed"
        received: set[str] = set()
        resent: Counter[str] = Counter()

        def note_what_was_sent_again(first: int) -> None:
            resent.update(body for body in bodies(endpoint)[first:] if body in received)

        for number in AT_STAGES:
            process = start(file, out, cache)
            wait_for_stage(process, out, number)
            time.sleep(chance.uniform(0, 0.3))  # somewhere in it
            kill(process)
        for number in AFTER_REQUESTS:
            process, first = start(file, out, cache), len(endpoint.requests)
            answered = wait_for_requests(endpoint, number)
            kill(process)
            note_what_was_sent_again(first)
            received.update(answered)
        first = len(endpoint.requests)
        monkeypatch.setenv("AUTOINTERP_CACHE", str(cache))
        killed = ai.run(file, out=out)
        note_what_was_sent_again(first)
        assert not resent
        twice = sum(count - 1 for count in Counter(bodies(endpoint)).values())
        most = len(AFTER_REQUESTS) * CONCURRENCY
        assert twice <= most, "only what was on its way when the process was killed is asked again"

        monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "another cache"))
        undisturbed = ai.run(file, out=tmp_path / "undisturbed")
    absent = {"semantic", "causal", "control_explanations", "control_scores", "union_features", "union_contexts"}
    for table in set(TABLES) - absent:
        one, other = (pd.read_parquet(run.folder / f"{table}.parquet") for run in (killed, undisturbed))
        pd.testing.assert_frame_equal(one, other, obj=table)
