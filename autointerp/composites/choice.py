"""Choose which composites are explained, and which of their constituents with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from autointerp.composites.labels import FLAGGED
from autointerp.config import FeaturesConfig
from autointerp.errors import AutointerpError

Frame: TypeAlias = Any  # a pandas.DataFrame: its own types call every second column an array


def choose_features(table: Frame, composites: Frame, config: FeaturesConfig, seed: int) -> list[int]:
    """`features.select: composites`: confirmed ones, then composite, then possible, at random among each, `count` of
    those that fire often enough in `table` (of `firing_table`). AutointerpError where there is none."""
    import numpy as np

    ok = set(table.loc[table["status"] == "ok", "feature"])
    turn = np.random.default_rng(seed % 2**64).permutation(len(composites)).tolist()
    rank = {label: place for place, label in enumerate(FLAGGED)}
    rows = zip(turn, composites["feature"].tolist(), composites["label"])
    order = sorted((rank[label], place, f) for place, f, label in rows if label in rank and f in ok)
    chosen = [f for *_, f in order]
    if not chosen:
        raise AutointerpError(
            f"features.select is composites, and no latent that fires {config.min_firings} times is flagged as one"
        )
    return chosen[: config.count]


def constituents_among(chosen: Sequence[int], composites: Frame, column: str) -> list[int]:
    """The constituents of the composites among the chosen features: those of the SAE (`column` constituents), or those
    of the union dictionary (union_constituents)."""
    rows = composites[composites["feature"].isin(chosen) & composites["label"].isin(FLAGGED)]
    return sorted({int(part) for parts in rows[column] for part in parts})
