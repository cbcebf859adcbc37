"""A run on a bad day: an endpoint that fails in every way it can."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from endpoint import bodies, serving
from planted import config, oracle

import autointerp as ai
from autointerp.config import parse_config
from autointerp.errors import AutointerpError, EndpointDown

TWELVE = {"ids": list(range(12)), "min_firings": 30}


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_bad_endpoint_costs_rows_with_reasons_and_no_wrong_score(
    stories15m: Path, sae: Path, fresh_cache: Path, tmp_path: Path
) -> None:
    with serving(oracle, limit=0.3, retry_after=0.05, error=0.05, drop=0.05, malformed=0.1) as endpoint:
        wanted = config(stories15m, sae, endpoint.url, features=TWELVE)
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
        wanted = parse_config(config(stories15m, sae, endpoint.url, features=TWELVE))
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
        wanted = config(stories15m, sae, endpoint.url, features=TWELVE)
        wanted["llm"]["max_requests"] = 30
        with pytest.raises(AutointerpError, match="max_requests"):
            ai.run(parse_config(wanted), out=tmp_path / "run")
        assert len(endpoint.requests) == 30
        del wanted["llm"]["max_requests"]
        ai.run(parse_config(wanted), out=tmp_path / "run")
        assert max(Counter(bodies(endpoint)).values()) == 1
