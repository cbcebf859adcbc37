"""Firings from pre-activations made block by block: those of the dense codes, whatever the blocks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autointerp.sae import blocks
from autointerp.sae.few_bits import FewBits
from autointerp.sae.model import SAE, SAEConfig


@given(
    st.integers(0, 5),
    st.integers(1, 6),
    st.sampled_from([1, 2, 12, 64, 96, 1000, 4096]),
    st.integers(0, 1000),
    st.data(),
)
def test_the_largest_are_those_of_topk(rows: int, k: int, n: int, seed: int, data: st.DataObject) -> None:
    k = min(k, n)
    pre = torch.randn(rows, n, generator=torch.Generator().manual_seed(seed))
    if data.draw(st.booleans()):
        pre = pre.round()  # many are alike
    values, columns = blocks.largest(pre, k)
    assert torch.equal(values.sort(1).values, pre.topk(k).values.sort(1).values)
    assert torch.equal(pre.gather(1, columns), values)
    assert all(len(set(row)) == k for row in columns.tolist())


@given(st.integers(0, 4), st.integers(1, 40), st.floats(-1, 4), st.integers(0, 1000))
def test_what_lies_above_a_threshold_is_named_once_in_order(rows: int, n: int, at: float, seed: int) -> None:
    pre = torch.randn(rows, n, generator=torch.Generator().manual_seed(seed))
    assert blocks.above(pre, at).tolist() == (pre > at).flatten().nonzero().squeeze(1).tolist()
    each = torch.linspace(-1, 1, n)
    assert blocks.above(pre, each).tolist() == (pre > each).flatten().nonzero().squeeze(1).tolist()


def small_sae(architecture: str, d_in: int = 8, d_sae: int = 64) -> SAE:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "W_enc": torch.randn(d_in, d_sae, generator=generator),
        "W_dec": torch.randn(d_sae, d_in, generator=generator),
        "b_enc": torch.randn(d_sae, generator=generator),
        "b_dec": torch.randn(d_in, generator=generator),
    }
    extra = {"jumprelu": ["threshold"], "gated": ["r_mag", "b_mag", "b_gate"]}.get(architecture, [])
    tensors |= {name: torch.randn(d_sae, generator=generator) for name in extra}
    return SAE(SAEConfig(architecture, d_in, d_sae, "autointerp", "float32", True, k=4), tensors)


@pytest.mark.parametrize("architecture", ["topk", "relu", "jumprelu", "gated", "groupmax"])
@pytest.mark.parametrize("tokens", [0, 1, 40])
def test_blocks_of_tokens_give_the_dense_codes(architecture: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = small_sae(architecture), torch.randn(tokens, 8, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(blocks, "rows_of", lambda width, device: 16)
    token, latent, value = sae.encode_sparse(x)
    codes = torch.zeros(tokens, 64)
    codes[token, latent] = value
    assert torch.allclose(codes, sae.encode(x), atol=1e-5)
    assert token.tolist() == sorted(token.tolist())
    assert (value > 0).all()


@given(
    st.integers(1, 6), st.sampled_from([40, 64, 1000, 4096]), st.sampled_from([0.0, 3.0, 100.0]), st.integers(0, 1000)
)
def test_few_bits_name_candidates_and_float32_decides(k: int, n: int, common: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(24, n, generator=generator) * torch.rand(n, generator=generator) * 3
    weights[:, n // 2 :] = weights[:, : n - n // 2]  # every latent twice, a little apart
    bias = torch.randn(n, generator=generator) * common
    x = torch.randn(70, 24, generator=generator) + common
    x[0], x[1] = 0, x[1] * 1000  # nothing, and an attention sink
    few = FewBits(weights, bias)
    values, latents = few.largest(x, k, few.room(80))
    pre = (x.double() @ weights.double() + bias.double()).float()
    assert torch.allclose(values, pre.gather(1, latents), rtol=1e-4, atol=1e-4 * (1 + common))
    wanted = pre.topk(k).values.relu()
    assert torch.allclose(values.sort(1, descending=True).values.relu(), wanted, rtol=1e-4, atol=1e-4 * (1 + common))
    assert all(len(set(row)) == k for row in latents.tolist())


def test_a_harvest_in_few_bits_has_the_firings_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = small_sae("topk", 48, 512), torch.randn(4096, 48, generator=torch.Generator().manual_seed(1))
    made = []
    for fast in (True, False):
        monkeypatch.setattr("autointerp.sae.model.fast_on", lambda device, dtype, fast=fast: fast)
        made.append(sae.encode_sparse(x))
    assert {*zip(*(each.tolist() for each in made[0][:2]))} == {*zip(*(each.tolist() for each in made[1][:2]))}
    sae.W_enc = sae.W_enc * 2  # weights that change are read anew
    assert torch.allclose(sae.encode_sparse(x).value.max(), sae.encode(x).max(), rtol=1e-5)


def test_no_block_holds_more_numbers_than_it_may() -> None:
    for width in (64, 8192, 32_768, 131_072, 1_000_000):
        rows = blocks.rows_of(width, torch.device("cpu"))
        assert rows * width <= max(blocks.NUMBERS["cpu"], 16 * width)


@pytest.mark.cuda
@pytest.mark.parametrize("architecture", ["topk", "relu", "jumprelu", "gated", "groupmax"])
def test_a_gpu_finds_the_same_firings(architecture: str) -> None:
    sae, x = small_sae(architecture), torch.randn(100, 8, generator=torch.Generator().manual_seed(1))
    expected, firings = sae.encode_sparse(x), sae.to("cuda").encode_sparse(x.to("cuda"))
    assert {*zip(firings[0].tolist(), firings[1].tolist())} == {*zip(expected[0].tolist(), expected[1].tolist())}
