"""Plans against runs: requests within 5 %, prompt tokens within 10 %, and nothing sent or written on the way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import LATENTS, typical
from endpoint import Endpoint, serving
from planted import config, oracle_of, plant_composites

import autointerp as ai
from autointerp.commands.plan import plan, seconds_per_use
from autointerp.commands.run import run_targets
from autointerp.config import Config, parse_config
from autointerp.engine import executor, keys
from autointerp.engine.speeds import Speeds
from autointerp.errors import OutOfBudget
from autointerp.stages import STAGES
from autointerp.stages.select import ready

SCORERS: list[Any] = [
    {"name": "detection", "label": "listed", "mode": "list"},
    {"name": "detection", "label": "single", "mode": "each"},
    {"name": "simulation", "sequences": 6, "mode": "json"},
]


def wanted(model: Path, sae: Path, url: str, **more: Any) -> Config:
    raw = config(model, sae, url, scorers=SCORERS, **more)
    raw["llm"]["logprobs"] = True
    return parse_config(raw)


@cache
def tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def tokens_of(body: dict[str, Any], model: Path) -> int:
    """As an endpoint counts them: those of each message and four around it, by a real vocabulary."""
    encode: Callable[..., list[int]] = tokenizer(model).encode
    return 3 + sum(4 + len(encode(m["content"], add_special_tokens=False)) for m in body["messages"])


def matches(planned: Any, served: Endpoint, model: Path) -> None:
    sent = len(served.requests)
    tokens = sum(tokens_of(body, model) for body in served.requests)
    assert planned.llm_calls == pytest.approx(sent, rel=0.05)
    assert planned.prompt_tokens == pytest.approx(tokens, rel=0.10)


def test_a_plan_says_what_is_sent_and_the_next_one_has_measured_it(
    stories15m: Path, planted: Path, endpoint: Endpoint, cache: Path, tmp_path: Path
) -> None:
    whole = wanted(stories15m, planted, endpoint.url, controls=["other_feature"])
    fresh = plan(whole, tmp_path / "run")
    assert (fresh.certainty, fresh.measured) == ("at most", False)
    run_targets(whole, ["contexts"], out=tmp_path / "run")
    sampled = plan(whole, tmp_path / "run")
    assert sampled.certainty == "known"
    assert not endpoint.received, "nothing is sent before the run"
    run = ai.run(whole, out=tmp_path / "run")
    matches(sampled, endpoint, stories15m)
    matches(fresh, endpoint, stories15m)
    assert plan(whole, tmp_path / "run").llm_calls == 0

    again = plan(whole.model_copy(update={"seed": 1}), tmp_path / "other")
    assert not [stage.name for stage in again.stages if not stage.measured]
    assert again.llm_calls == pytest.approx(len(endpoint.requests), rel=0.05)
    counted = run.usage["prompt_tokens"].sum()  # by the endpoint, in whose measure the next plan is
    assert again.prompt_tokens == pytest.approx(counted, rel=0.10)
    seconds = seconds_per_use(again)
    assert seconds.keys() == seconds_per_use(fresh).keys()
    assert all(number > 0 for number in seconds.values())


def test_a_plan_of_features_drawn_at_random_says_what_is_sent(
    stories15m: Path, planted: Path, endpoint: Endpoint, harvested: Path, tmp_path: Path
) -> None:
    features = {"select": "random", "count": 7, "min_firings": 30}
    whole = wanted(stories15m, planted, endpoint.url, features=features)
    planned = plan(whole, tmp_path / "run")
    ai.run(whole, out=tmp_path / "run")
    matches(planned, endpoint, stories15m)


def test_a_plan_says_what_is_sent_about_composites(
    stories15m: Path, cache: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    _, parts = plant_composites(stories15m, tmp_path / "planted")
    with serving(typical(oracle_of(parts))) as endpoint:
        whole = wanted(
            tmp_path / "planted" / "model",
            tmp_path / "planted" / "sae",
            endpoint.url,
            features={"select": "composites", "min_firings": 20, "constituents": True},
            explainers=["default", "conjunction", "constituents"],
            composites={"semantic": True},
        )
        run_targets(whole, ["contexts"], out=tmp_path / "run")
        planned = plan(whole, tmp_path / "run")
        ai.run(whole, out=tmp_path / "run")
        assert any(stage.name == "semantic" and stage.calls for stage in planned.stages)
        matches(planned, endpoint, stories15m)


def test_features_are_counted_from_the_harvest_before_they_are_selected(
    stories15m: Path, planted: Path, endpoint: Endpoint, harvested: Path, tmp_path: Path
) -> None:
    features = {"select": "all", "min_firings": 200}
    whole = wanted(stories15m, planted, endpoint.url, features=features)
    before = sorted(harvested.rglob("*"))
    planned = plan(whole, tmp_path / "run")
    assert sorted(harvested.rglob("*")) == before, "nothing is written"
    folder = run_targets(whole, ["select"], out=tmp_path / "run")["select"]
    explained = next(stage for stage in planned.stages if stage.name == "explain/default")
    assert explained.certainty == "known"
    assert explained.calls == len(ready(folder)) < LATENTS


@pytest.mark.usefixtures("harvested")
def test_what_a_begun_stage_has_done_is_not_planned_again(
    stories15m: Path, planted: Path, endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "PART", 2)
    raw = config(stories15m, planted, endpoint.url, scorers=[], controls=[])
    raw["llm"] |= {"max_requests": 7, "concurrency": 1}
    with pytest.raises(OutOfBudget):
        ai.run(parse_config(raw), out=tmp_path / "run")
    begun = next(stage for stage in plan(parse_config(raw), tmp_path / "run").stages if stage.name == "explain/default")
    assert begun.why == "begun; goes on where it was"
    assert begun.calls is not None
    assert LATENTS - 7 <= begun.calls < LATENTS


def test_money_is_that_of_the_config_s_prices_and_not_known_without(
    stories15m: Path, planted: Path, cache: Path, tmp_path: Path
) -> None:
    raw = config(stories15m, planted, "http://127.0.0.1:9/v1", scorers=[], controls=[])
    assert plan(parse_config(raw), tmp_path).money is None
    raw["llm"] |= {"price_in": 2.0, "price_out": 10.0}
    priced = plan(parse_config(raw), tmp_path)
    assert priced.money == pytest.approx((2 * priced.prompt_tokens + 10 * priced.completion_tokens) / 1e6, rel=1e-3)


def test_a_plan_against_an_endpoint_imports_no_torch(
    stories15m: Path, planted: Path, cache: Path, tmp_path: Path
) -> None:
    file = tmp_path / "planted.yaml"
    file.write_text(yaml.safe_dump(config(stories15m, planted, "http://127.0.0.1:9/v1")))
    code = (
        "import sys; from autointerp.cli import app\n"
        "app(['plan', sys.argv[1]], standalone_mode=False)\n"
        "print('heavy:', sorted({'torch', 'transformers', 'openai', 'datasets'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, timeout=60)
    assert "heavy: []" in done.stdout, done.stderr
    assert "at most" in done.stdout


def test_estimates_are_no_part_of_any_key() -> None:
    for stage in STAGES:
        reached = keys.reached(stage.work)
        assert not {"autointerp.engine.estimate", "autointerp.engine.speeds"} & set(reached), stage.kind
        assert not [module for module in reached if module.startswith("autointerp.commands")], stage.kind


@pytest.mark.usefixtures("cache")
def test_a_cluster_divides_what_has_shards_and_no_endpoint(
    stories15m: Path, planted: Path, endpoint: Endpoint, tmp_path: Path
) -> None:
    small = wanted(stories15m, planted, endpoint.url, executor={"kind": "ray", "shard_tokens": 10_000})
    here, there = plan(small, tmp_path / "run"), plan(small, tmp_path / "run", machines=(4, 0))
    ratio = {a.name: (a.seconds / b.seconds, b.workers) for a, b in zip(here.stages, there.stages) if b.seconds}
    assert ratio["harvest"] == (pytest.approx(4), 4)
    divided = {"harvest", "contexts"}
    assert all(at == (pytest.approx(1), 1) for name, at in ratio.items() if name not in divided)
    assert here.bytes == there.bytes > 0


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": "b", "c": [1, "x", -2, null, 1e999]}', "\x00\xff"])
def test_a_damaged_file_of_speeds_counts_as_empty(tmp_path: Path, text: str) -> None:
    file = tmp_path / "speeds.json"
    file.write_text(text)
    kept = Speeds.read(file)
    assert kept.of("a") is None
    assert kept.of("c") in (None, 1)


def test_a_speed_is_the_median_of_the_last_values(tmp_path: Path) -> None:
    kept = Speeds({})
    for number in (100, 1, 2, 3, 4, 5, 6, 7):
        kept = kept.with_values({"harvest": number})
    kept.write(tmp_path / "speeds.json")
    assert Speeds.read(tmp_path / "speeds.json").of("harvest") == 4
