"""The tutorial and the how-tos as a reader follows them: every block in order, in one folder, on a real small model.

The language model's address is that of an endpoint of the test; the subject, the training and all else are real.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from endpoint import serving
from planted import oracle
from typer.testing import CliRunner

from autointerp.cli import app

DOCS = Path(__file__).parents[1] / "docs"
HOWTOS = sorted(page for page in (DOCS / "howto").glob("*.md") if page.name != "index.md")
ADDRESS, MODEL = "http://127.0.0.1:11434/v1", "qwen2.5:7b"
BLOCK = re.compile(r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```', re.M | re.S)


def answer(messages: list[dict[str, str]], body: dict[str, Any]) -> str:
    """The oracle of planted words; of what is no word it says something all the same."""
    try:
        return oracle(messages, body)
    except ValueError:  # nothing but signs is marked
        return "EXPLANATION: signs"


@pytest.fixture(scope="module")
def address(own_cache: Path) -> Iterator[str]:
    """Of the endpoint."""
    with pytest.MonkeyPatch.context() as patch, serving(answer, models=(MODEL,)) as endpoint:
        for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(own_cache)}.items():
            patch.setenv(name, value)
        yield endpoint.url


def follow(page: Path, folder: Path, address: str) -> int:
    """Do what a page says, in `folder`, which becomes the current one. Returns how many blocks were run."""
    names: dict[str, Any] = {}
    done = 0
    for block in BLOCK.finditer(page.read_text()):
        text = block["text"].replace(ADDRESS, address)
        if block["title"]:
            (folder / block["title"]).write_text(text)
        elif block["language"] == "sh":
            for line in text.splitlines():
                run(line)
        elif block["language"] == "python":
            exec(compile(text, f"{page.name}: {text[:30]!r}", "exec"), names)
        else:
            continue
        done += 1
    return done


def run(line: str) -> None:
    name, *words = shlex.split(line, comments=True)
    assert name == "autointerp"
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 0, f"{line}\n{ended.output}\n{ended.exception!r}"


@pytest.fixture(scope="module")
def walked(address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of somebody who has followed the tutorial."""
    folder = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        assert follow(DOCS / "tutorial.md", folder, address) > 8
    return folder


def test_the_tutorial_leaves_a_run_with_both_explainers(walked: Path) -> None:
    import autointerp as ai

    run = ai.open_run(walked / "results/mine")
    assert set(run.explanations["explainer"]) == {"default", "contrast"}
    assert len(run.features) == 12
    assert run.scores.loc[run.scores["scorer"] == "detection", "value"].notna().any()


@pytest.mark.parametrize("page", HOWTOS, ids=lambda page: page.stem)
def test_a_howto_works_after_the_tutorial(
    page: Path, walked: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(walked, folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    assert follow(page, folder, address)
