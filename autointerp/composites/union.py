"""Union dictionary: the constituents that another SAE lends, as latents of a second harvest of the same text.

Directions alone cannot say whether they are constituents. A wider SAE may hold a latent's two parts, which are both on
where it is; or it may have split the latent into two that exclude each other, and whose sum it is all the same. So they
are put to the tests that own constituents are put to. Row u of the union is latent ``d_sae + u`` wherever latents of
both are spoken of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from autointerp.composites.check import DUPLICATE
from autointerp.composites.evidence import CONFIRM_SHARE, CONFIRM_TOKENS
from autointerp.composites.labels import FLAGGED
from autointerp.composites.neighbours import top_neighbours

if TYPE_CHECKING:
    import torch

    from autointerp.artifacts import Firings, FiringsInfo

Frame: TypeAlias = Any  # a pandas.DataFrame


class Harvested:
    """The firings of the SAE, and of the union dictionary where there is one; as `artifacts.Firings`."""

    def __init__(self, own: Firings, union: Firings | None = None) -> None:
        self._own, self._union = own, union
        self.info: FiringsInfo = own.info
        self.counts = own.counts if union is None else np.concatenate([own.counts, union.counts])

    def of(self, latents: Sequence[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """latent -> (positions [n] int64 rising, activations [n] float32)."""
        n = len(self._own.counts)
        fired = self._own.of([latent for latent in latents if latent < n])
        theirs = [latent - n for latent in latents if latent >= n]
        if self._union is not None and theirs:
            fired |= {n + row: fires for row, fires in self._union.of(theirs).items()}
        return fired


def lends(table: Frame) -> bool:
    """Whether a flagged latent of `table` (of `find_composites`) has constituents of the union dictionary."""
    return bool((table["label"].isin(FLAGGED) & (table["union_constituents"].map(len) > 0)).any())


def parts_of(row: Mapping[str, Any], d_sae: int) -> list[int]:
    """The constituents that a row of composites.parquet names, of both dictionaries."""
    return [*map(int, row["constituents"]), *(d_sae + int(part) for part in row["union_constituents"])]


def name_of(part: int, d_sae: int) -> str:
    """``12``, or ``union 12`` for a row of the union dictionary."""
    return str(part) if part < d_sae else f"union {part - d_sae}"


def split_by_dictionary(parts: Iterable[int], d_sae: int) -> tuple[list[int], list[int]]:
    """Latents of the SAE, and rows of the union dictionary."""
    parts = list(parts)
    return [part for part in parts if part < d_sae], [part - d_sae for part in parts if part >= d_sae]


def nearest_lent(latents: np.ndarray, W: torch.Tensor, d_sae: int, enough: np.ndarray) -> dict[int, list[int]]:
    """Each of `latents` with the two rows of the union dictionary that are nearest to it and are not itself.

    `W` [d_sae + u, d] are the rows of both, `enough` [d_sae + u] bool which fire often enough.
    """
    lender = enough & (np.arange(len(W)) >= d_sae)
    near, cosines = top_neighbours(W, 4, queries=latents, candidates=lender)
    pairs = {}
    for f, parts, values in zip(latents.tolist(), near.tolist(), cosines.tolist()):
        others = [part for part, value in zip(parts, values) if part >= 0 and value < DUPLICATE][:2]
        if len(others) == 2:
            pairs[f] = others
    return pairs


def fire_together(shares: Iterable[tuple[float | None, int | None]]) -> dict[str, Any]:
    """Of latents with the share of their tokens on which all constituents fire, and so many tokens: how many have
    tokens enough, their mean share, and how many reach .6."""
    enough = [share for share, tokens in shares if share is not None and (tokens or 0) >= CONFIRM_TOKENS]
    return {
        "n": len(enough),
        "mean": float(np.mean(enough)) if enough else None,
        "pass": sum(share >= CONFIRM_SHARE for share in enough),
    }
