"""`run --retry-failed`, and how a run ends in which something failed altogether."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from click.testing import Result
from endpoint import Endpoint, serving
from planted import config, oracle
from typer.testing import CliRunner

from autointerp.cli import app

RAISES = """
import autointerp as ai

async def score(explanation, examples, llm):
    return broken(examples)

def broken(examples):
    raise ValueError("no such thing")
"""


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def wanted(stories15m: Path, sae: Path, warm: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Detection alone, without a control, of four features."""
    monkeypatch.setenv("AUTOINTERP_CACHE", str(warm))
    made = config(stories15m, sae, "", scorers=["detection"], controls=[])
    made["corpus"]["tokens"] = 40_000
    return made


def run(folder: Path, wanted: dict[str, Any], endpoint: Endpoint, *options: str) -> Result:
    wanted["llm"]["base_url"] = endpoint.url
    (folder / "run.yaml").write_text(yaml.safe_dump(wanted))
    return CliRunner().invoke(app, ["run", str(folder / "run.yaml"), "--out", str(folder / "out"), *options])


def scores(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "out" / "scores.parquet").set_index("feature")


def test_failed_rows_are_asked_for_again_whatever_their_reason_and_no_others(
    wanted: dict[str, Any], tmp_path: Path
) -> None:
    """Feature by feature: an answer that no reader understands, and a refusal. Neither is asked again without."""
    sulks = True

    def sulking(messages: list[dict[str, str]], body: dict[str, Any]) -> str:
        said = messages[-1]["content"]
        if sulks and "Property:" in said and hash_of(said) % 2:
            return "I would rather talk about the weather."
        return oracle(messages, body)

    def hash_of(said: str) -> int:
        rules.setdefault(said.split("Property:")[1].split("\n")[0], len(rules))
        return rules[said.split("Property:")[1].split("\n")[0]]

    rules: dict[str, int] = {}
    with serving(sulking) as endpoint:
        first = run(tmp_path, wanted, endpoint)
        assert first.exit_code == 0, first.output
        lost = scores(tmp_path)["value"].isna()
        assert 0 < lost.sum() < len(lost)
        sulks = False
        asked = len(endpoint.requests)
        assert run(tmp_path, wanted, endpoint).exit_code == 0
        assert len(endpoint.requests) == asked, "what is final is not asked again by itself"
        plan = run(tmp_path, wanted, endpoint, "--retry-failed", "--dry-run")
        assert "failed and are asked for again" in plan.stdout
        healed = run(tmp_path, wanted, endpoint, "--retry-failed")
        assert healed.exit_code == 0, healed.output
        assert (scores(tmp_path)["value"] == 1.0).all()
        assert len(endpoint.requests) == asked + lost.sum(), "one fresh answer for each failed row"
        run(tmp_path, wanted, endpoint, "--retry-failed")
        assert len(endpoint.requests) == asked + lost.sum()


def test_an_explainer_that_never_repeats_a_question_is_asked_afresh(wanted: dict[str, Any], tmp_path: Path) -> None:
    sulks: set[str] = set()  # the first question
    well = False

    def sulking(messages: list[dict[str, str]], body: dict[str, Any]) -> str:
        said = messages[-1]["content"]
        if "Property:" in said:
            return oracle(messages, body)
        sulks.update(() if sulks else (said,))
        return "no idea" if said in sulks and not well else oracle(messages, body)

    wanted["explainers"] = [{"name": "default", "reask": 0}]
    with serving(sulking) as endpoint:
        assert run(tmp_path, wanted, endpoint).exit_code == 0
        explained = pd.read_parquet(tmp_path / "out" / "explanations.parquet")
        assert (explained["status"] == "failed").sum() == 1
        well = True
        assert run(tmp_path, wanted, endpoint, "--retry-failed").exit_code == 0
        explained = pd.read_parquet(tmp_path / "out" / "explanations.parquet")
        assert (explained["status"] == "ok").all()


def test_a_scorer_that_always_raises_is_said_at_the_end_with_its_place(wanted: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "raising_scorer.py").write_text(RAISES)
    wanted["scorers"] = ["detection", {"name": "raising_scorer.score", "label": "mine"}]
    with serving(oracle) as endpoint:
        result = run(tmp_path, wanted, endpoint)
        assert result.exit_code == 1
        line = result.stderr.splitlines()[-1]
        assert line == (
            "scorer mine scored none of 4 explanations: "
            "ValueError: no such thing (raising_scorer.py, line 8, in broken)"
        )
        assert (scores(tmp_path).query("scorer == 'detection'")["value"] == 1.0).all()
        assert run(tmp_path, wanted, endpoint).exit_code == 1, "nothing to do, and still none is scored"


def test_a_run_in_which_nothing_is_explained_exits_with_1(wanted: dict[str, Any], tmp_path: Path) -> None:
    with serving(lambda messages, body: "I cannot say.") as endpoint:
        result = run(tmp_path, wanted, endpoint)
    assert result.exit_code == 1
    assert "explain" in result.stderr.splitlines()[-1]
