"""What a session loads once, and for whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from autointerp.config import Config, parse_config
from autointerp.engine import models
from autointerp.engine.session import Session


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    made = [tmp_path / "trained", tmp_path / "step0"]
    for folder in made:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    return made


def config_of(model: Path) -> Config:
    raw = {"subject": {"model": str(model)}, "corpus": {"source": "stories-1m"}, "sae": {"load": "x"}}
    return parse_config({"name": "a", **raw})


def changed(config: Config, **subject: str) -> Config:
    return config.model_copy(update={"subject": config.subject.model_copy(update=subject)})


def test_a_branch_with_another_subject_is_not_given_the_run_s(folders: list[Path], tmp_path: Path) -> None:
    trained, step0 = folders
    config = config_of(trained)
    with Session(config, tmp_path / "usage.jsonl") as session:
        branch = session.under(changed(config, model=str(step0)))
        assert models.subject_folder(session) == trained
        assert models.subject_folder(branch) == step0


def test_branches_share_what_does_not_hang_on_the_subject_and_what_hangs_on_the_same(
    folders: list[Path], tmp_path: Path
) -> None:
    config = config_of(folders[0])
    with Session(config, tmp_path / "usage.jsonl") as session:
        made = session.once("subject, weights trained", object)
        client = session.once("llm a", object)
        other_hook = session.under(changed(config, hook="blocks.0.hook_resid_post"))
        other_model = session.under(changed(config, model=str(folders[1])))
        assert other_hook.once("subject, weights trained", object) is made
        assert other_model.once("subject, weights trained", object) is not made
        assert other_model.once("llm a", object) is client
