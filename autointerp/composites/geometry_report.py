"""Gather the figures of a geometry report: a dictionary's directions beside two nulls, and its meta-SAE."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from autointerp.composites import geometry as directions
from autointerp.composites import nulls
from autointerp.composites.check import find_composites
from autointerp.composites.labels import SHARED
from autointerp.composites.maps import whitener
from autointerp.composites.meta_sae import MetaSae, meta_sae
from autointerp.composites.neighbours import Rows, as_matrix, not_zero
from autointerp.errors import AutointerpError


@dataclass(frozen=True)
class GeometryReport:
    latents: int  # that are a direction: zero rows are left out
    width: int
    mmcs: dict[str, float]  # dictionary, random, covariance -> mean of the highest cosine
    meta_sae: dict[str, MetaSae] | None  # of the same three
    other: directions.Other | None
    hubs: list[dict[str, Any]]
    profile: list[dict[str, Any]]
    subspaces: list[dict[str, Any]]  # rank, circular, members, places (as of `find_composites`), the largest first


def geometry_figures(
    W_dec: np.ndarray | torch.Tensor,
    *,
    other: np.ndarray | torch.Tensor | None = None,
    meta_passes: int = 50,
    seed: int = 0,
    device: str = "cpu",
) -> GeometryReport:
    """How the directions of a dictionary lie.

    Args:
        W_dec: decoder rows [n, d].
        other: [u, d], another dictionary of the same activations.
        meta_passes: over the rows, in training each meta-SAE; 0: none.

    Raises:
        AutointerpError: these are no matrices of finite floats of one width, or fewer than 8 rows are directions.
    """
    shape = directions.geometry(W_dec, seed=seed, device=device)
    rows = Rows([as_matrix(W_dec)], device)
    with torch.inference_mode():
        living = not_zero(rows)
        n, d = int(living.sum()), rows.shape[1]
        if n < 8:
            raise AutointerpError(f"{n} of {len(rows)} rows are directions: too few for a report of their geometry")
        L = whitener(rows, living).cpu()
    meta = None
    if meta_passes:
        dictionaries: dict[str, Callable[[], torch.Tensor]] = {  # made one at a time
            "dictionary": lambda: rows[living.nonzero().squeeze(1)].cpu(),
            "random": lambda: nulls.random_directions(n, d, seed + 1),
            "covariance": lambda: nulls.random_directions(n, d, seed + 1, L),
        }
        meta = {name: meta_sae(make(), meta_passes, seed, device) for name, make in dictionaries.items()}
    beside = None if other is None else directions.beside(W_dec, other, device=device)
    hubs, profile = (json.loads(str(table.to_json(orient="records"))) for table in (shape.hubs, shape.profile))
    return GeometryReport(n, d, shape.mmcs, meta, beside, hubs, profile, _subspaces(W_dec, device))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _subspaces(W_dec: np.ndarray | torch.Tensor, device: str) -> list[dict[str, Any]]:
    table: Any = find_composites(W_dec, device=device)
    rows = table[table["label"] == "subspace"].to_dict("records")
    spaces = {tuple(row["members"]): {name: _plain(row[name]) for name in SHARED} for row in rows}
    return [spaces[members] for members in sorted(spaces, key=lambda members: (-len(members), members))]
