"""A sweep for reading: its table on the terminal, and its picture."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import field_validator

from autointerp.config import Section

INK, POINT = "#222222", "#1f6fb4"
BAND = 8  # positions of the context that a point of a line stands for


class Plan(Section):
    """What a sweep's file says beside the keys of a run."""

    variants: dict[str, dict[str, Any]]  # name -> {"key.path": value}; a value "@NAME" is that variant's SAE
    seeds: tuple[int, ...] = (0,)  # of the training; each variant that trains its SAE once a seed
    metrics: tuple[str, ...]  # rows of the table, panels of the picture
    positions: tuple[str, ...] = ()  # metrics drawn by position in the context

    @field_validator("variants", "seeds", "metrics")
    @classmethod
    def not_empty(cls, given: Any) -> Any:
        if not given:
            raise ValueError("there is none")
        return given

    @field_validator("variants")
    @classmethod
    def names_of_folders(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name in given:
            if not name.strip() or "/" in name or "\0" in name:
                raise ValueError(f"{name!r} is no name of a folder, which a variant has")
        return given


@dataclass(frozen=True)
class Figure:
    """A metric of one variant and seed, with its 95 % interval where it has one; at one place of the context, or over
    all (None)."""

    variant: str
    seed: int
    metric: str
    value: float | None
    low: float | None = None
    high: float | None = None
    position: int | None = None


@dataclass(frozen=True)
class Sweep:
    folder: Path
    plan: Plan
    figures: tuple[Figure, ...]
    failures: Mapping[str, str] = field(default_factory=dict)  # variant -> why it could not be measured

    def of(self, variant: str, metric: str) -> list[Figure]:
        """Over all positions, a figure a seed."""
        return [f for f in self.figures if (f.variant, f.metric, f.position) == (variant, metric, None)]


def print_sweep(swept: Sweep) -> None:
    """A row a metric, a column a variant: the mean over seeds, ± half their range."""
    from rich.console import Console
    from rich.table import Table

    from autointerp.report.tables import width_of

    def cell(variant: str, metric: str) -> str:
        values = [figure.value for figure in swept.of(variant, metric) if figure.value is not None]
        spread = f" ±{(max(values) - min(values)) / 2:.1g}" if len(values) > 1 else ""
        return f"{fmean(values):.4g}{spread}" if values else "–"

    table = Table("", *swept.plan.variants, box=None, header_style="bold")
    for metric in swept.plan.metrics:
        table.add_row(metric.replace("_", " "), *(cell(variant, metric) for variant in swept.plan.variants))
    Console(width=width_of(sys.stdout) or 10_000).print(table)  # a file is as wide as it must be


def draw(swept: Sweep, path: Path) -> None:
    """A panel a metric, a row a variant, a point a seed; below them the metrics by position in the context."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    variants, metrics, positions = list(swept.plan.variants), swept.plan.metrics, swept.plan.positions
    columns = min(4, max(len(metrics), len(positions)))
    dots, lines = -(-len(metrics) // columns), -(-len(positions) // columns)
    heights = [0.3 * len(variants) + 0.9] * dots + [2.6] * lines
    figure, axes = plt.subplots(
        dots + lines, columns, squeeze=False, layout="constrained",
        figsize=(3.2 * columns + 0.8, sum(heights)), height_ratios=heights,
    )  # fmt: skip
    for axis in (
        axes.flat[len(metrics) : dots * columns].tolist() + axes.flat[dots * columns + len(positions) :].tolist()
    ):
        axis.set_visible(False)
    for number, (axis, metric) in enumerate(zip(axes.flat, metrics)):
        for row, variant in enumerate(variants):
            for point in swept.of(variant, metric):
                if point.value is None:
                    continue
                if point.low is not None and point.high is not None:
                    axis.hlines(row, point.low, point.high, color=POINT, alpha=0.35, linewidth=3)
                axis.plot(point.value, row, "o", color=POINT, markersize=5, alpha=0.8)
        axis.set_title(metric.replace("_", " "), fontsize=10, loc="left", color=INK)
        axis.set_yticks(range(len(variants)), variants if number % columns == 0 else [""] * len(variants))
        axis.set_ylim(len(variants) - 0.5, -0.5)
        axis.locator_params(axis="x", nbins=4)
        axis.margins(x=0.12)
        axis.grid(axis="x", alpha=0.25)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(length=0, labelsize=9)
    for axis, metric in zip(axes[dots:].flat, positions):
        for variant in variants:
            places: dict[int, list[float]] = {}
            for measured in swept.figures:
                if (measured.variant, measured.metric) == (variant, metric) and None not in (
                    measured.position,
                    measured.value,
                ):
                    places.setdefault(measured.position // BAND, []).append(measured.value)  # type: ignore[operator, arg-type]
            middles = [BAND * (band + 0.5) for band in places]
            axis.plot(middles, [fmean(values) for values in places.values()], linewidth=1.4, label=variant)
        axis.set_title(f"{metric.replace('_', ' ')}, by position", fontsize=10, loc="left", color=INK)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(length=0, labelsize=9)
    if positions:
        handles, labels = axes[dots][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), fontsize=9, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
