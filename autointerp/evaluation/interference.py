"""Interference: how much a dictionary's directions disturb each other, and how many active features that allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SIGNAL_TO_NOISE = 2.0


def interference_figures(W_dec: torch.Tensor, alive: torch.Tensor) -> list[dict[str, Any]]:
    """Rows of evaluation.parquet, over the unit rows v_i of W_dec [n, d] that are `alive` [n] bool.

    interference_rms: root mean square of v_i·v_j over pairs i ≠ j, exact through ‖VᵀV‖_F² without the n × n matrix.
    interference_random: 1/√d, that of random directions.
    interference_capacity: read along v_i, k other latents of the same positive activation add noise whose mean square
    is k · v + k² · μ² to a signal of 1, with μ and v the mean and variance of v_i·v_j: a shared direction adds up.
    Signal over noise stays above 2 up to the k where that is 1/4; with the latent itself, k + 1 may be active at one
    time. For random directions that is d/4 + 1. Compare with l0.
    """
    V = W_dec[alive].double()
    norms = V.norm(dim=1)
    V = V[norms > 0] / norms[norms > 0, None]
    n, d = V.shape
    if n < 2:
        note = "fewer than two of the latents that fire have a direction"
        return [{"metric": f"interference_{name}", "value": None, "n": n, "note": note} for name in ("rms", "capacity")]
    square = max(float((V.T @ V).square().sum() - n) / (n * (n - 1)), 0.0)
    shared = float((V.sum(0).square().sum() - n) / (n * (n - 1))) ** 2
    variance, allowed = max(square - shared, 0.0), SIGNAL_TO_NOISE**-2
    # the positive root of shared · k² + variance · k = allowed, in the form that holds for shared = 0
    root = variance + (variance**2 + 4 * shared * allowed) ** 0.5
    capacity = 2 * allowed / root + 1 if square else None
    rows = {"rms": square**0.5, "random": d**-0.5, "capacity": capacity}
    return [
        {
            "metric": f"interference_{name}",
            "value": value,
            "n": n,
            "note": "orthogonal: no limit" if value is None else None,
        }
        for name, value in rows.items()
    ]
