"""What the directions of a dictionary look like, each figure beside the same of two nulls."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from autointerp.composites import nulls
from autointerp.composites.neighbours import BLOCK, as_tensor, search, unit_rows

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
    bins: int = 100,
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

    Z = unit_rows([as_tensor(W_dec)], device, block)
    Z = Z[(Z != 0).any(1)]
    n, d = Z.shape
    edges = np.linspace(-1, 1, bins + 1)
    rows, mmcs = [], {}
    hubs = pd.DataFrame()
    for name in ("dictionary", "random", "covariance"):
        if name == "random":
            held = nulls.random_directions(n, d, seed).to(Z.device)
        else:
            held = Z if name == "dictionary" else nulls.matched_directions(Z, n, seed)
        asked = torch.arange(n if name == "dictionary" else min(n, sample), device=Z.device)
        index, cosines = search(held, torch.ones(n, dtype=torch.bool, device=Z.device), asked, max(RANKS), block)
        found = cosines.cpu().numpy()
        mmcs[name] = float(found[np.isfinite(found[:, 0]), 0].mean()) if n > 1 else float("nan")
        for rank in RANKS:
            values = found[:, rank - 1]
            counts, _ = np.histogram(values[np.isfinite(values)], edges)
            scaled = counts * (n / max(len(asked), 1))
            rows.append(
                pd.DataFrame(
                    {"dictionary": name, "rank": rank, "low": edges[:-1], "high": edges[1:], "latents": scaled}
                )
            )
        if name == "dictionary":
            hubs = hub_bands(index[:, 0].cpu().numpy(), found[:, 0])
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
    return pd.DataFrame(rows)


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

    own, rest = as_tensor(W), as_tensor(other, "other")
    both = unit_rows([own, rest], device, block)
    allowed = (both != 0).any(1) & (torch.arange(len(both), device=both.device) >= len(own))
    index, cosines = search(both, allowed, torch.arange(len(own), device=both.device), 1, block)
    return torch.where(index[:, 0] >= 0, index[:, 0] - len(own), -1), cosines[:, 0]


def distinct_share(W: np.ndarray | torch.Tensor, other: np.ndarray | torch.Tensor) -> float:
    """The fraction of W's rows whose highest cosine to `other` is below .2."""
    return float((highest_to(W, other)[1] < DISTINCT).float().mean())
