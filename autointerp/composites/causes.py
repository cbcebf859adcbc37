"""What causal.parquet comes to: columns of composites.parquet, and means over all composites that were tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np

from autointerp.stats import paired_difference

How = Literal["ablated", "steered"]
HOW: tuple[How, ...] = ("ablated", "steered")
CONTROLS = ("swapped", "turned")
COLUMNS = ("causal", "causal_low", "causal_high", "causal_together", "causal_swapped", "causal_turned")


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """feature -> the columns of composites.parquet that rows of causal.parquet give: of the output, the smaller of
    ablated and steered; and `failure`, why there are none."""
    by_arm: dict[int, dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        by_arm.setdefault(row["feature"], {}).setdefault(row["arm"], []).append(row)
    columns = {}
    for feature, arms in by_arm.items():
        least = {arm: _smaller(arms.get(arm, ())) for arm in ("added", "together", *CONTROLS)}
        own = least["added"]
        failures = [row["failure"] for row in arms.get("added", ()) if row.get("failure")] if own is None else []
        columns[feature] = {
            "causal": None if own is None else own["output"],
            "causal_low": None if own is None else own["output_low"],
            "causal_high": None if own is None else own["output_high"],
            **{f"causal_{arm}": row and row["output"] for arm, row in least.items() if arm != "added"},
            "failure": "; ".join(dict.fromkeys(failures)) or None,
        }
    return columns


def _smaller(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Of ablated and steered the one that agrees less; None where one has no value."""
    whole = len(rows) == len(HOW) and all(row.get("output") is not None for row in rows)
    return min(rows, key=lambda row: row["output"]) if whole else None


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over the composites tried: the mean of each column, and how far own parts are above the controls."""
    columns = columns_of(rows)
    values = {name: [row[name] for row in columns.values()] for name in COLUMNS}
    known = {name: [value for value in own if value is not None] for name, own in values.items()}
    facts: dict[str, Any] = {"composites": len(columns), "known": len(known["causal"])}
    for name, pair in (("causal", "own"), ("causal_together", "together"), *((f"causal_{c}", c) for c in CONTROLS)):
        facts[pair] = float(np.mean(known[name])) if known[name] else None
    for control in CONTROLS:
        facts[f"above_{control}"] = asdict(paired_difference(values["causal"], values[f"causal_{control}"]))
    return facts
