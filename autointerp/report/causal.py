"""The picture of what composites do: one dot for each, on a line for its constituents and for each control."""

from __future__ import annotations

import math
from dataclasses import dataclass

from autointerp.report.folder import RunFolder
from autointerp.report.text import number

WIDTH = 420.0  # of the SVG
LINES = {
    "causal": "its constituents, each alone, added up",
    "causal_together": "all of them at once",
    "causal_turned": "other directions with the same sum, added up",
    "causal_swapped": "another composite’s constituents, added up",
}


@dataclass(frozen=True)
class Line:
    """`dots` are places from 0 to `WIDTH`, with what each says."""

    name: str
    mean: float
    dots: list[tuple[float, str]]


def lines(run: RunFolder) -> list[Line]:
    """Agreement of what composites do with what is done in their place, from −1 to 1; none where it was not tried."""
    rows = [row for row in run.rows("composites", columns=["feature", *LINES]) if _known(row.get("causal"))]
    drawn = []
    for column, name in LINES.items():
        values = [(row["feature"], row[column]) for row in rows if _known(row.get(column))]
        if values:
            dots = [(_place(value), f"feature {feature}: {number(value)}") for feature, value in values]
            drawn.append(Line(name, sum(value for _, value in values) / len(values), dots))
    return drawn


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _place(value: float) -> float:
    return WIDTH * (min(max(value, -1.0), 1.0) + 1) / 2
