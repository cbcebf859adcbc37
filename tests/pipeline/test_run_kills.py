"""A run that is killed ten times, by the clock and by its requests."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import yaml
from endpoint import bodies, serving
from planted import config, oracle

from autointerp.stages import TABLES

CONCURRENCY = 4


def start(file: Path, out: Path, cache: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "AUTOINTERP_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "autointerp", "run", str(file), "--out", str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_ten_kills_lose_nothing_that_was_answered(stories15m: Path, sae: Path, tmp_path: Path) -> None:
    """Four kills by the clock, in whatever stage that is, and six after some more requests.

    An answer counts as received once its request's turn has gone to later requests.
    """
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

        kills = 0
        while kills < 10:
            process = start(file, out, cache)
            first, answered = len(endpoint.requests), []
            try:
                if kills < 4:
                    process.wait(timeout=chance.uniform(0.5, 9))
                else:
                    at = endpoint.received
                    endpoint.until(lambda at=at: endpoint.received >= at + chance.randrange(5, 30), timeout=120)
                    answered = bodies(endpoint)
                    sent = endpoint.received
                    endpoint.until(lambda sent=sent: endpoint.received > sent + CONCURRENCY, timeout=120)
            except subprocess.TimeoutExpired:
                pass
            assert process.poll() is None, f"finished, or failed, before kill {kills}: {process.communicate()[1]!r}"
            kill(process)
            note_what_was_sent_again(first)
            received.update(answered)
            kills += 1
        first = len(endpoint.requests)
        process = start(file, out, cache)
        assert process.wait(timeout=300) == 0, process.communicate()[1].decode()
        note_what_was_sent_again(first)
        assert not resent
        twice = sum(count - 1 for count in Counter(bodies(endpoint)).values())
        assert twice <= 10 * CONCURRENCY, "only what was on its way when the process was killed is asked again"

        undisturbed = tmp_path / "undisturbed"
        process = start(file, undisturbed, tmp_path / "another cache")
        assert process.wait(timeout=300) == 0, process.communicate()[1].decode()
    absent = {"semantic", "causal", "control_explanations", "control_scores", "union_features", "union_contexts"}
    for table in set(TABLES) - absent:
        one, other = (pd.read_parquet(folder / f"{table}.parquet") for folder in (out, undisturbed))
        pd.testing.assert_frame_equal(one, other, obj=table)
