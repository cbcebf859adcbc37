"""Histograms as the pages draw them: of a scorer's values beside its control's, of a feature's activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autointerp.report.figures import ScorerSummary, numbers
from autointerp.report.text import number

if TYPE_CHECKING:
    import pyarrow as pa

WIDTH, HEIGHT = 420.0, 120.0  # of the SVG, ticks left out
_BINS = 20


@dataclass(frozen=True)
class Bar:
    x: float
    width: float
    height: float
    says: str


@dataclass(frozen=True)
class Mark:
    """A line across: the mean of a scorer that asks no model."""

    x: float
    name: str
    says: str


@dataclass(frozen=True, kw_only=True)
class Histogram:
    bars: list[Bar]
    ticks: list[tuple[float, str]]
    outline: str = ""  # path of the control's histogram
    marks: list[Mark] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Chart(Histogram):
    """Of one scorer's values."""

    summary: ScorerSummary
    most: int  # features in the fullest bin


def chart(
    features: pa.Table, summary: ScorerSummary, ceilings: Sequence[ScorerSummary], low: float, high: float
) -> Chart:
    """The values of one scorer from `low` to `high`."""
    import numpy as np

    edges = np.linspace(low, high, _BINS + 1)
    counts, controls = (
        np.histogram(v[~np.isnan(v)], edges)[0].tolist()
        for v in (numbers(features, summary.scorer), numbers(features, f"{summary.scorer}_control"))
    )
    most, step = max([1, *counts, *controls]), WIDTH / _BINS
    bars = [
        Bar(
            i * step,
            step,
            HEIGHT * n / most,
            f"{number(edges[i])} to {number(edges[i + 1])}: {n} features, control {other}",
        )
        for i, (n, other) in enumerate(zip(counts, controls))
    ]
    outline = f"M0 {HEIGHT}" + "".join(f"V{HEIGHT - HEIGHT * n / most:.1f}h{step:.1f}" for n in controls) + f"V{HEIGHT}"
    marks = [
        Mark(WIDTH * (c.mean.value - low) / (high - low), c.scorer, f"{c.scorer} {number(c.mean.value)}")
        for c in summary.on_my_scale(ceilings)
        if c.mean.value is not None and low <= c.mean.value <= high
    ]
    return Chart(
        bars=bars,
        ticks=[(WIDTH * i / 4, number(low + (high - low) * i / 4)) for i in range(5)],
        outline=outline if any(controls) else "",
        marks=marks,
        summary=summary,
        most=most,
    )


def activations(counts: Sequence[int] | None, highest: float | None) -> Histogram | None:
    """Firings in equal steps of activation from 0 to `highest`; heights are logarithms, for most firings are weak."""
    if not counts or not highest:
        return None
    step, top = WIDTH / len(counts), math.log1p(max(counts)) or 1.0
    edges = [highest * i / len(counts) for i in range(len(counts) + 1)]
    bars = [
        Bar(i * step, step, HEIGHT * math.log1p(n) / top, f"{edges[i]:.3g} to {edges[i + 1]:.3g}: {n:,} firings")
        for i, n in enumerate(counts)
    ]
    return Histogram(bars=bars, ticks=[(WIDTH * i / 4, f"{highest * i / 4:.3g}") for i in range(5)])
