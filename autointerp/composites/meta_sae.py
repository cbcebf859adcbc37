"""A meta-SAE: a small SAE trained on the decoder directions of another."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass

import torch

from autointerp.sae.check import check_sae
from autointerp.sae.source import ArraySource
from autointerp.sae.train import train_sae
from autointerp.sae.train_config import TrainConfig

META_K, META_NARROWER = 4, 4  # k, and a quarter as wide as the dictionary: 2509.22033
META_BATCH = 512


@dataclass(frozen=True)
class MetaSae:
    """A TopK SAE of k = 4 and a quarter of the width, trained on unit rows: the more it explains, the more
    directions are sums of a few shared ones (2502.04878)."""

    explained_variance: float  # 1 − Σ‖row − its reconstruction‖² / Σ‖row − mean row‖², over the rows it learned from
    dead_fraction: float  # of its latents, used by no row


def meta_sae(rows: torch.Tensor, passes: int, seed: int, device: str) -> MetaSae:
    """Train one on unit `rows` [n, d], `passes` times over, and measure it on the same rows."""
    batch = min(META_BATCH, len(rows))
    width = max(len(rows) // META_NARROWER, 2)
    wanted = {
        "architecture": "topk",
        "d_sae": width,
        "k": min(META_K, width),
        "tokens": max(passes * len(rows), batch),
        "batch_size": batch,
        "lr": 4 * 2e-4 / math.sqrt(width / 2**14),  # 2406.04093's rule is for many more samples than these
        "seed": seed,
        "checkpoint_every": 10**9,  # in minutes it is done
    }
    config = TrainConfig.model_validate(wanted)
    with tempfile.TemporaryDirectory() as folder:
        sae = train_sae(ArraySource(rows.numpy()), config, folder, device=device)
    check = check_sae(sae, rows)
    return MetaSae(check.explained_variance, check.dead_fraction)
