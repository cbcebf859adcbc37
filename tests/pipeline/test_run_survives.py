"""A run on a bad day: killed at any moment, and an endpoint that fails in every way it can."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from endpoint import Endpoint, serving
from planted import config, oracle, plant

import autointerp as ai
from autointerp.config import parse_config
from autointerp.errors import AutointerpError, EndpointDown
from autointerp.stages import TABLES

CONCURRENCY = 4


@pytest.fixture(scope="module")
def sae(stories15m: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    plant(stories15m, folder)
    return folder


def start(file: Path, out: Path, cache: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "AUTOINTERP_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "autointerp", "run", str(file), "--out", str(out)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def bodies(endpoint: Endpoint) -> list[str]:
    return [hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest() for body in list(endpoint.requests)]


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
    for table in set(TABLES) - {"semantic", "control_explanations", "control_scores"}:
        one, other = (pd.read_parquet(folder / f"{table}.parquet") for folder in (out, undisturbed))
        pd.testing.assert_frame_equal(one, other, obj=table)


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_bad_endpoint_costs_rows_with_reasons_and_no_wrong_score(
    stories15m: Path, sae: Path, fresh_cache: Path, tmp_path: Path
) -> None:
    with serving(oracle, limit=0.3, retry_after=0.05, error=0.05, drop=0.05, malformed=0.1) as endpoint:
        wanted = config(stories15m, sae, endpoint.url, features={"ids": list(range(12)), "min_firings": 30})
        wanted["scorers"] = ["detection", {"name": "simulation", "sequences": 6}]
        run = ai.run(parse_config(wanted), out=tmp_path / "run")
        assert min(endpoint.outcomes[fault] for fault in ("limit", "error", "drop")) > 3
    features, scores, judgements = run.features, run.scores, run.judgements
    assert len(features) == 12
    unscored = features[features["detection"].isna() | features["simulation"].isna()]
    assert unscored["failure"].notna().all(), "every feature is scored or carries its reason"

    names = ["feature", "explainer", "scorer"]
    judgements["control"] = judgements["control"].fillna("")
    scores["control"] = scores["control"].fillna("")
    lost = judgements.groupby([*names, "control"])["status"].agg(lambda s: (s == "failed").sum())
    heard = judgements.groupby([*names, "control"])["status"].agg(lambda s: (s == "ok").sum())
    counted = scores.set_index([*names, "control"])
    pd.testing.assert_series_equal(counted["n_unscored"].sort_index(), lost.sort_index(), check_names=False)
    pd.testing.assert_series_equal(counted["n_scored"].sort_index(), heard.sort_index(), check_names=False)
    assert lost.sum() > 0, "the endpoint did lose some"
    failed = judgements[judgements["status"] == "failed"]
    assert failed["failure"].notna().all()
    assert failed["prediction"].isna().all()

    right = set(features[features["explanation"].fillna("").str.fullmatch(r"the word \w{3,}")]["feature"])
    real = judgements[(judgements["control"] == "") & (judgements["status"] == "ok")]
    real = real[real["feature"].isin(right)]
    detected = real[real["scorer"] == "detection"]
    assert len(detected) > 100
    assert (detected["prediction"] == detected["truth"]).all(), "nothing malformed became a judgement"


def test_a_server_that_dies_midway_ends_the_run_in_one_line_and_the_next_run_goes_on(
    stories15m: Path, sae: Path, fresh_cache: Path, tmp_path: Path
) -> None:
    dead = False

    def dies(messages: list[dict[str, str]], body: dict[str, Any]) -> str:
        nonlocal dead
        if len(endpoint.requests) == 40:
            dead = endpoint.dying = True
        return oracle(messages, body)

    with serving(dies) as endpoint:
        wanted = parse_config(config(stories15m, sae, endpoint.url))
        with pytest.raises(EndpointDown, match="run again"):
            ai.run(wanted, out=tmp_path / "run")
        assert dead
        assert not (tmp_path / "run" / "features.parquet").exists()
        with pytest.raises(AutointerpError, match="the run was stopped"):
            ai.open_run(tmp_path / "run")
        endpoint.dying = False
        endpoint.answer = oracle
        run = ai.run(wanted, out=tmp_path / "run")
        assert (run.features["detection"] == 1.0).all()
        assert max(Counter(bodies(endpoint)).values()) <= 2


def test_a_spending_limit_stops_cleanly_and_a_higher_one_goes_on(
    stories15m: Path, sae: Path, fresh_cache: Path, tmp_path: Path
) -> None:
    with serving(oracle) as endpoint:
        wanted = config(stories15m, sae, endpoint.url)
        wanted["llm"]["max_requests"] = 30
        with pytest.raises(AutointerpError, match="max_requests"):
            ai.run(parse_config(wanted), out=tmp_path / "run")
        assert len(endpoint.requests) == 30
        del wanted["llm"]["max_requests"]
        ai.run(parse_config(wanted), out=tmp_path / "run")
        assert max(Counter(bodies(endpoint)).values()) == 1
