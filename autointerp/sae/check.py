"""Check a loaded SAE against activations: L0, explained variance, and the likely cause where they look wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    from torch import Tensor

    from autointerp.sae.model import SAE


CONTEXT = 128  # tokens a row


@dataclass(frozen=True)
class SaeCheck:
    l0: float  # active latents a token
    explained_variance: float  # 1 − Σ‖x − x̂‖² / Σ‖x − mean(x)‖²
    dead_fraction: float  # of latents, silent on all these tokens
    tokens: int
    warnings: tuple[str, ...]


def require_width(sae: SAE, d: int, hook: str) -> None:
    """Raise an AutointerpError unless the SAE reads vectors of width `d`, the width at `hook`."""
    if sae.cfg.d_in != d:
        trained = (
            f" (trained on {sae.cfg.model_name or 'a model it does not name'}, {sae.cfg.hook_name or 'hook unknown'})"
        )
        raise AutointerpError(
            f"the SAE reads vectors of {sae.cfg.d_in} numbers{trained}, {hook} of this model has {d}: "
            "name the subject.model and subject.hook that the SAE was trained on"
        )


@torch.no_grad()
def check_sae(sae: SAE, activations: Tensor, outputs: Tensor | None = None, *, batch: int = 1024) -> SaeCheck:
    """Encode and decode a few thousand activations [n, d_in]. A transcoder is measured against `outputs` [n, d_out].

    Of a temporal SAE, whose codes depend on the tokens before, a batch is a row of text.
    """
    if sae.is_contextual:
        batch = CONTEXT
    if activations.ndim != 2 or len(activations) == 0:
        raise AutointerpError(f"check_sae needs activations [n, d_in], got the shape {tuple(activations.shape)}")
    require_width(sae, activations.shape[1], "these activations")
    if sae.cfg.d_out is not None and outputs is None:
        raise AutointerpError("this SAE is a transcoder: give check_sae the outputs it should predict")
    target = activations if outputs is None else outputs
    device = sae.W_dec.device
    mean = target.double().mean(0).to(device)
    active, residual, total = 0, 0.0, 0.0
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=device)
    for x, y in zip(activations.split(batch), target.split(batch)):
        x, y = x.to(device), y.to(device)
        codes = sae.encode(x)
        on = codes > 0
        active += int(on.sum())
        fired |= on.any(0)
        residual += float((sae.decode(codes, x).double() - y.double()).square().sum())
        total += float((y.double() - mean).square().sum())
    l0 = active / len(activations)
    explained = 1 - residual / total if total > 0 else math.nan
    dead = 1 - float(fired.double().mean())
    return SaeCheck(l0, explained, dead, len(activations), _warnings(sae, activations, l0, explained))


def _warnings(sae: SAE, x: Tensor, l0: float, explained: float) -> tuple[str, ...]:
    found: list[str] = []
    cfg = sae.cfg
    norms = x.float().norm(dim=-1)
    outliers = norms > 10 * norms.median()
    if not explained >= 0.3:
        likely = []
        if outliers.any() and float(norms[outliers].square().sum() / norms.square().sum()) > 0.5:
            likely.append(
                f"{int(outliers.sum())} vectors of more than ten times the median length hold most of the variance: "
                "BOS tokens, which most SAEs were not trained on"
            )
        centre = x.float().mean(0)
        spread = (x.float() - centre).norm(dim=-1).mean()
        if not cfg.apply_b_dec_to_input and float(centre.norm()) > float(spread) and cfg.d_out is None:
            likely.append(
                "the inputs are far from centred and b_dec is not subtracted before encoding: b_dec convention"
            )
        bias = float(sae.b_dec.float().norm())
        if (
            cfg.d_out is None
            and bias > 0
            and not 0.2 < float(centre.norm()) / bias < 5
            and float(centre.norm()) > spread
        ):
            likely.append("b_dec is of another size than the mean input: input normalisation, or another hook")
        if cfg.hook_name is not None:
            likely.append(f"a hook other than {cfg.hook_name}, or another model than {cfg.model_name or 'unknown'}")
        else:
            likely.append("the hook, which the checkpoint does not name")
        if cfg.dtype != "float32":
            likely.append(f"dtype: the weights were stored as {cfg.dtype}")
        found.append(f"explained variance is {explained:.2f}; likely: " + "; ".join(likely))
    if cfg.k is not None and not 0.5 * cfg.k <= l0 <= 1.5 * cfg.k:
        found.append(
            f"L0 is {l0:.1f}, trained for {cfg.k}: pre-activations of the wrong size or sign, as of another hook, "
            "another input normalisation, or BOS tokens"
        )
    elif l0 < 1:
        found.append(f"L0 is {l0:.2f}: almost nothing fires, as after the wrong input normalisation or hook")
    elif l0 > 0.3 * cfg.d_sae:
        found.append(
            f"L0 is {l0:.0f} of {cfg.d_sae} latents: not sparse, as after the wrong input normalisation or hook"
        )
    return tuple(found)
