"""One pass of the subject for several SAEs: fewer passes, and nothing else is different."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from planted import STORIES

import autointerp as ai
from autointerp.commands.run import run_targets
from autointerp.commands.sweep import sweep
from autointerp.config import Config, parse_config
from autointerp.engine.executor import Shard
from autointerp.engine.mirrored import open_store
from autointerp.engine.stage import Use
from autointerp.errors import AutointerpError
from autointerp.sae import SAE, SAEConfig, save_sae
from autointerp.stages import passes
from autointerp.subject.forward import Forward

WIDTH, ROWS, CONTEXT = 96, 16, 64
SAES = {  # the plain model does not have the last one's
    "topk": "blocks.1.hook_resid_post",
    "relu": "blocks.3.hook_mlp_out",
    "jumprelu": "blocks.1.hook_resid_post",
    "topk-of-bridge": "blocks.2.ln1.hook_normalized",
}


def random_sae(folder: Path, architecture: str, hook: str, d: int = 32) -> Path:
    generator = torch.Generator().manual_seed(len(architecture))
    decoder = torch.nn.functional.normalize(torch.randn(WIDTH, d, generator=generator))
    tensors = {
        "W_enc": decoder.T.contiguous(),
        "W_dec": decoder,
        "b_enc": torch.full((WIDTH,), -0.1),
        "b_dec": torch.zeros(d),
    }
    tensors |= {"threshold": torch.full((WIDTH,), 0.2)} if architecture == "jumprelu" else {}
    k = 4 if architecture == "topk" else None
    save_sae(
        SAE(SAEConfig(architecture, d, WIDTH, "autointerp", "float32", True, k=k, hook_name=hook), tensors), folder
    )
    return folder


@pytest.fixture(scope="module")
def saes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("saes")
    return {name: random_sae(folder / name, name.split("-")[0], hook) for name, hook in SAES.items()}


@pytest.fixture
def together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store without any artifact."""
    monkeypatch.setenv("AUTOINTERP_CACHE", str(tmp_path / "together"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def alone(toy: Path, saes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Key -> content of the harvests, each made by a run of its own."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOINTERP_CACHE", str(folder / "cache"))
        for sae in saes.values():
            run_targets(config_of(toy, sae), ["harvest"], out=folder / sae.name)
        return harvests()


def config_of(subject: Path, sae: Path, **more: Any) -> Config:
    return parse_config(
        {
            "name": sae.name,
            "subject": {"model": str(subject), "device": "cpu", "batch_tokens": ROWS * CONTEXT},
            "corpus": {"source": str(STORIES), "tokens": 3000, "context": CONTEXT},
            "sae": {"load": str(sae)},
            "executor": {"shard_tokens": 1200},
            **more,
        }
    )


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The hook points of each pass over a batch; those over single rows and over a probe's two are not counted."""
    read: list[set[str]] = []
    original = Forward.read

    def counted(self: Forward, tokens: torch.Tensor, hooks: Sequence[Any]) -> list[torch.Tensor]:
        if len(tokens) > 2:
            read.append({hook.name for hook in hooks})
        return original(self, tokens, hooks)

    monkeypatch.setattr(Forward, "read", counted)
    return read


def harvests() -> dict[str, str]:
    """Key -> content, of this store."""
    kept = open_store()
    manifests = (kept.find("harvest", path.name) for path in (kept.root / "harvest").iterdir() if path.suffix == "")
    return {manifest.key: manifest.content for manifest in manifests if manifest is not None}


def configs_of(subject: Path, saes: dict[str, Path], *names: str) -> list[Config]:
    return [config_of(subject, saes[name]) for name in names or SAES]


@pytest.mark.weights
def test_firings_of_one_pass_are_those_of_each_sae_alone_under_the_same_keys(
    toy, saes, alone, together, batches
) -> None:
    assert ai.harvest_together(configs_of(toy, saes)) == [None] * 4
    assert harvests() == alone
    by_hooks = Counter(map(frozenset, batches))
    assert by_hooks.keys() == {
        frozenset({"blocks.1.hook_resid_post", "blocks.3.hook_mlp_out"}),
        frozenset({"blocks.2.ln1.hook_normalized"}),
    }
    assert len(set(by_hooks.values())) == 1, "three SAEs at two hook points cost as many passes as one SAE"
    batches.clear()
    assert ai.harvest_together(configs_of(toy, saes)) == [None] * 4
    assert not batches


class Killed(BaseException):
    pass


@pytest.mark.weights
def test_a_pass_that_was_killed_goes_on_with_what_is_missing(toy, saes, alone, together, batches, monkeypatch) -> None:
    run_targets(config_of(toy, saes["relu"]), ["harvest"])
    per_sae = len(batches)
    batches.clear()
    original = passes.record

    def dying(folder: Path, shard: Shard, *given: Any) -> None:
        if shard.number == 1:
            raise Killed
        original(folder, shard, *given)

    configs = configs_of(toy, saes, "topk", "relu", "jumprelu")
    monkeypatch.setattr(passes, "record", dying)
    with pytest.raises(Killed):
        ai.harvest_together(configs)
    monkeypatch.setattr(passes, "record", original)
    begun = len(batches)
    assert set(map(frozenset, batches)) == {frozenset({"blocks.1.hook_resid_post"})}, "one is harvested already"
    assert ai.harvest_together(configs) == [None] * 3
    assert len(batches) == per_sae + begun // 2, "of the two shards that were read the first was kept"
    assert harvests().items() <= alone.items()
    assert len(harvests()) == 3


@pytest.mark.weights
def test_an_sae_that_does_not_fit_says_so_and_leaves_the_others_in_one_pass(
    toy, saes, alone, together, batches, tmp_path
) -> None:
    narrow = random_sae(tmp_path / "narrow", "topk", "blocks.1.hook_resid_post", d=100)
    nowhere = random_sae(tmp_path / "nowhere", "topk", "blocks.9.hook_resid_post")
    fit = configs_of(toy, saes, "topk", "relu")
    configs = [config_of(toy, narrow), fit[0], config_of(toy, nowhere), fit[1]]
    failures = ai.harvest_together(configs)
    assert [failure is None for failure in failures] == [False, True, False, True]
    assert "100" in (failures[0] or "")
    assert "blocks.9" in (failures[2] or "")
    assert harvests().items() <= alone.items()
    assert {len(hooks) for hooks in batches} == {2}


@pytest.mark.weights
def test_what_fails_within_a_pass_fails_alone(toy, saes, alone, together, monkeypatch, caplog) -> None:
    original = SAE.encode_sparse

    def fails(self: SAE, x: torch.Tensor) -> Any:
        if self.cfg.architecture == "relu" and len(x) > 500:  # not in the check of its first tokens
            raise AutointerpError("no room for it")
        return original(self, x)

    monkeypatch.setattr(SAE, "encode_sparse", fails)
    assert ai.harvest_together(configs_of(toy, saes, "topk", "relu", "jumprelu")) == [
        None,
        "no room for it",
        None,
    ]
    assert [record.message for record in caplog.records if "left out" in record.message] == [
        f"{saes['relu']} is left out of the pass: no room for it"
    ]
    assert harvests().items() <= alone.items()
    assert len(harvests()) == 2


@pytest.mark.weights
def test_a_pass_that_fails_as_a_whole_leaves_each_sae_to_its_own_harvest(
    toy, saes, alone, together, monkeypatch, caplog
) -> None:
    def fails(_job: Any) -> None:
        raise AutointerpError("the workers are gone")

    monkeypatch.setattr(passes, "work", fails)
    assert ai.harvest_together(configs_of(toy, saes, "topk", "relu")) == [None, None]
    assert "the pass has ended, each SAE is harvested alone: the workers are gone" in caplog.messages
    assert harvests().items() <= alone.items()


def member(folder: Path, name: str, text: str, latents: int) -> passes.Member:
    about = folder / name
    about.mkdir()
    (about / "sae.json").write_text(json.dumps({"cfg": {"d_in": 10, "d_sae": latents}}))
    (about / "manifest.json").write_text(json.dumps({"facts": {"l0": 2.0}}))
    config = config_of(Path("m"), Path(name))
    return passes.Member(config, Use("harvest"), folder, {"corpus": folder / text, "sae": about})


def test_saes_share_a_pass_where_they_read_one_text_and_fit_in_memory_together(tmp_path: Path) -> None:
    members = [member(tmp_path, f"{text}{n}", text, 10_000) for n in range(5) for text in ("one", "other")]
    texts = [[each.inputs["sae"].name for each in together] for together in passes.rounds(members, None)]
    assert texts == [[f"one{n}" for n in range(5)], [f"other{n}" for n in range(5)]]
    little = 2.5 * members[0].bytes
    divided = [[each.inputs["sae"].name for each in together] for together in passes.rounds(members, little)]
    assert divided == [["one0", "one1"], ["one2", "one3"], ["other0", "other1"], ["other2", "other3"]]
    assert [len(together) for together in passes.rounds(members, 1.0)] == [2, 2, 2, 2], "two are no more than one needs"


@pytest.mark.weights
def test_a_sweep_of_loaded_saes_shares_passes_and_keeps_what_did_not_fail(
    toy, saes, alone, together, batches, tmp_path
) -> None:
    random_sae(tmp_path / "place" / "narrow", "topk", "blocks.1.hook_resid_post", d=100)
    raw = config_of(toy, saes["topk"]).model_dump(mode="json", exclude_unset=True)
    raw |= {
        "variants": {
            "one": {},
            "other": {"sae.load": str(saes["jumprelu"]), "composites.union": "@one"},
            "narrow": {"sae.load": "narrow"},  # beside the file
            "of it": {"composites.union": "@narrow"},
        },
        "seeds": [0, 1],
        "metrics": ["explained_variance", "share_composite", "distinct_from_first"],
        "evaluation": {"tokens": 400},
    }
    file = tmp_path / "place" / "sweep.yaml"
    file.write_text(yaml.safe_dump(raw, sort_keys=False))
    swept = sweep(file, out=tmp_path / "out")
    assert swept.failures.keys() == {"narrow", "of it"}
    assert "100" in swept.failures["narrow"]
    assert harvests().items() <= alone.items()
    assert {len(hooks) for hooks in batches} == {1}
    assert [figure.seed for figure in swept.of("one", "explained_variance")] == [0], "nothing here hangs on a seed"
    assert swept.of("one", "distinct_from_first")[0].value == 0
    made = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert made["failures"] == swept.failures
    assert made["figures"]["narrow"]["explained_variance"]["mean"] is None
