"""`doctor`: what can be known wrong is told before a run, all of it at once, and nothing else is sent than a probe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from endpoint import Endpoint, serving
from planted import config, oracle
from typer.testing import CliRunner, Result

import autointerp as ai
from autointerp.cli import app
from autointerp.commands import checks
from autointerp.commands.doctor import doctor
from autointerp.commands.plan import plan
from autointerp.config import Config, parse_config
from autointerp.errors import AutointerpError, ConfigError, Problems

Wanted = Callable[..., Config]


@pytest.fixture
def wanted(stories15m: Path, planted: Path, endpoint: Endpoint, cache: Path) -> Wanted:
    """The planted config with sections changed, against an endpoint that answers."""

    def make(**changes: Any) -> Config:
        raw = config(stories15m, planted, endpoint.url)
        for name, change in changes.items():
            raw[name] = raw.get(name, {}) | change if isinstance(change, dict) else change
        return parse_config(raw)

    return make


def wrong(config: Config, **how: Any) -> list[str]:
    return [check.text for check in doctor(config, **how) if check.wrong]


def test_a_config_that_can_run_has_nothing_wrong_and_costs_a_probe(wanted: Wanted, endpoint: Endpoint) -> None:
    seen = doctor(wanted())
    assert not [check for check in seen if check.wrong]
    names = {check.name for check in seen}
    assert {"subject", "hook", "width", "corpus", "sae", "model test-model", "endpoint of test-model", "disk"} <= names
    assert not endpoint.requests
    assert endpoint.received == endpoint.probes > 0


def test_all_that_is_wrong_is_told_at_once(wanted: Wanted, cache: Path, tmp_path: Path) -> None:
    bad = wanted(
        subject={"hook": "blocks.77.hook_resid_post"},
        corpus={"text_column": "body", "context": 9999},
        explainers=["defualt"],
        scorers=[{"name": "detection", "bach": 3}],
        features={"ids": [0, 99]},
        llm={"base_url": "https://api.example.com/v1", "api_key_env": "NO_SUCH_KEY"},
    )
    with pytest.raises(Problems) as told:
        ai.run(bad, out=tmp_path / "run")
    lines = "\n".join(told.value.lines)
    for part in (
        "the layers 0 to 5",
        "no column 'body'",
        "reads 256 tokens at most",
        "did you mean 'default'?",
        "did you mean 'batch'?",
        "latents 0 to 23, not 99",
        "NO_SUCH_KEY",
    ):
        assert part in lines
    assert told.value.exit_code == 2
    assert not list((cache / "store").rglob("manifest.json")), "no stage has run"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"subject": {"device": "cuda:7"}}, "set subject.device to auto or cpu"),
        ({"subject": {"hook": "blocks.1.mlp.hook_pre"}}, "the SAE reads vectors of 288 numbers"),
        ({"llm": {"base_url": None, "model": "gpt-4o-mini"}}, "a model behind an endpoint needs llm.base_url"),
        ({"corpus": {"source": "nowhere.jsonl"}}, "there is no 'nowhere.jsonl'"),
        ({"sae": {"load": "/no/such/sae"}}, "no SAE at /no/such/sae"),
        ({"features": {"min_firings": 10**9}}, "raise corpus.tokens"),
        ({"llm": None}, "needs a language model, as do scorer detection, scorer simulation"),
        ({"scorers": ["no.such.module:score"]}, "needs the module 'no'"),
    ],
)
def test_a_wrong_setting_is_one_line(wanted: Wanted, changes: dict[str, Any], text: str) -> None:
    (line,) = wrong(wanted(**changes))
    assert text in line


def test_a_missing_option_of_a_plug_in_is_told_before_any_stage(wanted: Wanted, tmp_path: Path, cache: Path) -> None:
    @ai.scorer("of the doctor's test")
    async def score(explanation: str, examples: Any, llm: Any, *, strictness: int) -> ai.Score:
        raise AssertionError("not asked")

    with pytest.raises(ConfigError, match="needs the option 'strictness'"):
        ai.run(wanted(scorers=["of the doctor's test"]), out=tmp_path / "run")
    assert not (cache / "store").exists()


def test_a_scorer_that_the_endpoint_cannot_serve_is_told_before_the_harvest(wanted: Wanted, tmp_path: Path) -> None:
    each = wanted(scorers=[{"name": "detection", "mode": "each"}])  # llm.logprobs is false
    with pytest.raises(ConfigError, match="token probabilities, which 'test-model' does not give"):
        ai.run(each, out=tmp_path / "run")


def test_an_endpoint_that_is_dead_is_told_by_run_and_not_asked_by_plan(wanted: Wanted, tmp_path: Path) -> None:
    dead = wanted(llm={"base_url": "http://127.0.0.1:9/v1"})
    assert not plan(dead, tmp_path / "run").problems
    with pytest.raises(AutointerpError, match="no answer at"):
        ai.run(dead, out=tmp_path / "run")


def test_plan_tells_what_is_wrong_and_sends_nothing(wanted: Wanted, endpoint: Endpoint, tmp_path: Path) -> None:
    planned = plan(wanted(corpus={"text_column": "body"}), tmp_path / "run")
    assert len(planned.problems) == 1
    assert "no column 'body'" in planned.problems[0]
    with pytest.raises(ConfigError, match="did you mean 'default'"):
        plan(wanted(explainers=["defualt"]), tmp_path / "run")
    assert not endpoint.received


def test_too_little_disk_space_is_told(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda place: SimpleNamespace(free=10**5))
    (line,) = wrong(wanted())
    assert "most of it by harvest" in line
    assert "make room" in line


def test_a_prompt_longer_than_the_model_reads_is_told(wanted: Wanted, stories15m: Path) -> None:
    local = wanted(llm={"base_url": None, "model": str(stories15m), "logprobs": None}, contexts={"window": 200})
    lines = wrong(local)
    assert lines
    assert all("lower contexts.window" in line for line in lines)


@pytest.mark.parametrize("label", ["a/b", "..", "a..b", ".hidden", "a\\b", "", "a\nb", "x" * 200])
def test_labels_that_cannot_be_folders_are_refused(wanted: Wanted, label: str) -> None:
    with pytest.raises(ConfigError, match=r"explainers\.0\.label"):
        wanted(explainers=[{"name": "default", "label": label}])


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_prints_a_table_and_its_exit_code_says_how_it_went(
    wanted: Wanted, stories15m: Path, planted: Path, endpoint: Endpoint, tmp_path: Path
) -> None:
    file = tmp_path / "planted.yaml"
    file.write_text(yaml.safe_dump(config(stories15m, planted, endpoint.url)))
    well = call("doctor", file)
    assert well.exit_code == 0, well.output
    assert well.stdout.splitlines()[0].split() == ["check", "state", "what", "was", "seen,", "or", "what", "to", "do"]
    ill = call("doctor", file, "--set", "corpus.text_column=body")
    assert ill.exit_code == 2, ill.output
    assert "corpus" in next(line for line in ill.stdout.splitlines() if "wrong" in line)
    with serving(oracle, key="right") as locked:
        refused = call("doctor", file, "--set", f"llm.base_url={locked.url}")
    assert refused.exit_code == 1


def test_modules_beside_the_config_and_in_the_working_folder_are_plug_ins(
    wanted: Wanted, stories15m: Path, planted: Path, endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "import autointerp as ai\nasync def explain(feature, llm):\n    return ai.Explanation('a word')\n"
    beside, working = tmp_path / "configs", tmp_path / "working"
    for folder, name in ((beside, "plug_in_beside"), (working, "plug_in_working")):
        folder.mkdir()
        (folder / f"{name}.py").write_text(body)
    file = beside / "planted.yaml"
    explainers = ["plug_in_beside:explain", "plug_in_working:explain"]
    file.write_text(yaml.safe_dump(config(stories15m, planted, endpoint.url, explainers=explainers)))
    monkeypatch.chdir(working)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(working))])
    done = call("doctor", file)
    assert done.exit_code == 0, done.output
    assert "explainer plug_in_beside:explain" in done.stdout
