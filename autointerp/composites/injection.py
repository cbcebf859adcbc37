"""Positive control of the composite check: sums of a dictionary's own latents are added to it; does the check see them?

1. `plant_among`: rows made of the dictionary's own, with residuals of its own covariance, as trained latents have them:
   sums of two; as many with one constituent that no dictionary holds (these are no sums for the check); and circles.
2. `inject`: the check runs on the dictionary with them. An own row that is flagged only now is a false flag too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autointerp.composites.check import table_of
from autointerp.composites.labels import FLAGGED
from autointerp.composites.maps import whitener
from autointerp.composites.neighbours import BLOCK, MEMORY, Rows, as_matrix, full_precision, not_zero, unit
from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

NOISES = (0.1, 0.2, 0.3, 0.4)  # norms of the residuals, beside 1; each as often
RATIO = (0.35, 1.0)  # of the two coefficients
CIRCLES = (7, 12)  # rows of each


@dataclass(frozen=True)
class Injected:
    """What the check made of rows whose truth is known."""

    sums: int
    recovered: int  # of the sums: flagged
    exact: int  # of the recovered: with both constituents
    recovered_by_noise: dict[float, int]  # norm of the residual -> how many of sums / len(NOISES)
    false_flags: int  # circles, sums of a missing constituent, and own rows flagged only now
    on_circles: int
    labelled_subspace: int  # of those on circles

    @property
    def recall(self) -> float:
        return self.recovered / self.sums

    @property
    def precision(self) -> float | None:
        """Of what is flagged for the added rows, the share that are sums; None where nothing is flagged."""
        flagged = self.recovered + self.false_flags
        return self.recovered / flagged if flagged else None


def inject(
    W_dec: np.ndarray | torch.Tensor,
    table: pd.DataFrame,
    count: int,
    *,
    neighbours: int = 32,
    seed: int = 0,
    device: str | torch.device = "cpu",
    block: int = BLOCK,
    memory: int = MEMORY,
) -> Injected:
    """Check `W_dec` [n, d] again with `count` sums of its own latents among its rows, in all `len(NOISES)` residuals.

    `table` is what `find_composites(W_dec)` says. Latents that it calls dead are left out, and constituents are none
    of duplicates, of composites or of subspaces. The other arguments are `find_composites`'.

    Raises AutointerpError where fewer than four latents may be constituents.
    """
    import numpy as np
    import torch

    alive = torch.tensor((table["label"] != "dead").tolist())
    own = np.flatnonzero(table["label"].isin(["atomic", "split_child", "parent_of_children"]))
    if len(own) < 4:
        raise AutointerpError(f"{len(own)} latents of this dictionary may be constituents of sums; --inject needs 4")
    n, wanted = len(alive), -(-count // len(NOISES)) * len(NOISES)
    with full_precision(), torch.inference_mode():
        W = as_matrix(W_dec)
        planted, parts = plant_among(Rows([W], device, memory), alive, own, wanted, seed)
        Z = Rows([W, planted], device, memory)
        living = not_zero(Z)
        living[:n] &= alive.to(living.device)
        again = table_of(Z, living, len(Z), neighbours, block)
    flagged = again["label"].isin(FLAGGED).to_numpy(bool)
    before = table["label"].isin(FLAGGED).to_numpy(bool)
    seen = flagged[n : n + wanted]
    names = again["constituents"].tolist()
    circles = slice(n + 2 * wanted, None)
    return Injected(
        sums=wanted,
        recovered=int(seen.sum()),
        exact=sum(set(names[n + i]) == set(parts[i].tolist()) for i in np.flatnonzero(seen)),
        recovered_by_noise={noise: int(seen[i :: len(NOISES)].sum()) for i, noise in enumerate(NOISES)},
        false_flags=int(flagged[n + wanted :].sum() + (flagged[:n] & ~before).sum()),
        on_circles=sum(CIRCLES),
        labelled_subspace=int(np.sum(again["label"].to_numpy()[circles] == "subspace")),
    )


def plant_among(
    Z: Rows, living: torch.Tensor, own: np.ndarray, count: int, seed: int
) -> tuple[torch.Tensor, np.ndarray]:
    """Unit rows [2 count + circles, d] of `inject`, and the constituents [count, 2] of the first `count`."""
    import numpy as np
    import torch

    rng = np.random.default_rng(seed % 2**64)
    L = whitener(Z, living.to(Z.device)).float().cpu()

    def others(rows: int) -> torch.Tensor:
        """Directions of the dictionary's own covariance."""
        return unit(torch.from_numpy(rng.standard_normal((rows, len(L)))).float() @ L.T)

    def tilted(rows: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Unit `rows` with so much of another direction, orthogonal to them."""
        other = others(len(rows))
        return unit(rows + noise[:, None] * unit(other - (other * rows).sum(1, keepdim=True) * rows))

    parts = np.stack([rng.choice(own, 2, replace=False) for _ in range(2 * count)])
    rows = Z[torch.from_numpy(parts.ravel()).to(Z.device)].cpu().view(2 * count, 2, -1)
    rows[count:, 1] = others(count)
    weights = torch.from_numpy(rng.uniform(*RATIO, 2 * count)).float()
    noise = torch.tensor(NOISES).repeat(2 * count // len(NOISES))
    planted = [tilted(unit(rows[:, 0] + weights[:, None] * rows[:, 1]), noise)]
    for size in CIRCLES:
        plane = torch.linalg.qr(others(2).T).Q.T
        angles = 2 * torch.pi * torch.arange(size) / size
        places = torch.stack([angles.cos(), angles.sin()], 1)
        planted.append(tilted(places @ plane, torch.full((size,), NOISES[0])))
    return torch.cat(planted), parts[:count]
