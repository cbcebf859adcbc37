"""The plain model's forward pass: what TransformerLens reads, with fused attention, and no further than needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from autointerp.config import SubjectConfig
from autointerp.subject import Subject, load_subject
from autointerp.subject.hooks import resolve_hook

BOUNDARIES = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z")


def subject_of(folder: Path, **options: str) -> Subject:
    return load_subject(SubjectConfig(model=str(folder), device="cpu", **options), folder, None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest) -> Subject:
    return subject_of(request.getfixturevalue(request.param))


@pytest.fixture(scope="session")
def small_gpt2(stories15m: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its attention's three matrices are one, which the bridge takes apart."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32000, n_positions=64, n_embd=16, n_layer=3, n_head=2))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(stories15m).save_pretrained(folder)
    return folder


def rows(lengths: list[int]) -> torch.Tensor:
    """Random tokens, padded on the right with 0."""
    tokens = torch.randint(3, 30_000, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    return tokens * (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])


def apart(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value - expected).norm(dim=-1).max() / expected.norm(dim=-1).mean())


@pytest.mark.parametrize("subject", ["stories15m", "smollm2", "small_gpt2"], indirect=True)
@pytest.mark.parametrize("point", BOUNDARIES)
def test_a_module_s_boundary_is_read_as_transformer_lens_reads_it(subject: Subject, point: str) -> None:
    lengths = [40, 17, 1]
    tokens, at = rows(lengths), subject.at(f"blocks.1.{point}")
    assert at.forward.place(at.hook) is not None
    _, cached = subject.bridge.run_with_cache(
        tokens, return_cache_object=False, names_filter=at.hook.name, stop_at_layer=2
    )
    expected = cached[at.hook.name].float().flatten(2)
    value = at.activations(tokens, lengths)
    for row, length in enumerate(lengths):
        assert apart(value[row, :length], expected[row, :length]) < 1e-4
        assert (value[row, length:] == 0).all()


@pytest.mark.parametrize("subject", ["stories15m"], indirect=True)
def test_several_hook_points_come_from_one_pass(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["blocks.3.hook_mlp_out", "blocks.1.hook_resid_post", "blocks.3.attn.hook_pattern"]
    hooks = [resolve_hook(name, subject.n_layers, subject.bridge.hook_dict) for name in names]
    tokens = rows([9, 9])
    alone = [subject.at(name).activations(tokens) for name in names]
    passes: list[int] = []
    count = subject.forward.plain.model.base_model.register_forward_pre_hook(lambda *_: passes.append(1))
    both = subject.activations_at(tokens, hooks[:2])
    count.remove()
    assert passes == [1]
    assert [torch.equal(a, b) for a, b in zip(both, alone)] == [True, True]
    # with one that lies inside of the attention, all come through the bridge
    for value, expected in zip(subject.activations_at(tokens, hooks), alone, strict=True):
        assert torch.allclose(value, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("subject", ["stories15m"], indirect=True)
def test_what_was_read_stays_where_a_later_module_writes_into_it(subject: Subject) -> None:
    at, later = subject.at("blocks.1.hook_resid_post"), subject.at("blocks.3.hook_resid_post")
    alone = at.activations(rows([9]))
    later.activations(rows([9]))  # each is held against the bridge once
    block = subject.forward.plain.model.base_model.layers[2]
    writing = block.register_forward_pre_hook(lambda _, given: given[0].mul_(2))
    both = at.activations_at(rows([9]), [at.hook, later.hook])
    writing.remove()
    assert torch.equal(both[0], alone)


@pytest.mark.parametrize("subject", ["stories15m"], indirect=True)
def test_nothing_after_the_last_hook_point_is_run(subject: Subject) -> None:
    ran: list[str] = []
    plain = subject.forward.plain.model
    at, last = subject.at("blocks.2.hook_resid_pre"), subject.at("ln_final.hook_in")
    for each in (at, last):  # each is held against the bridge once
        each.activations(rows([2]))
    handles = [
        layer.register_forward_hook(lambda *_, n=n: ran.append(str(n))) for n, layer in enumerate(plain.model.layers)
    ]
    handles.append(plain.lm_head.register_forward_hook(lambda *_: ran.append("head")))
    at.activations(rows([5]))
    assert ran == ["0", "1"]
    ran.clear()
    last.activations(rows([5]))
    assert ran == [str(n) for n in range(subject.n_layers)]
    for handle in handles:
        handle.remove()


def test_a_place_that_says_something_else_is_read_through_the_bridge(stories15m: Path) -> None:
    subject = subject_of(stories15m)
    layer = subject.forward.plain.model.model.layers[1]
    layer.register_forward_hook(lambda module, given, made: made * 1.01)
    at = subject.at("blocks.1.hook_resid_post")
    assert at.forward.place(at.hook) is None
    assert at.activations(rows([6])).shape == (1, 6, 288)


def test_both_share_their_weights(stories15m: Path) -> None:
    subject = subject_of(stories15m)
    plain = {tensor.data_ptr() for tensor in subject.forward.plain.model.parameters()}
    assert plain <= {tensor.data_ptr() for tensor in subject.bridge.parameters()}


def test_half_precision_is_read_from_the_plain_model_too(stories15m: Path) -> None:
    whole = subject_of(stories15m).at("blocks.2.hook_resid_post").activations(rows([30]))
    half = subject_of(stories15m, dtype="bfloat16").at("blocks.2.hook_resid_post")
    assert half.forward.place(half.hook) is not None
    value = half.activations(rows([30]))
    assert value.dtype == torch.float32
    assert apart(value, whole) < 0.05


def test_compiled_blocks_give_the_same_wherever_the_hook_point_lies(stories15m: Path) -> None:
    subject, plain = subject_of(stories15m), subject_of(stories15m)
    subject.forward.plain.compile(subject.bridge, backend="eager")  # as torch.compile takes it apart, without its C++
    for name in ("blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"):
        at = subject.at(name)
        assert apart(at.activations(rows([9])), plain.at(name).activations(rows([9]))) < 1e-4
        assert at.forward.place(at.hook) is not None
    points = ("blocks.1.hook_resid_post", "blocks.3.hook_resid_pre", "blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out")
    ways = [subject.forward.way(subject.at(name).hook) for name in points]
    assert ways[0] == ways[1]
    assert len(set(ways)) == 3, "a block that is read within does not run compiled, which rounds otherwise"


@pytest.mark.cuda
@pytest.mark.parametrize("point", BOUNDARIES)
def test_a_gpu_reads_what_the_processor_reads(stories15m: Path, point: str) -> None:
    here = subject_of(stories15m).at(f"blocks.1.{point}")
    there = load_subject(SubjectConfig(model="stories15m", device="cuda"), stories15m, f"blocks.1.{point}")
    assert there.forward.place(there.hook) is not None
    assert apart(there.activations(rows([40])).cpu(), here.activations(rows([40]))) < 1e-3
