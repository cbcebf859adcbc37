"""Controls that run the pipeline again: which stages they make anew, and what their config must say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autointerp.config import Config, parse_config
from autointerp.errors import ConfigError
from autointerp.stages import stage_of, uses

TRAIN = {"d_sae": 64, "k": 4, "tokens": 8000}
SHIPPED = Path(__file__).parents[2] / "pipelines" / "saes" / "stories15m-l1"
NEEDED = ["sae", "harvest", "select", "directions", "contexts", "explain/token_stats", "score/lexical/token_stats"]


def config(sae: dict[str, Any], *controls: Any, **more: Any) -> Config:
    raw = {"name": "n", "subject": {"model": "stories15m"}, "corpus": {"source": str(SHIPPED / "cfg.json")}, "sae": sae}
    raw |= {"explainers": ["token_stats"], "scorers": ["lexical"], "controls": list(controls)}
    return parse_config(raw | more)


def trained(*controls: Any, **more: Any) -> Config:
    return config(
        {"train": TRAIN}, *controls, subject={"model": "stories15m", "hook": "blocks.1.hook_resid_post"}, **more
    )


def branch(label: str, of: Config) -> dict[str, Any]:
    return {name.removeprefix(f"{label}:"): use for name, use in uses(of).items() if name.startswith(f"{label}:")}


def test_a_redrawn_subject_makes_all_anew_but_the_text() -> None:
    made = branch("redrawn_subject", trained("redrawn_subject"))
    assert list(made) == ["activations", "outliers", *NEEDED]
    assert made["activations"].needs == ("corpus",)
    assert made["harvest"].needs == (
        "corpus", "redrawn_subject:sae", "redrawn_subject:activations", "redrawn_subject:outliers"
    )  # fmt: skip


def test_a_random_sae_reads_the_same_activations() -> None:
    made = branch("random_sae", trained("random_sae"))
    assert list(made) == NEEDED
    assert made["sae"].needs == ("corpus", "sae", "outliers")
    assert made["harvest"].needs == ("corpus", "random_sae:sae", "activations", "outliers")


def test_the_run_s_own_uses_do_not_change_beside_a_control() -> None:
    alone, beside = uses(trained()), uses(trained("random_sae", "redrawn_subject"))
    assert {name: use.section for name, use in alone.items() if name != "tables"} == {
        name: use.section for name, use in beside.items() if ":" not in name and name != "tables"
    }


def test_two_seeds_of_one_control_stand_beside_each_other() -> None:
    of = trained("redrawn_subject", {"name": "redrawn_subject", "label": "blocks", "embeddings": False})
    first, second = branch("redrawn_subject", of), branch("blocks", of)
    assert first["activations"].section["weights"] == "redrawn:0"
    assert second["activations"].section["weights"] == "redrawn_blocks:0"


def test_a_loaded_sae_is_trained_as_its_own_training_says() -> None:
    made = branch("redrawn_subject", config({"load": str(SHIPPED)}, "redrawn_subject"))
    wanted = made["sae"].section["train"]
    own = json.loads((SHIPPED / "train.json").read_text())["config"]
    assert {name: wanted[name] for name in ("architecture", "d_sae", "k", "tokens")} == {
        name: own[name] for name in ("architecture", "d_sae", "k", "tokens")
    }
    assert made["sae"].under.subject.hook == "blocks.1.hook_resid_post"


def test_options_go_before_the_training_that_is_known() -> None:
    control = {"name": "redrawn_subject", "train": {"tokens": 5000}}
    made = branch("redrawn_subject", config({"load": str(SHIPPED)}, control))
    assert made["sae"].section["train"]["tokens"] == 5000
    assert made["sae"].section["train"]["d_sae"] == 4096


def test_an_sae_that_does_not_say_how_it_was_trained_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text(json.dumps({"d_in": 288, "d_sae": 64, "hook_name": "blocks.1.hook_resid_post"}))
    with pytest.raises(ConfigError, match=r"add to the control train: \{") as error:
        uses(config({"load": str(tmp_path)}, "redrawn_subject"))
    assert "\n" not in str(error.value)
    made = branch("redrawn_subject", config({"load": str(tmp_path)}, {"name": "redrawn_subject", "train": TRAIN}))
    assert made["sae"].section["train"]["tokens"] == 8000


def test_a_wrong_key_of_the_training_is_told() -> None:
    control = {"name": "redrawn_subject", "train": {"token": 5000}}
    with pytest.raises(ConfigError, match="did you mean 'tokens'"):
        uses(config({"load": str(SHIPPED)}, control))


def test_named_features_become_as_many_at_random() -> None:
    made = branch("random_sae", trained("random_sae", features={"ids": [3, 5, 7]}))
    drawn = made["select"].under.features
    assert (drawn.ids, drawn.select, drawn.count) == (None, "random", 3)


@pytest.mark.parametrize("label", ["a:b", "union", "run"])
def test_a_label_that_cannot_be_a_branch_is_told(label: str) -> None:
    with pytest.raises(ConfigError, match="label without ':'"):
        uses(trained({"name": "random_sae", "label": label}))


def test_every_use_of_a_branch_has_its_stage() -> None:
    assert {stage_of(name).kind for name in uses(trained("random_sae"))} >= {"sae", "harvest", "score", "tables"}
