"""check_sae: the figures of SAEs whose quality is known, and warnings that name the cause."""

from __future__ import annotations

import pytest
import torch

from autointerp.errors import AutointerpError
from autointerp.sae import SAE, SAEConfig, check_sae, require_width
from autointerp.sae.check import bos_warning

D, N, K = 16, 32, 2


def perfect(**options: object) -> tuple[SAE, torch.Tensor]:
    """An SAE of orthonormal directions and their negatives, and activations made of two of them each."""
    torch.manual_seed(0)
    directions = torch.linalg.qr(torch.randn(D, D)).Q
    decoder = torch.cat([directions, -directions])
    offset = 3 * torch.randn(D)
    tensors = {"W_enc": decoder.T.clone(), "W_dec": decoder, "b_enc": torch.zeros(N), "b_dec": offset}
    facts = {"architecture": "topk", "d_in": D, "d_sae": N, "source_format": "saelens", "dtype": "float32", "k": K,
             "apply_b_dec_to_input": True, "hook_name": "blocks.3.hook_resid_post"} | options  # fmt: skip
    x = offset + torch.stack([decoder[torch.randperm(D)[:2]].sum(0) for _ in range(400)])
    return SAE(SAEConfig(**facts), tensors), x  # type: ignore[arg-type]


def test_a_perfect_sae_explains_everything_without_a_warning() -> None:
    sae, x = perfect()
    check = check_sae(sae, x)
    assert check.explained_variance == pytest.approx(1, abs=1e-6)
    assert check.l0 == pytest.approx(2, abs=0.01)
    assert check.dead_fraction == pytest.approx(0.5)
    assert check.warnings == ()


def test_a_zero_sae_explains_nothing_more_than_the_mean() -> None:
    sae, x = perfect()
    sae.W_dec.zero_()
    sae.b_dec.copy_(x.mean(0))
    assert check_sae(sae, x).explained_variance == pytest.approx(0, abs=1e-6)


def test_the_wrong_hook_is_named_with_the_one_it_was_trained_on() -> None:
    sae, x = perfect()
    (warning,) = check_sae(sae, 5 * torch.randn_like(x)).warnings
    assert "explained variance" in warning
    assert "blocks.3.hook_resid_post" in warning


def test_a_forgotten_b_dec_is_named() -> None:
    sae, x = perfect(apply_b_dec_to_input=False)
    assert any("b_dec convention" in warning for warning in check_sae(sae, x).warnings)


def test_bos_tokens_are_named() -> None:
    sae, x = perfect()
    x[::20] = 400 * sae.W_dec[:D].sum(0)
    assert any("BOS" in warning for warning in check_sae(sae, x).warnings)


@pytest.mark.parametrize(
    ("trained_with", "bos_id", "advice"),
    [(True, None, "corpus.bos: true"), (False, 1, "corpus.bos: false"), (True, 1, None), (None, None, None)],
)
def test_a_text_without_the_bos_of_the_training_is_named(
    trained_with: bool | None, bos_id: int | None, advice: str | None
) -> None:
    warning = bos_warning(perfect(prepend_bos=trained_with)[0], bos_id)
    assert (warning is None) == (advice is None)
    assert advice is None or (warning or "").endswith(advice)


def test_an_l0_far_from_k_is_named() -> None:
    sae, x = perfect(architecture="relu", k=K)
    sae.b_enc.fill_(0.5)
    assert any(warning.startswith("L0 is") for warning in check_sae(sae, x).warnings)


def test_another_width_is_refused_with_what_to_do() -> None:
    sae, _ = perfect(model_name="gpt2")
    with pytest.raises(AutointerpError, match=r"vectors of 16 numbers \(trained on gpt2.*blocks\.1\.hook.* has 24"):
        require_width(sae, 24, "blocks.1.hook_resid_post")
    with pytest.raises(AutointerpError, match="16 numbers"):
        check_sae(sae, torch.zeros(3, 24))
    require_width(sae, D, "x")


def test_a_transcoder_is_measured_against_its_target() -> None:
    sae, x = perfect(d_out=D, apply_b_dec_to_input=False)
    with pytest.raises(AutointerpError, match="outputs"):
        check_sae(sae, x)
    assert check_sae(sae, x - sae.b_dec, x).explained_variance == pytest.approx(1, abs=1e-6)
