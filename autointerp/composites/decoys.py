"""What may chance do in this dictionary? Asked of decoys: latents turned round, which are no sums.

A row's opposite is as near to the others as chance makes it, in any spectrum that is alike on both sides. What the
check flags of opposites, it flags by chance. This is asked where the rows had outlier dimensions (`maps.flattener`):
there the closed nulls of `nulls` may not hold, for example under a spectrum that falls as i^-2. Sums count from the R²
on that decoys hardly reach, as knockoffs set a level for variables (Barber and Candès 2015).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autointerp.composites.decompose import decompose
from autointerp.composites.labels import sums
from autointerp.composites.neighbours import Rows, search

if TYPE_CHECKING:
    import numpy as np
    import torch

    from autointerp.composites.maps import Geometries

DECOYS = 4096
CHANCE = 0.01  # most of the flags that may be chance


def least_r2(chance: np.ndarray, each: float, flagged: np.ndarray) -> float:
    """The R² above which sums count: above it `CHANCE` of them at most are chance. 0 where all of them count.

    `chance` [k] are those of the decoys that are sums, each of which stands for `each` latents, `flagged` [f] the
    latents'.
    """

    def few(level: float) -> bool:
        return each * float((chance > level).sum()) <= CHANCE * float((flagged > level).sum())

    return next(level for level in (0.0, *sorted(chance.tolist())) if few(level))


def sums_by_chance(rows: Geometries, firsts: torch.Tensor, m: int, block: int) -> tuple[np.ndarray, float]:
    """R² of the decoys that are sums [k], and how many latents a decoy stands for. `firsts` [n] bool may be
    constituents, `m` candidates are tried for each."""
    import numpy as np
    import torch

    possible = firsts.nonzero().squeeze(1)
    if not len(possible):
        return np.zeros(0), 1.0
    asked = possible[torch.linspace(0, len(possible) - 1, min(DECOYS, len(possible))).long().to(possible.device)]
    raw = rows.raw
    decoys = rows.of_others(Rows([*raw.sources, -raw[asked].cpu()], raw.device, raw.room))
    queries = torch.arange(len(raw), len(raw) + len(asked), device=possible.device)
    allowed = torch.cat([firsts, torch.zeros_like(firsts[: len(asked)])])
    lists, _ = search(decoys.white, allowed, queries, m, block)
    along, candidates = decoys.along_mean(), len(possible) - 1
    fits = decompose(decoys.plain, decoys.white, along, queries, lists, candidates, rows.dimensions, block)
    return fits.r2[sums(fits)].cpu().numpy(), len(possible) / len(asked)
