"""What sparse codes leave of their input, in the codes' own scale."""

import pytest
import torch

from autointerp.errors import AutointerpError
from autointerp.sae.model import SAE, SAEConfig


def sae(**changes) -> SAE:
    torch.manual_seed(0)
    cfg = SAEConfig("relu", 6, 20, "autointerp", "float32", False, **changes)
    d_out = cfg.d_out or 6
    shapes = {"W_enc": (6, 20), "W_dec": (20, d_out), "b_enc": (20,), "b_dec": (d_out,)}
    return SAE(cfg, {name: torch.randn(shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
def test_what_is_left_restores_the_input(normalisation):
    one, x = sae(normalize_activations=normalisation), torch.randn(9, 6)
    x[4] = 0.1 * torch.ones(6) + 1e-3 * torch.randn(6)
    codes = one.encode_sparse(x)
    left = one.unexplained(x, codes)
    normalised, restore = one._normalise(x)
    dense = one.encode(x)
    assert torch.allclose(left, normalised - one.b_dec - dense @ one.W_dec, atol=1e-4)
    assert torch.allclose(restore(left + dense @ one.W_dec + one.b_dec), x, atol=1e-4)


def test_silent_tokens_are_left_whole():
    one = sae()
    one.b_enc.fill_(-1e6)
    x = torch.randn(3, 6)
    assert torch.allclose(one.unexplained(x, one.encode_sparse(x)), x - one.b_dec)


def test_a_transcoder_has_no_left_over():
    one, x = sae(d_out=4), torch.randn(2, 6)
    with pytest.raises(AutointerpError, match="writes elsewhere"):
        one.unexplained(x, one.encode_sparse(x))
