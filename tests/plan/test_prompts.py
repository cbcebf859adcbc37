"""`prompts` shows what is sent, word for word."""

from __future__ import annotations

from pathlib import Path

import pytest
from endpoint import Endpoint
from planted import config

import autointerp as ai
from autointerp.commands.prompts import prompts
from autointerp.commands.run import run_targets
from autointerp.config import parse_config
from autointerp.errors import AutointerpError

FEATURE = 5


def test_the_prompts_shown_are_those_sent(
    stories15m: Path, planted: Path, endpoint: Endpoint, harvested: Path, tmp_path: Path
) -> None:
    raw = config(stories15m, planted, endpoint.url, explainers=["token_stats"], controls=[])
    raw["features"]["ids"] = [FEATURE]
    wanted = parse_config(raw)
    with pytest.raises(AutointerpError, match="'select' has not run"):
        list(prompts(wanted, out=tmp_path / "run"))
    run_targets(wanted, ["contexts"], out=tmp_path / "run")
    shown = list(prompts(wanted, out=tmp_path / "run"))
    ai.run(wanted, out=tmp_path / "run")
    sent = [[message["content"] for message in body["messages"]] for body in endpoint.requests]
    assert sorted([message.content for message in view.messages] for view in shown) == sorted(sent)
    assert {view.stage for view in shown} == {"score/detection/token_stats", "score/simulation/token_stats"}
    assert shown[0].title == "complete 1 of 1"
    assert all(view.tokens > 0 for view in shown)


def test_an_explanation_that_is_not_written_is_shown_as_such(
    stories15m: Path, planted: Path, endpoint: Endpoint, harvested: Path, tmp_path: Path
) -> None:
    wanted = parse_config(config(stories15m, planted, endpoint.url))
    run_targets(wanted, ["contexts"], out=tmp_path / "run")
    shown = list(prompts(wanted, FEATURE, out=tmp_path / "run"))
    judged = next(view for view in shown if view.stage == "score/detection/default")
    assert judged.feature == FEATURE
    assert "(the explanation, once it is written)" in judged.messages[-1].content
    assert not endpoint.received
    with pytest.raises(AutointerpError, match="feature 999 is not in this run"):
        list(prompts(wanted, 999, out=tmp_path / "run"))
