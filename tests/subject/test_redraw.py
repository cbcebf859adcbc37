"""A subject whose weights are drawn anew: the same scale and shape, and nothing that was learned."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from autointerp.config import parse_config
from autointerp.errors import ConfigError
from autointerp.subject.redraw import redraw


@pytest.fixture(scope="module")
def trained(stories15m: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(stories15m, dtype=torch.float32)


def redrawn(model: torch.nn.Module, weights: str) -> torch.nn.Module:
    other = copy.deepcopy(model)
    redraw(other, weights)
    return other


def test_each_tensor_keeps_its_mean_and_spread_and_nothing_else(trained: torch.nn.Module) -> None:
    for (name, old), new in zip(trained.named_parameters(), redrawn(trained, "redrawn:1").parameters()):
        error = 5 * float(old.std()) / old.numel() ** 0.5
        assert float(new.mean()) == pytest.approx(float(old.mean()), abs=error), name
        assert float(new.std()) == pytest.approx(float(old.std()), rel=0.3 if old.ndim == 1 else 0.02), name
        both = torch.stack([old.flatten(), new.flatten()])
        assert abs(float(torch.corrcoef(both)[0, 1])) < 6 / old.numel() ** 0.5, name


def test_the_seed_alone_decides_what_is_drawn(trained: torch.nn.Module) -> None:
    def first(weights: str) -> torch.Tensor:
        return next(redrawn(trained, weights).parameters())

    assert torch.equal(first("redrawn:1"), first("redrawn:1"))
    assert not torch.equal(first("redrawn:1"), first("redrawn:2"))


def test_embeddings_can_be_kept(trained: torch.nn.Module) -> None:
    other = redrawn(trained, "redrawn_blocks:1")
    same = {name for (name, old), new in zip(trained.named_parameters(), other.parameters()) if torch.equal(old, new)}
    assert same == {"model.embed_tokens.weight"}  # to which this model's unembedding is tied


def test_tied_tensors_stay_tied_and_constant_ones_stay() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, tie_word_embeddings=True, **sizes))
    redraw(model, "redrawn:0")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert bool((model.model.norm.weight == 1).all())


@pytest.mark.parametrize("weights", ["random", "redrawn", "redrawn:x", "redrawn:-1"])
def test_weights_that_cannot_be_are_one_line(weights: str) -> None:
    raw = {"name": "n", "subject": {"model": "stories15m", "weights": weights}, "corpus": {"source": "x"}}
    with pytest.raises(ConfigError, match=r"subject\.weights") as error:
        parse_config(raw | {"sae": {"load": "x"}})
    assert "\n" not in str(error.value)
