"""Products with any number of entries a token: those of the dense matrices, and their gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autointerp.sae import sparse
from autointerp.sae.recipes import RECIPES
from autointerp.sae.train_config import TrainConfig


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(1, 9), st.floats(0, 1), st.integers(0, 100))
def test_they_are_the_dense_products_with_their_gradients(b: int, n: int, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    on = torch.rand(b, n, generator=generator) < share
    x, weights, bias = (torch.randn(*size, generator=generator) for size in ((b, 4), (n, 4), (n,)))
    target = torch.randn(b, 4, generator=generator)
    token, latent = on.nonzero(as_tuple=True)
    pairs = sparse.Pairs(token, latent, b, n)

    def gradients(dense: bool) -> list[torch.Tensor]:
        encoder, decoder = weights.clone().requires_grad_(), (weights * 2).clone().requires_grad_()
        shift = bias.clone().requires_grad_()
        if dense:
            made = torch.where(on, x @ encoder.T + shift, 0.0) @ decoder
        else:
            made = sparse.decode_pairs(sparse.encode_pairs(x, encoder, shift, pairs), decoder, pairs)
        ((made - target) ** 2).sum().backward()
        return [
            made.detach(),
            *(t.grad if t.grad is not None else torch.zeros_like(t) for t in (encoder, decoder, shift)),
        ]

    for value, expected in zip(gradients(False), gradients(True), strict=True):
        assert torch.allclose(value, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka"])
def test_a_batch_has_k_latents_a_token_and_each_group_adds_to_those_before(architecture: str) -> None:
    config = TrainConfig.model_validate(
        {"architecture": architecture, "d_sae": 64, "k": 4, "dtype": "float32", "tokens": 1000, "batch_size": 50}
    )
    recipe = RECIPES[architecture](config, 16)
    recipe.initialise(torch.Generator().manual_seed(0))
    recipe.to(torch.device("cpu"))
    z = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    w, codes = recipe.weights, z
    for step in range(3):  # with a running threshold that is too high at first, then near
        outcome = recipe.loss(z, torch.zeros(64, dtype=torch.bool), step)
        assert int(outcome.active) == 4 * 50
        pre = (z @ w["W_enc"].T + w["b_enc"]).detach()
        least = pre.flatten().topk(4 * 50).values.amin()
        codes = torch.where(pre >= least, pre, 0.0)
        whole = (codes @ w["W_dec"] + w["b_dec"] - z).detach()
        assert torch.allclose(outcome.residual, whole.square().sum(), rtol=1e-4)
        recipe.kept["threshold"] = least * (3.0 if step == 0 else 0.99)
    ends = [2, 6, 14, 30, 64] if architecture == "matryoshka" else [64]
    errors = [(codes[:, :end] @ w["W_dec"][:end] + w["b_dec"] - z).square().sum() / z.numel() for end in ends]
    assert torch.allclose(outcome.loss, sum(errors) / len(ends), rtol=1e-4)  # type: ignore[arg-type]
