"""Geometry of a dictionary: mean highest cosines (MMCS), hubs, distinct latents, each beside two nulls."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from autointerp.composites import nulls
from autointerp.composites.maps import whitener
from autointerp.composites.neighbours import BLOCK, Rows, as_matrix, full_precision, not_zero, search
from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

RANKS = (1, 10, 100)
BANDS = (-1.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.95, 1.0 + 1e-6)
DISTINCT = 0.2


@dataclass(frozen=True)
class Geometry:
    """`profile`: a row for (dictionary, rank, bin): how many latents have their rank-th highest cosine in it.
    `mmcs`: dictionary -> mean of the highest cosine. `hubs`: a row for a band of the highest cosine."""

    profile: pd.DataFrame
    mmcs: dict[str, float]
    hubs: pd.DataFrame


def geometry(
    W_dec: np.ndarray | torch.Tensor,
    *,
    seed: int = 0,
    sample: int = 4096,
    bins: int = 200,
    device: str | torch.device = "cpu",
    block: int = BLOCK,
) -> Geometry:
    """Histograms of each latent's highest, 10th and 100th cosine, MMCS and hubs; zero rows are left out.

    The nulls have as many rows: "random" directions, and "covariance", Gaussian directions of W_dec's own
    second moment. Of a null only `sample` rows are looked up, and the counts scaled.
    """
    import numpy as np
    import pandas as pd
    import torch

    edges = np.linspace(-1, 1, bins + 1)
    rows, mmcs = [], {}
    hubs = pd.DataFrame()
    Z = Rows([as_matrix(W_dec)], device)
    with full_precision(), torch.inference_mode():
        living = not_zero(Z)
        n, d = int(living.sum()), Z.shape[1]
        L = whitener(Z, living)
    for name in ("dictionary", "random", "covariance"):
        if name == "dictionary":
            among, allowed, asked = Z, living, living.nonzero().squeeze(1)
        else:
            among = Rows([nulls.random_directions(n, d, seed, L if name == "covariance" else None)], device)
            allowed = torch.ones(n, dtype=torch.bool, device=Z.device)
            asked = torch.arange(min(n, sample), device=Z.device)
        with full_precision(), torch.inference_mode():
            index, cosines = search(among, allowed, asked, max(RANKS), block)
        reached = cosines.cpu().numpy()
        mmcs[name] = float(reached[:, 0].mean()) if n > 1 else float("nan")
        for rank in RANKS:
            values = reached[:, rank - 1]
            counts, _ = np.histogram(values[np.isfinite(values)], edges)
            scaled = counts * (n / max(len(asked), 1))
            rows.append(
                pd.DataFrame(
                    {"dictionary": name, "rank": rank, "low": edges[:-1], "high": edges[1:], "latents": scaled}
                )
            )
        if name == "dictionary":
            hubs = hub_bands(index[:, 0].cpu().numpy(), reached[:, 0])
    return Geometry(pd.concat(rows, ignore_index=True), mmcs, hubs)


def hub_bands(nearest: np.ndarray, cosine: np.ndarray) -> pd.DataFrame:
    """For each band of the highest cosine: how many latents, how many different nearest rows they name
    between them, the most that name one row, and that row. nearest and cosine [n]; -1: has none."""
    import numpy as np
    import pandas as pd

    rows = []
    for low, high in pairwise(BANDS):
        inside = nearest[(nearest >= 0) & (cosine >= low) & (cosine < high)]
        named, counts = np.unique(inside, return_counts=True)
        top = int(counts.argmax()) if len(named) else None
        rows.append(
            {
                "low": low,
                "high": min(high, 1.0),
                "latents": len(inside),
                "nearest_rows": len(named),
                "largest_hub": 0 if top is None else int(counts[top]),
                "hub": None if top is None else int(named[top]),
            }
        )
    return pd.DataFrame(rows).astype({"hub": "Int64"})


def highest_to(
    W: np.ndarray | torch.Tensor,
    other: np.ndarray | torch.Tensor,
    *,
    device: str | torch.device = "cpu",
    block: int = BLOCK,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest row of `other` [u, d] for each row of W [n, d] and its cosine, [n] each.

    The mean cosine is the MMCS of W to `other`; a latent below .2 is distinct: the other SAE has none like it.
    """
    import torch

    own, rest = as_matrix(W), as_matrix(other, "other")
    if own.shape[1] != rest.shape[1]:
        raise AutointerpError(f"other has rows of width {rest.shape[1]}, W of {own.shape[1]}: other activations")
    both = Rows([own, rest], device)
    with full_precision(), torch.inference_mode():
        asked = torch.arange(len(both), device=both.device)
        allowed = not_zero(both) & (asked >= len(own))
        if not allowed.any():
            raise AutointerpError("other has no direction: all its rows are zero")
        index, cosines = search(both, allowed, asked[: len(own)], 1, block)
    return index[:, 0] - len(own), cosines[:, 0].clone()


@dataclass(frozen=True)
class Other:
    """Beside another dictionary: the mean highest cosine to it, and the share of latents with none above .2."""

    mmcs: float
    distinct: float


def beside(
    W: np.ndarray | torch.Tensor, other: np.ndarray | torch.Tensor, *, device: str | torch.device = "cpu"
) -> Other:
    """How W's rows lie beside those of `other`; zero rows do not count."""
    import torch

    _, cosines = highest_to(W, other, device=device)
    with torch.inference_mode():
        known = cosines[not_zero(Rows([as_matrix(W)], device))]
    return Other(float(known.mean()), float((known < DISTINCT).float().mean()))
