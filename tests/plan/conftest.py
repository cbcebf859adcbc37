"""A planted subject and SAE, and an endpoint that answers every question of the plan's tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoint import Endpoint, serving
from planted import config, oracle, plant

from autointerp.commands.run import run_targets
from autointerp.config import parse_config

LONGER = ", wherever it stands in a story about animals, children and what they do"


def typical(answer: Callable[..., Any]) -> Callable[..., Any]:
    """`answer` with explanations as long as they usually are, and probabilities where they are asked for."""

    def answers(messages: list[dict[str, str]], body: dict[str, Any]) -> Any:
        if body.get("logprobs"):
            return "Yes", {"Yes": 0.7, "No": 0.3}
        text = answer(messages, body)
        return text + LONGER if text.startswith("EXPLANATION") else text

    return answers


@pytest.fixture(scope="session")
def planted(stories15m: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    plant(stories15m, folder)
    return folder


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(typical(oracle)) as served:
        yield served


@pytest.fixture(scope="session")
def made(stories15m: Path, planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which the corpus and the harvest are done."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOINTERP_CACHE", str(folder))
        wanted = config(stories15m, planted, "http://127.0.0.1:9/v1")
        run_targets(parse_config(wanted), ["reencode"], out=tmp_path_factory.mktemp("run"))
    (folder / "speeds.json").unlink()
    return folder


@pytest.fixture
def harvested(cache: Path, made: Path) -> Path:
    shutil.copytree(made, cache)
    return cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own: nothing is done, nothing is known."""
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
