"""Activations of the subject: those of plain transformers, read no further than needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autointerp.config import SubjectConfig
from autointerp.errors import AutointerpError, ConfigError
from autointerp.subject import Subject, load_subject, resolve_hook

ROWS = torch.tensor(
    [[1, 9038, 2501, 263, 931, 29892, 727, 471], [1, 450, 6635, 3290, 373, 0, 0, 0], [1, 15043, 29871, 0, 0, 0, 0, 0]]
)
LENGTHS = [8, 5, 3]


def subject_at(folder: Path, hook: str | None) -> Subject:
    return load_subject(SubjectConfig(model=str(folder), device="cpu"), folder, hook)


@pytest.fixture(scope="module")
def plain(stories15m: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(stories15m)


@pytest.fixture(scope="session")
def tiny_gpt2(stories15m: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LayerNorm with biases and learned positions: unlike Llama in all that matters here."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32000, n_positions=32, n_embd=16, n_layer=3, n_head=2))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(stories15m).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("hook", "state"), [("blocks.3.hook_resid_pre", 3), ("layers.3", 4), ("blocks.0.hook_resid_post", 1)]
)
def test_activations_are_the_hidden_states_of_transformers(plain, stories15m: Path, hook: str, state: int) -> None:
    with torch.no_grad():
        expected = plain(ROWS[:1], output_hidden_states=True).hidden_states[state]
    assert (subject_at(stories15m, hook).activations(ROWS[:1]) - expected).abs().max() < 1e-4


@pytest.mark.parametrize(("hook", "state"), [("transformer.h.1", 2), ("blocks.2.hook_resid_pre", 2)])
def test_so_they_are_for_another_architecture(tiny_gpt2: Path, hook: str, state: int) -> None:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(tiny_gpt2)
        expected = model(ROWS[:1], output_hidden_states=True).hidden_states[state]
    assert (subject_at(tiny_gpt2, hook).activations(ROWS[:1]) - expected).abs().max() < 1e-4


def test_padding_changes_nothing_and_comes_out_as_zero(stories15m: Path) -> None:
    subject = subject_at(stories15m, "blocks.4.hook_resid_post")
    together = subject.activations(ROWS, LENGTHS)
    for row, length in enumerate(LENGTHS):
        alone = subject.activations(ROWS[row : row + 1, :length])
        assert (together[row, :length] - alone[0]).abs().max() < 1e-4
        assert (together[row, length:] == 0).all()
    other = ROWS.clone()
    other[1, 5:], other[2, 3:] = 777, 888
    assert (subject.activations(other, LENGTHS) - together).abs().max() < 1e-4


def test_heads_come_out_side_by_side(stories15m: Path) -> None:
    subject = subject_at(stories15m, "blocks.3.attn.hook_z")
    z = subject.activations(ROWS[:1])
    assert z.shape == (1, 8, 288)
    assert subject.d_hook == 288
    out = subject.bridge.blocks[3].attn.W_O.flatten(0, 1)
    written = subject_at(stories15m, "layers.3.self_attn").activations(ROWS[:1])
    assert (z @ out - written).abs().max() < 1e-4


@pytest.mark.parametrize("architecture", ["stories15m", "tiny_gpt2"])
def test_logit_weights_are_the_model_s_own_norm_and_head(architecture: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(architecture)
    subject = subject_at(folder, "blocks.1.hook_resid_post")
    directions = torch.randn(3, subject.d_model, generator=torch.Generator().manual_seed(0)) * 10
    norm = subject.bridge.ln_final.original_component
    with torch.no_grad():
        zero = norm(torch.zeros(1, subject.d_model))  # a bias, where there is one
        centred = directions - directions.mean(-1, keepdim=True) if architecture == "tiny_gpt2" else directions
        size = centred.pow(2).mean(-1, keepdim=True).sqrt()
        expected = (norm(directions) - zero) * size @ subject.bridge.W_U
    weights = subject.logit_weights(directions)
    assert weights is not None
    assert weights.shape == (3, 32000)
    assert torch.allclose(weights, expected, rtol=1e-3, atol=1e-3)
    assert len(subject.vocab_strings()) == 32000


@pytest.mark.parametrize("architecture", ["stories15m", "tiny_gpt2"])
def test_logits_at_some_places_are_those_of_a_whole_pass(architecture: str, request: pytest.FixtureRequest) -> None:
    subject = subject_at(request.getfixturevalue(architecture), "blocks.1.hook_resid_post")
    added = torch.randn(*ROWS.shape, subject.d_model, generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[7, 0], [4, 3], [2, 2]])
    whole, _ = subject.logits(ROWS, add={subject.hook.name: added})
    some, read = subject.logits(ROWS, read=["blocks.2.hook_resid_post"], add={subject.hook.name: added}, at=places)
    assert (some - whole[torch.arange(3)[:, None], places]).abs().max() < 1e-4
    assert read["blocks.2.hook_resid_post"].shape == (*ROWS.shape, subject.d_model)


def test_a_hook_that_does_not_write_the_residual_stream_has_no_logits(stories15m: Path) -> None:
    subject = subject_at(stories15m, "blocks.1.mlp.hook_post")
    assert subject.d_hook == 768
    assert subject.logit_weights(torch.zeros(1, 768)) is None


def test_the_subject_says_what_it_is(stories15m: Path) -> None:
    subject = subject_at(stories15m, None)
    assert (subject.name, subject.n_layers, subject.context, subject.bos_id) == ("stories15m", 6, 256, 1)
    with pytest.raises(ConfigError, match=r"subject\.hook is missing"):
        subject.activations(ROWS)


def test_a_hook_that_is_switched_off_is_said(stories15m: Path) -> None:
    with pytest.warns(UserWarning, match="gated"), pytest.raises(ConfigError, match="switched off"):
        subject_at(stories15m, "blocks.3.attn.hook_result").activations(ROWS)


def test_a_folder_without_weights_is_said(stories15m: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((stories15m / name).read_bytes())
    with pytest.raises(AutointerpError, match="cannot load"):
        subject_at(tmp_path, None)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("blocks.8.hook_resid_pre", "blocks.8.hook_resid_pre"),
        ("layers.8", "blocks.8.hook_resid_post"),
        ("model.layers.8", "blocks.8.hook_resid_post"),
        ("transformer.h.8", "blocks.8.hook_resid_post"),
        ("gpt_neox.layers.8.attention", "blocks.8.hook_attn_out"),
        ("layers.8.mlp", "blocks.8.hook_mlp_out"),
        ("model.layers.8.self_attn", "blocks.8.hook_attn_out"),
        ("transformer.blocks.8", "blocks.8.hook_resid_post"),
        ("blocks.8.mlp", "blocks.8.hook_mlp_out"),
    ],
)
def test_hooks_are_known_by_both_names(given: str, name: str) -> None:
    hook = resolve_hook(given, 12)
    assert (hook.name, hook.layer, hook.given) == (name, 8, given)


def test_two_names_may_mean_one_place() -> None:
    hook = resolve_hook("layers.3", 6)
    assert hook.means("blocks.3.hook_resid_post")
    assert not hook.means("blocks.2.hook_resid_post")
    assert not hook.means("layers.3.mlp")


def test_the_embedding_and_the_final_norm_are_hooks() -> None:
    assert (resolve_hook("model.embed_tokens", 12).name, resolve_hook("hook_embed", 12).layer) == ("hook_embed", 0)
    assert resolve_hook("ln_final.hook_normalized", 12).layer == 11


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("blocks.3.hook_resid_pst", "did you mean 'blocks.3.hook_resid_post'"),
        ("layers.12", "layers 0 to 11"),
        ("blocks.12.hook_mlp_out", "layers 0 to 11"),
        ("blocks.2.attn.hook_zz", r"did you mean 'blocks.2.attn.hook_z'"),
    ],
)
def test_a_wrong_hook_names_the_nearest(given: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve_hook(given, 12)
