"""A sweep: the same tokens for every variant, figures side by side, and clear lines for what is wrong in its file."""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import yaml
from endpoint import serving

import autointerp as ai
from autointerp.cli import app
from autointerp.commands.plan_sweep import plan_sweep
from autointerp.commands.side_by_side import side_by_side
from autointerp.commands.sweep import read_sweep, sweep
from autointerp.errors import ConfigError
from autointerp.stages.sae import train_config

TEXT = Path(__file__).parent.parent / "data" / "stories.jsonl"
PLAN: dict[str, Any] = {
    "name": "tiny",
    "seed": 1,
    "subject": {"model": "stories15m", "hook": "blocks.1.hook_resid_post"},
    "corpus": {"source": str(TEXT), "tokens": 4000, "context": 64},
    "sae": {"train": {"d_sae": 256, "k": 8, "tokens": 8192, "batch_size": 512}},
    "evaluation": {"tokens": 400},
    "variants": {"k 8": {}, "k 2": {"sae.train.k": 2}, "wide": {"composites.union": "@k 8"}},
    "seeds": [0, 1],
    "metrics": ["explained_variance", "l0", "share_composite", "distinct_from_first", "distinct_null"],
    "positions": ["explained_variance"],
}


@pytest.fixture
def subject(stories15m: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache"))
    return PLAN["subject"] | {"model": str(stories15m)}


def write(folder: Path, **changes: Any) -> Path:
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump({**PLAN, **changes}, sort_keys=False))
    return file


@pytest.mark.weights
def test_a_sweep_lays_its_variants_side_by_side_and_does_nothing_twice(subject, tmp_path, monkeypatch):
    out, file = tmp_path / "out", write(tmp_path, subject=subject)
    found = sweep(file, out=out)
    made = json.loads((out / "sweep.json").read_text())
    table, places = made["figures"], made["positions"]["k 8"]["explained_variance"]
    assert list(table) == ["k 8", "k 2", "wide"]
    assert list(places) == ["1", "3", "7", "15", "31", "63"], (
        "bands of positions in 64 tokens, the first of which is BOS"
    )
    assert places["3"] > places["63"]
    assert table["k 8"]["l0"]["mean"] == 8
    assert table["k 2"]["l0"]["mean"] == 2
    assert table["k 8"]["explained_variance"]["mean"] > table["k 2"]["explained_variance"]["mean"]
    assert [cell["seed"] for cell in table["k 2"]["l0"]["seeds"]] == [0, 1]
    one, other = (cell["value"] for cell in table["k 8"]["explained_variance"]["seeds"])
    assert one != other
    assert (out / "sweep.png").stat().st_size > 5000
    assert (out / "k 2 1" / "sae" / "sae_weights.safetensors").exists()
    monkeypatch.setattr("autointerp.engine.dag.Dag._execute", lambda *_: pytest.fail("a stage ran again"))
    assert sweep(file, out=out).figures == found.figures


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"variants": {}}, "variants: there is none"),
        ({"variants": {"a": {"sae.train.kk": 3}}}, "unknown key 'sae.train.kk'"),
        ({"metrics": []}, "metrics: there is none"),
        ({"variants": {"../a": {}}}, "'../a' is no name of a folder"),
        ({"seeds": "many"}, "seeds"),
    ],
)
def test_what_is_wrong_in_a_sweeps_file_is_one_clear_line(tmp_path, changes, line):
    def read() -> None:
        _, variants = read_sweep(write(tmp_path, **changes), None)
        for config in variants.values():
            train_config(config)

    with pytest.raises(ConfigError, match=line):
        read()


def test_two_variants_of_one_name_are_one_clear_line(tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text("name: a\nvariants:\n  k: {}\n  k: {sae.train.k: 2}\nmetrics: [l0]\n")
    with pytest.raises(ConfigError, match=r"twice.yaml, line 4: 'k' is there twice"):
        read_sweep(file, None)


@pytest.mark.parametrize("jobs", [0, -1])
def test_no_variant_at_once_is_refused(tmp_path, jobs):
    with pytest.raises(ConfigError, match=f"jobs is {jobs}: give a number"):
        sweep(write(tmp_path), jobs=jobs)


@pytest.mark.weights
def test_a_plan_counts_what_variants_share_once_and_nothing_that_is_done(subject, tmp_path):
    variants = {name: PLAN["variants"][name] for name in ("k 8", "k 2", "wide")}
    file = write(tmp_path, subject=subject, variants=variants, seeds=[0])
    before = plan_sweep(file, out=tmp_path / "out")
    to_do = {name: [s.name for s in own.stages if s.state != "done"] for name, own in before.variants.items()}
    assert to_do["k 8, seed 0"][0] == "corpus"
    shared = set(to_do["k 8, seed 0"]) - set(to_do["k 2, seed 0"])
    assert shared == {"corpus", "outliers", "activations"}, "what no SAE has a part in"
    assert before.without_union == ["wide, seed 0"]
    assert before.whole.problems == []
    assert sum(each.seconds for each in before.variants.values()) == pytest.approx(before.whole.seconds)
    assert not (tmp_path / "out").exists(), "nothing is written"
    sweep(file, out=tmp_path / "out")
    after = plan_sweep(file, out=tmp_path / "out")
    assert all(stage.state == "done" for stage in after.whole.stages)


def test_the_command_plans_a_sweep_a_line_a_variant(tmp_path, capsys):
    file = write(tmp_path, subject=PLAN["subject"] | {"model": str(tmp_path / "none")}, seeds=[0])
    with pytest.raises(SystemExit):
        app(["plan", str(file)])
    printed = capsys.readouterr().out
    assert printed.startswith("variant ")
    assert "\nwide, seed 0" in printed
    assert "not counted: the check against a union yet to be trained (wide, seed 0)" in printed
    assert printed.count("wrong:") == 1, "what is wrong with all variants is said once"


@pytest.mark.weights
def test_a_metric_that_is_not_measured_is_named_after_the_first_variant(subject, tmp_path):
    with pytest.raises(ConfigError, match=r"explained_varience.*explained_variance"):
        sweep(write(tmp_path, subject=subject, metrics=["explained_varience"]), out=tmp_path / "out")
    assert not (tmp_path / "out" / "k 2 0").exists()


def agrees(messages: list[dict[str, str]], _: dict[str, Any]) -> str:
    """To all texts, whatever the explanation."""
    return json.dumps(dict.fromkeys(re.findall(r"^(\d+)\. ", messages[-1]["content"], re.M), 1))


@pytest.mark.weights
def test_a_scorers_metric_runs_each_variant_whole(subject, tmp_path):
    with serving(agrees) as endpoint:
        explained: dict[str, Any] = {
            "features": {"count": 4, "min_firings": 20},
            "contexts": {"window": 16, "train": 5, "test_activating": 2, "test_random": 1, "test_near": 1},
            "llm": {"model": "test-model", "base_url": endpoint.url, "logprobs": False},
            "explainers": ["token_stats"],
            "scorers": ["detection"],
            "variants": {"k 8": {}, "k 2": {"sae.train.k": 2}},
            "seeds": [0],
            "metrics": ["detection_gain", "detection", "l0"],
        }
        explained["corpus"] = PLAN["corpus"] | {"tokens": 20_000}
        found = sweep(write(tmp_path, subject=subject, **explained), out=tmp_path / "out")
    (score,), (gain,) = found.of("k 2", "detection"), found.of("k 2", "detection_gain")
    assert score.value == pytest.approx(0.5), "a judge who says the same of all has the base rate"
    assert (gain.value, gain.low, gain.high) == (0, None, None), "and of any other explanation too"
    assert len(ai.open_run(tmp_path / "out" / "k 2 0").features) == 4
    assert found.of("k 2", "detection_control") == [], "only what is asked for"


@pytest.mark.weights
def test_variants_side_by_side_leave_what_they_leave_one_after_the_other(subject, toy, tmp_path, monkeypatch):
    variants = {name: PLAN["variants"][name] for name in ("k 8", "k 2")}
    plan = {"subject": subject | {"model": str(toy)}, "variants": variants, "seeds": [0]}
    out, file = tmp_path / "out", write(tmp_path, **plan)

    def later_first(*given: Any) -> Generator[Any, None, None]:
        yield from sorted(side_by_side(*given), key=lambda outcome: outcome[0])  # "k 2" before "k 8"

    monkeypatch.setattr("autointerp.commands.sweep.side_by_side", later_first)
    together = sweep(file, out=out, jobs=2)
    assert not together.failures
    assert (out / "k 2 0" / "log.txt").stat().st_size > 0
    monkeypatch.setattr("autointerp.engine.dag.Dag._execute", lambda *_: pytest.fail("a stage ran again"))
    assert sweep(file, out=out).figures == together.figures
