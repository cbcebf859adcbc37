"""The geometry of a dictionary as figures and pictures: its directions beside those of two nulls, and its meta-SAE."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.artifacts import write_atomically
from autointerp.composites import geometry as directions
from autointerp.composites import nulls
from autointerp.composites.neighbours import Rows, as_matrix, not_zero
from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    import numpy as np
    import torch

log = logging.getLogger("autointerp")

META_K, META_NARROWER = 4, 4  # k, and a quarter as wide as the dictionary: 2509.22033
META_BATCH = 512


@dataclass(frozen=True)
class MetaSae:
    """A TopK SAE of k = 4 and a quarter of the width, trained on unit rows: the more it explains, the more
    directions are sums of a few shared ones (2502.04878)."""

    explained_variance: float  # 1 − Σ‖row − its reconstruction‖² / Σ‖row − mean row‖², over the rows it learned from
    dead_fraction: float  # of its latents, used by no row


@dataclass(frozen=True)
class GeometryReport:
    latents: int  # that are a direction: zero rows are left out
    width: int
    mmcs: dict[str, float]  # dictionary, random, covariance -> mean of the highest cosine
    meta_sae: dict[str, MetaSae] | None  # of the same three
    other: directions.Other | None
    hubs: list[dict[str, Any]]
    profile: list[dict[str, Any]]


def geometry_report(
    W_dec: np.ndarray | torch.Tensor,
    out: Path,
    *,
    other: np.ndarray | torch.Tensor | None = None,
    meta_passes: int = 50,
    seed: int = 0,
    device: str = "cpu",
) -> GeometryReport:
    """Write ``geometry.json`` and ``geometry.png`` into the folder `out`.

    Args:
        W_dec: decoder rows [n, d].
        other: [u, d], another dictionary of the same activations.
        meta_passes: over the rows, in training each meta-SAE; 0: none.

    Raises:
        AutointerpError: these are no matrices of finite floats of one width, or fewer than 8 rows are directions.
    """
    import torch

    from autointerp.report.geometry import draw

    found = directions.geometry(W_dec, seed=seed, device=device)
    rows = Rows([as_matrix(W_dec)], device)
    with torch.inference_mode():
        living = not_zero(rows)
        n, d = int(living.sum()), rows.shape[1]
        if n < 8:
            raise AutointerpError(f"{n} of {len(rows)} rows are directions: too few for a report of their geometry")
        L = nulls.whitener(rows, living).cpu()
    meta = None
    if meta_passes:
        meta = {
            name: _meta_sae(made(), meta_passes, seed, device)
            for name, made in {
                "dictionary": lambda: rows[living.nonzero().squeeze(1)].cpu(),
                "random": lambda: nulls.random_directions(n, d, seed + 1),
                "covariance": lambda: nulls.random_directions(n, d, seed + 1, L),
            }.items()
        }
    beside = None if other is None else directions.beside(W_dec, other, device=device)
    hubs, profile = (json.loads(str(table.to_json(orient="records"))) for table in (found.hubs, found.profile))
    report = GeometryReport(n, d, found.mmcs, meta, beside, hubs, profile)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(report), indent=1) + "\n"
    write_atomically(out / "geometry.json", lambda path: path.write_text(text))
    write_atomically(out / "geometry.png", lambda path: draw(out / "geometry.json", path))
    return report


def _meta_sae(rows: torch.Tensor, passes: int, seed: int, device: str) -> MetaSae:
    from autointerp.sae import ArraySource, TrainConfig, check_sae, train_sae

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
