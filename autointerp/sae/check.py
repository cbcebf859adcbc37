"""Check a loaded SAE against activations: L0, explained variance, and the likely cause where they look wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from autointerp.activations.outliers import is_outlying
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
    tokens: int  # those of outlying norm are not among them
    warnings: tuple[str, ...]
    outlying: int  # activations of outlying norm
    with_outliers: tuple[float, float]  # L0 and explained variance where these count too


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


def bos_warning(sae: SAE, bos_id: int | None) -> str | None:
    """Where the SAE was trained with a BOS in front of each row, and the text has none, or the other way about."""
    wanted = sae.cfg.prepend_bos
    if wanted is None or wanted == (bos_id is not None):
        return None
    trained, text = ("with", "none") if wanted else ("without", "one")
    advice = f"set corpus.bos: {str(wanted).lower()}"
    return f"it was trained {trained} a BOS in front of each row, and this text has {text}: {advice}"


@torch.no_grad()
def check_sae(
    sae: SAE,
    activations: Tensor,
    outputs: Tensor | None = None,
    *,
    outlier_threshold: float | None = None,
    batch: int = 1024,
) -> SaeCheck:
    """Encode and decode a few thousand activations [n, d_in]. A transcoder is measured against `outputs` [n, d_out].

    Activations of a norm above `outlier_threshold` (`activations.outliers`) count in `with_outliers` alone. Of a
    temporal SAE, whose codes depend on the tokens before, a batch is a row of text. Raises AutointerpError for shapes
    that do not fit, and where all activations are outlying.
    """
    if sae.is_contextual:
        batch = CONTEXT
    if activations.ndim != 2 or len(activations) == 0:
        raise AutointerpError(f"check_sae needs activations [n, d_in], got the shape {tuple(activations.shape)}")
    require_width(sae, activations.shape[1], "these activations")
    if sae.cfg.d_out is not None and outputs is None:
        raise AutointerpError("this SAE is a transcoder: give check_sae the outputs it should predict")
    target = activations if outputs is None else outputs
    usual = torch.ones(len(activations), dtype=torch.bool, device=activations.device)
    if outlier_threshold is not None:
        usual = ~is_outlying(activations, outlier_threshold)
    apart = int((~usual).sum())
    if apart == len(usual):
        raise AutointerpError(
            f"all {apart} activations have a norm above {outlier_threshold:g}: raise sae.outlier_norm"
        )
    sums = _sums(sae, activations, target, usual, batch)
    x, y = (activations[usual], target[usual]) if apart else (activations, target)
    l0, explained = sums.active / len(x), _explained(sums.residual, y)
    both = (l0, explained)
    if apart:
        both = (sums.active + sums.active_apart) / len(usual), _explained(sums.residual + sums.residual_apart, target)
    dead = 1 - float(sums.fired.double().mean())
    return SaeCheck(l0, explained, dead, len(x), _warnings(sae, x, l0, explained), apart, both)


@dataclass
class _Sums:
    fired: Tensor  # [latents] bool, without what is outlying
    active: int = 0
    residual: float = 0.0
    active_apart: int = 0  # of what is outlying
    residual_apart: float = 0.0


def _sums(sae: SAE, activations: Tensor, target: Tensor, usual: Tensor, batch: int) -> _Sums:
    """Batch by batch, each encoded whole: codes of a temporal SAE depend on their neighbours."""
    device = sae.W_dec.device
    sums = _Sums(torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=device))
    for x, y, counts in zip(activations.split(batch), target.split(batch), usual.to(device).split(batch)):
        x, y = x.to(device), y.to(device)
        codes = sae.encode(x)
        error = (sae.decode(codes, x).double() - y.double()).square()
        on = codes > 0
        if not bool(counts.all()):
            sums.active_apart += int(on[~counts].sum())
            sums.residual_apart += float(error[~counts].sum())
            on, error = on[counts], error[counts]
        sums.active += int(on.sum())
        sums.fired |= on.any(0)
        sums.residual += float(error.sum())
    return sums


def _explained(residual: float, target: Tensor) -> float:
    mean = target.double().mean(0)
    total = sum(float((y.double() - mean).square().sum()) for y in target.split(1024))
    return 1 - residual / total if total > 0 else math.nan


def _warnings(sae: SAE, x: Tensor, l0: float, explained: float) -> tuple[str, ...]:
    faults: list[str] = []
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
        faults.append(f"explained variance is {explained:.2f}; likely: " + "; ".join(likely))
    if cfg.k is not None and not 0.5 * cfg.k <= l0 <= 1.5 * cfg.k:
        faults.append(
            f"L0 is {l0:.1f}, trained for {cfg.k}: pre-activations of the wrong size or sign, as of another hook, "
            "another input normalisation, or BOS tokens"
        )
    elif l0 < 1:
        faults.append(f"L0 is {l0:.2f}: almost nothing fires, as after the wrong input normalisation or hook")
    elif l0 > 0.3 * cfg.d_sae:
        faults.append(
            f"L0 is {l0:.0f} of {cfg.d_sae} latents: not sparse, as after the wrong input normalisation or hook"
        )
    return tuple(faults)
