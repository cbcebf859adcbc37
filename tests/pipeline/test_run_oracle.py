"""A whole run, real subject and real stages, against an endpoint that knows each feature's rule."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from endpoint import serving
from planted import config, oracle, plant

import autointerp as ai
from autointerp.config import parse_config
from autointerp.stages import TABLES


@pytest.fixture(scope="module")
def planted(stories15m: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, str]]:
    folder = tmp_path_factory.mktemp("planted")
    return folder, plant(stories15m, folder)


@pytest.fixture(scope="module")
def finished(stories15m: Path, planted: tuple[Path, dict[int, str]], tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch, serving(oracle) as endpoint:
        patch.setenv("AUTOINTERP_CACHE", str(tmp_path_factory.mktemp("cache")))
        wanted = parse_config(config(stories15m, planted[0], endpoint.url, controls=["other_feature"]))
        out = tmp_path_factory.mktemp("run")
        run = ai.run(wanted, out=out)
        asked = endpoint.received
        ai.run(wanted, out=out)
        yield run, planted[1], asked, endpoint.received


def test_the_oracle_detects_every_feature_and_its_control_none(finished) -> None:
    run, words, *_ = finished
    features = run.features
    assert len(features) == len(words)
    assert (features["status"] == "ok").all()
    assert (features["detection"] == 1.0).all()
    assert features["detection_control"].mean() == pytest.approx(0.5, abs=0.1)
    assert (features["detection_low"] < 1.0).all(), "twenty right answers are no proof of perfection"


def test_a_control_says_who_lent_and_no_other_row_does(finished) -> None:
    run, words, *_ = finished
    lent = run.scores.filter(regex=r"^lent_by_\d$")
    assert list(lent.columns) == ["lent_by_1", "lent_by_2", "lent_by_3"]
    controls = run.scores["control"].notna()
    assert lent[~controls].isna().all(axis=None)
    for feature, others in zip(run.scores["feature"][controls], lent[controls].to_numpy()):
        assert len({feature, *others}) == 4
        assert {*others} <= {*words}
    assert run.features["detection_lent_by_3"].notna().all()


def test_the_oracle_simulates_every_feature(finished) -> None:
    run, *_ = finished
    assert run.features["simulation"].min() >= 0.95
    assert run.features["simulation_control"].mean() < 0.2


def test_explanations_are_the_model_s_own(finished) -> None:
    run, words, *_ = finished
    assert run.features.set_index("feature")["explanation"].to_dict() == {f: f"the word {w}" for f, w in words.items()}


def test_a_second_run_sends_nothing(finished) -> None:
    *_, before, after = finished
    assert before == after > 0


def test_a_feature_costs_few_calls_and_tokens(finished) -> None:
    run, words, *_ = finished
    usage = run.usage
    spent = usage[
        ~usage["cached"] & ~usage["stage"].str.contains("other_feature|simulation|calibrate")
    ]  # 8 calibrate, however many there are
    assert len(spent) / len(words) <= 2  # one to explain, one to judge 20 examples
    assert spent["prompt_tokens"].sum() / len(words) < 3000


def test_no_document_is_in_both_splits_and_no_train_context_is_judged(finished) -> None:
    run, *_ = finished
    contexts = run.contexts
    split = contexts.groupby("document")["split"].nunique()
    assert (split == 1).all()
    judged = run.judgements.merge(contexts[["feature", "example", "split"]], on=["feature", "example"])
    assert set(judged["split"]) == {"test"}


def test_every_table_can_be_read_without_this_package(finished) -> None:
    run, *_ = finished
    empty = {"cofiring", "semantic"}  # this SAE has no composite
    empty |= {"control_explanations", "control_scores"}  # no control runs again
    empty |= {"union_features", "union_contexts"}  # nor is there a union dictionary
    empty |= {"causal"}  # nor was it asked for
    for name in {*TABLES, "usage"} - empty:
        assert pq.read_table(run.folder / f"{name}.parquet").num_rows > 0, name


def test_silent_contexts_are_silent_and_firing_ones_hold_the_word(finished) -> None:
    run, words, *_ = finished
    for row in run.contexts.itertuples():
        assert (max(row.activations) > 0) == (row.kind == "activating")
        assert (words[row.feature] in "".join(row.tokens)) == (row.kind == "activating")


def test_a_slow_endpoint_is_kept_busy(stories15m: Path, planted, tmp_path: Path, monkeypatch) -> None:
    """No simulation is answered before 60 are in flight (or half a minute has shown that they never will be)."""
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache"))

    async def answer(messages: list[dict[str, str]], body: dict[str, Any]) -> str:
        if "The unit responds to:" in messages[-1]["content"]:
            for _ in range(3000):
                if endpoint.max_in_flight >= 60:
                    break
                await asyncio.sleep(0.01)
        return oracle(messages, body)

    with serving(answer) as endpoint:
        wanted = config(stories15m, planted[0], endpoint.url, scorers=["simulation"], controls=[])
        wanted["llm"]["concurrency"] = 64
        ai.run(parse_config(wanted), out=tmp_path / "run")
        assert 60 <= endpoint.max_in_flight <= 64


def test_a_run_folder_keeps_no_secret(stories15m: Path, planted, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SOME_KEY", "sk-very-secret")
    with serving(oracle) as endpoint:
        address = endpoint.url.replace("http://", "http://user:pass-word@")
        wanted = config(stories15m, planted[0], address, scorers=[], controls=[])
        wanted["llm"] |= {
            "api_key_env": "SOME_KEY",
            "env": {"HF_TOKEN": "hf_secret"},
            "server_args": ["--api-key", "k3y"],
        }
        ai.run(parse_config(wanted), out=tmp_path / "run")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert files
    for path in files:
        for secret in (b"sk-very-secret", b"pass-word", b"hf_secret", b"k3y"):
            assert secret not in path.read_bytes(), path


def test_tables_of_an_earlier_config_do_not_stay(stories15m: Path, planted, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache"))
    with serving(oracle) as endpoint:
        wanted = config(stories15m, planted[0], endpoint.url, explainers=["token_stats"], scorers=[], controls=[])
        ai.run(parse_config(wanted), out=tmp_path / "run")
        assert (tmp_path / "run" / "composites.parquet").exists()
        ai.run(parse_config(wanted | {"composites": {"enabled": False}}), out=tmp_path / "run")
        assert not (tmp_path / "run" / "composites.parquet").exists()
