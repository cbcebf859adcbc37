"""A subject that accelerate spreads over places reads, changes and weighs as one in memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from autointerp.config import SubjectConfig
from autointerp.errors import ConfigError
from autointerp.subject import Subject, load_subject

HALF = "blocks.4.hook_resid_post"  # in a block that lies on disk


def offloaded(toy: Path, **options: str) -> SubjectConfig:
    ends = dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], "cpu")
    blocks = {f"model.layers.{layer}": "cpu" if layer < 3 else "disk" for layer in range(6)}
    return SubjectConfig(model=str(toy), device_map=ends | blocks, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def both(toy: Path) -> tuple[Subject, Subject]:
    """A subject in memory, and half of it on disk."""
    whole = load_subject(SubjectConfig(model=str(toy), device="cpu"), toy, HALF)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        halved = load_subject(offloaded(toy), toy, HALF)
    assert {tensor.device.type for tensor in halved.forward.plain.model.parameters()} == {"cpu", "meta"}
    return whole, halved


def tokens() -> torch.Tensor:
    return torch.randint(3, 30_000, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "hook",
    [
        *("blocks.1.hook_resid_pre", "blocks.1.hook_resid_post", "blocks.4.hook_resid_post", "blocks.5.hook_mlp_out"),
        *("blocks.4.attn.hook_z", "blocks.4.hook_resid_mid", "blocks.2.hook_attn_out", "ln_final.hook_in"),
    ],
)
def test_it_reads_the_same_activations(both: tuple[Subject, Subject], hook: str) -> None:
    whole, halved = (subject.at(hook).activations(tokens(), [20, 7]) for subject in both)
    torch.testing.assert_close(halved, whole, atol=1e-4, rtol=1e-4)


def test_several_hook_points_come_from_one_pass(both: tuple[Subject, Subject]) -> None:
    names = ["blocks.1.hook_resid_post", HALF]
    whole, halved = (s.activations_at(tokens(), [s.at(name).hook for name in names]) for s in both)
    torch.testing.assert_close(halved, whole, atol=1e-4, rtol=1e-4)


def test_it_is_patched_steered_and_read_on_the_way(both: tuple[Subject, Subject]) -> None:
    whole = both[0]
    generator = torch.Generator().manual_seed(2)
    new, push = (torch.randn(2, 20, whole.d_model, generator=generator) for _ in range(2))
    later = whole.at("blocks.5.hook_resid_pre").hook.name
    early = whole.at("blocks.1.hook_resid_post").hook.name
    for how in ({"patch": {HALF: new}}, {"add": {early: push}}, {"patch": {early: new}, "add": {HALF: push}}):
        results = [subject.logits(tokens(), read=[later], **how) for subject in both]
        torch.testing.assert_close(results[1], results[0], atol=2e-3, rtol=1e-3)
    places = torch.tensor([[3, 19], [0, 5]])
    clean = [subject.logits(tokens(), at=places)[0] for subject in both]
    torch.testing.assert_close(clean[1], clean[0], atol=2e-3, rtol=1e-3)
    assert not torch.allclose(results[0][0][:, 19], clean[0][:, 1], atol=1e-2)


@pytest.mark.parametrize("hook", [HALF, "blocks.4.attn.hook_z", "blocks.1.hook_resid_post"])
def test_it_weighs_directions_as_the_one_in_memory(both: tuple[Subject, Subject], hook: str) -> None:
    directions = torch.randn(3, both[0].d_model, generator=torch.Generator().manual_seed(0))
    whole, halved = (subject.at(hook).logit_weights(directions) for subject in both)
    assert whole is not None
    assert halved is not None
    torch.testing.assert_close(halved, whole, atol=1e-4, rtol=1e-4)


def test_the_neurons_of_a_block_on_disk_are_there(both: tuple[Subject, Subject]) -> None:
    whole, halved = (subject.at("blocks.4.mlp.hook_post").mlp_out() for subject in both)
    torch.testing.assert_close(halved, whole)


def test_a_changed_hook_point_is_heard_while_text_is_generated(both: tuple[Subject, Subject]) -> None:
    whole, halved = both
    push = 3 * torch.randn(whole.d_model, generator=torch.Generator().manual_seed(3))
    rows = []
    for subject in both:
        with torch.no_grad(), subject.forward.hooked([(HALF, lambda value, hook: value + push)]) as model:
            rows.append(model.generate(tokens()[:1, :4], max_new_tokens=6, do_sample=False, pad_token_id=0))
    assert torch.equal(*rows)
    clean = halved.forward.plain.model.generate(tokens()[:1, :4], max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert not torch.equal(rows[1], clean)


@pytest.mark.parametrize("hook", ["blocks.1.attn.hook_pattern", "hook_embed"])
def test_a_hook_point_that_it_cannot_have_is_one_line(both: tuple[Subject, Subject], hook: str) -> None:
    with pytest.raises(ConfigError, match=rf"subject.device_map: {hook}.* choose a hook point that is"):
        both[1].at(hook).activations(tokens())


def test_a_map_of_one_place_is_the_model_itself(both: tuple[Subject, Subject], toy: Path) -> None:
    config = SubjectConfig(model=str(toy), device_map={"": "cpu"})
    subject = load_subject(config, toy, HALF)
    torch.testing.assert_close(subject.activations(tokens()), both[0].activations(tokens()), atol=1e-4, rtol=1e-4)


def test_weights_that_the_bridge_splits_may_lie_on_disk(tmp_path: Path, toy: Path) -> None:
    """Those of GPT-2's attention are one matrix."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32000, n_positions=64, n_embd=16, n_layer=2, n_head=2))
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(toy).save_pretrained(tmp_path)
    ends = dict.fromkeys(
        ["transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head", "transformer.h.0"], "cpu"
    )
    ways: list[dict[str, object]] = [{"device": "cpu"}, {"device_map": ends | {"transformer.h.1": "disk"}}]
    loaded = [
        load_subject(SubjectConfig.model_validate({"model": str(tmp_path)} | way), tmp_path, None) for way in ways
    ]
    for hook in ("blocks.1.attn.hook_z", "blocks.1.hook_resid_post"):
        whole, halved = (subject.at(hook) for subject in loaded)
        torch.testing.assert_close(halved.activations(tokens()), whole.activations(tokens()))
        weights = [subject.logit_weights(torch.eye(16)) for subject in (whole, halved)]
        assert weights[0] is not None
        torch.testing.assert_close(*weights)


def test_a_gpu_that_is_not_there_is_one_line(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="names GPU 2: 2 can be seen here"):
        load_subject(SubjectConfig(model=str(toy), device_map={"model": 2, "lm_head": 0}), toy, None)


def test_weights_on_disk_are_not_drawn_anew(toy: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be drawn anew"):
        load_subject(offloaded(toy, weights="redrawn:1"), toy, None)


def test_a_missing_accelerate_is_one_line(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "accelerate", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install accelerate"):
        load_subject(offloaded(toy), toy, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "auto", "device": "cuda"}, "leave out device and compile, or device_map"),
        ({"device_map": {"model": 0}, "compile": True}, "leave out device and compile, or device_map"),
        ({"device_map": "everywhere"}, "'everywhere' is neither auto, balanced"),
        ({"device_map": {"model.layers.0": "tape"}}, "'tape' is no place for a module"),
        ({"device_map": {"model.layers.0": -1}}, "-1 is no place for a module"),
    ],
    ids=str,
)
def test_a_map_that_cannot_be_is_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SubjectConfig.model_validate({"model": "m"} | options)
