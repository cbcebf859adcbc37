"""Configs: every key known, every error one line that names what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from autointerp.commands.sweep import read_sweep
from autointerp.config import Config, load_config, parse_config, read_config
from autointerp.errors import ConfigError
from autointerp.resources import folder

LEAST = {"name": "x", "subject": {"model": "m"}, "corpus": {"source": "s"}, "sae": {"load": "p"}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"explainer": []}, "unknown key 'explainer' – did you mean 'explainers'?"),
        ({"llm": {"modle": "m"}}, "unknown key 'llm.modle' – did you mean 'model'?"),
        ({"scorers": [{"name": "a", "llm": {"model": "m", "concurency": 3}}]}, "did you mean 'concurrency'?"),
        ({"subject": {}}, "missing key 'subject.model'"),
        ({"sae": {}}, "exactly one of sae.load, sae.train and sae.neurons"),
        ({"sae": {"load": "p", "neurons": True}}, "exactly one of"),
        ({"sae": {"load": "p", "train": {}}}, "exactly one of sae.load, sae.train and sae.neurons"),
        ({"scorers": ["detection", "detection"]}, "detection is named twice"),
        ({"name": "../up"}, "name"),
        ({"contexts": {"test_share": 1.0}}, "contexts.test_share"),
        ({"executor": {"kind": "slurm"}}, "executor.kind"),
    ],
)
def test_a_wrong_config_is_one_line_that_names_the_key(change: dict, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({**LEAST, **change})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_override_reaches_any_key_and_makes_sections(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({**LEAST, "scorers": [{"name": "detection"}]}))
    config = load_config(file, {"features.count": 7, "llm.model": "m", "scorers.0.batch": 3, "seed": 5})
    assert (config.features.count, config.seed, config.scorers[0].options) == (7, 5, {"batch": 3})
    assert config.llm is not None
    assert config.llm.model == "m"


@pytest.mark.parametrize("key", ["scorers.1.batch", "scorers.first", "name.x", "seed.x.y"])
def test_an_override_into_nothing_is_an_error(tmp_path: Path, key: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({**LEAST, "seed": 3, "scorers": [{"name": "detection"}]}))
    with pytest.raises(ConfigError, match="--set"):
        load_config(file, {key: 1})


def test_every_shipped_pipeline_is_valid_and_found_by_its_name() -> None:
    names = [path.stem for path in folder("pipelines").glob("*.yaml")]
    assert {"demo", "train-demo"} <= set(names)
    sweeps = [name for name in names if "variants" in read_config(name)[0]]
    assert sweeps
    for name in sweeps:
        assert {config.name for config in read_sweep(name, None)[1].values()} == {name}
        with pytest.raises(ConfigError, match=f"autointerp sweep {name}"):
            load_config(name)
    for name in set(names) - set(sweeps):
        assert load_config(name).name == name


def test_paths_of_a_shipped_pipeline_do_not_hang_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(load_config("demo").sae.load or "").is_dir()


def test_a_key_that_is_there_twice_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: &a {b: [*a]}\nc:\n- {d: 1}\n- {d: 1, e: 2, d: 3}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml, line 4: 'd' is there twice"):
        read_config(file)
    file.write_text("a: &a {b: 1}\nc: {<<: *a, b: 2}\n")
    assert read_config(file)[0]["c"] == {"b": 2}


def test_a_file_that_is_no_mapping_or_no_yaml_is_named(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for text in ("- a\n- b", "a: [", ""):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"c\.yaml"):
            load_config(file)


def test_an_unknown_name_lists_what_is_shipped() -> None:
    with pytest.raises(ConfigError, match=r"dmo.*did you mean 'demo'"):
        load_config("dmo")


@given(st.integers(1, 10**6), st.integers(2, 4096), st.sampled_from(["float32", "bfloat16"]))
def test_a_resolved_config_reads_back_as_itself(count: int, window: int, dtype: str) -> None:
    changes = {"features": {"count": count}, "contexts": {"window": window}, "subject": {"model": "m", "dtype": dtype}}
    config = parse_config({**LEAST, **changes})
    assert Config.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config
