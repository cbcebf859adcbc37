"""An SAE whose directions are drawn anew: norms, the angle of encoder and decoder, and L0 are the SAE's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autointerp.sae.model import SAE, SAEConfig
from autointerp.sae.redraw import read_redrawn, redraw, save_redrawn

D, N = 24, 96


def sae(architecture: str, **more: object) -> SAE:
    drawn = torch.Generator().manual_seed(3)
    decoder = torch.nn.functional.normalize(torch.randn(N, D, generator=drawn), dim=-1)
    tensors = {
        "W_dec": decoder * torch.linspace(0.5, 2, N)[:, None],
        "W_enc": (decoder + 0.3 * torch.randn(N, D, generator=drawn)).T.contiguous(),
        "b_enc": torch.full((N,), -1.0),
        "b_dec": torch.randn(D, generator=drawn),
    }
    vectors = {"jumprelu": ("threshold",), "gated": ("r_mag", "b_mag", "b_gate")}.get(architecture, ())
    tensors |= {name: torch.full((N,), 0.4) for name in vectors}
    if architecture == "gated":
        tensors |= {"b_enc": torch.zeros(N), "b_gate": torch.full((N,), -1.2), "b_mag": torch.full((N,), -0.5)}
    cfg = SAEConfig(architecture, D, N, "test", "float32", True, **more)  # type: ignore[arg-type]
    return SAE(cfg, tensors)


@pytest.fixture(scope="module")
def activations() -> torch.Tensor:
    scale = torch.linspace(0.2, 2, D)  # as uneven as a residual stream's dimensions
    return torch.randn(6000, D, generator=torch.Generator().manual_seed(5)) * scale


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "gated", "topk", "groupmax"])
def test_only_the_directions_are_others(architecture: str, activations: torch.Tensor, tmp_path: Path) -> None:
    own = sae(architecture, **({"k": 8} if architecture in ("topk", "groupmax") else {}))
    other, l0, own_l0 = redraw(own, activations, seed=1)
    for rows in (lambda s: s.W_dec, lambda s: s.W_enc.T):
        assert torch.allclose(rows(other).norm(dim=-1), rows(own).norm(dim=-1), rtol=1e-4)
        cosine = torch.nn.functional.cosine_similarity(rows(other), rows(own), dim=-1)
        assert abs(float(cosine.mean())) < 0.1
    angles = [torch.nn.functional.cosine_similarity(s.W_enc.T, s.W_dec, dim=-1) for s in (own, other)]
    assert torch.allclose(*angles, atol=1e-4)
    assert l0 == pytest.approx(own_l0, rel=0.03)
    save_redrawn(other, tmp_path)
    read = read_redrawn(tmp_path, "cpu")
    assert read.cfg == own.cfg
    assert torch.equal(read.encode(activations[:50]), other.encode(activations[:50]))


@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "gated"])
def test_each_latent_fires_as_often_as_the_one_whose_place_it_takes(
    architecture: str, activations: torch.Tensor
) -> None:
    own = sae(architecture)
    other, *_ = redraw(own, activations, seed=1)
    counts = [(s.encode(activations) > 0).sum(0) for s in (own, other)]
    assert int((counts[0] - counts[1]).abs().max()) <= 1


def test_a_transcoder_s_directions_are_drawn_in_both_spaces(activations: torch.Tensor) -> None:
    own = sae("relu")
    cfg = SAEConfig("relu", D, N, "test", "float32", False, d_out=10)
    tensors = dict(own.named_buffers()) | {"W_dec": torch.randn(N, 10), "b_dec": torch.zeros(10)}
    other, l0, own_l0 = redraw(SAE(cfg, tensors), activations, seed=1)
    assert other.W_dec.shape == (N, 10)
    assert l0 == pytest.approx(own_l0, rel=0.01)
