"""A comparison as a page and a notebook show it: contrasts with intervals, both runs' scores, features in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.report.charts import Chart
from autointerp.report.compare import By, compare, contrasts, reading
from autointerp.report.figures import numbers, ranges_of, scorers_of, summarise
from autointerp.report.folder import RunFolder, so_far
from autointerp.report.overview import charts, title_of
from autointerp.report.text import note

if TYPE_CHECKING:
    import pyarrow as pa

PAIRS = 100  # features that are shown side by side


@dataclass(frozen=True)
class Contrast:
    row: Mapping[str, Any]  # of `compare`, over all quantiles
    quantiles: list[float | None]  # differences by quantile, the weakest first


@dataclass(frozen=True)
class Contrasts:
    """Those of one scorer, and of the run or the explainer that both sides share."""

    scorer: str
    within: str
    lines: list[Contrast]


@dataclass(frozen=True)
class Pair:
    """A feature in two runs of one SAE."""

    feature: int
    a: float
    b: float
    said_a: str
    said_b: str


@dataclass(frozen=True)
class Side:
    title: str
    charts: list[Chart]


@dataclass(frozen=True)
class Comparison:
    groups: list[Contrasts]
    span: float  # of the differences and their intervals, to either side of 0
    notes: list[str]
    sides: list[Side]  # two where two runs are compared
    scorer: str | None  # by which the pairs are ordered
    pairs: list[Pair]  # none where the runs are of two SAEs, whose numbers mean different latents
    n_pairs: int


def comparison(runs: Sequence[Path], *, by: By | None = None, scorer: str | None = None) -> Comparison:
    """What `compare` says of some runs, and more of two of them. Raises what `compare` raises."""
    rows = compare(*runs, by=by, scorer=scorer)
    folders = [RunFolder(run) for run in runs]
    sides, named, pairs, n_pairs = [], None, [], 0
    if len(folders) == 2:
        sides = [_side(folder) for folder in folders]
        if any(row["paired"] and not row["control"] for row in rows):
            named, pairs, n_pairs = _pairs(folders[0].features, folders[1].features, scorer)
    unfinished = [f"{title_of(folder)}: {line}" for folder in folders if (line := so_far(folder.path))]
    return Comparison(grouped(rows), span_of(rows), [*reading(rows), *unfinished], sides, named, pairs, n_pairs)


def grouped(rows: Sequence[Mapping[str, Any]]) -> list[Contrasts]:
    return [
        Contrasts(scorer, within, [Contrast(row, fifths) for row, fifths in contrasts(list(those))])
        for (scorer, within), those in groupby(rows, key=lambda row: (row["scorer"], row["within"]))
    ]


def span_of(rows: Sequence[Mapping[str, Any]]) -> float:
    ends = [abs(row[name]) for row in rows if row["quantile"] is None for name in ("difference", "low", "high")
            if row[name] is not None]  # fmt: skip
    return max([0.05, *ends])


def _side(folder: RunFolder) -> Side:
    features = folder.features
    return Side(folder.path.resolve().name, charts(features, summarise(features), ranges_of(features)))


def _pairs(a: pa.Table, b: pa.Table, scorer: str | None) -> tuple[str | None, list[Pair], int]:
    """The scorer, the features of the largest differences, and how many have a value in both."""
    import numpy as np

    shared = [name for name in scorers_of(a) if name in scorers_of(b)]
    name = scorer if scorer in shared else next(iter(shared), None)
    if name is None:
        return None, [], 0
    ids, of_a, of_b = np.intersect1d(numbers(a, "feature"), numbers(b, "feature"), return_indices=True)
    x, y = numbers(a, name)[of_a], numbers(b, name)[of_b]
    valued = np.flatnonzero(~np.isnan(x - y))
    shown = valued[np.argsort(-np.abs(x - y)[valued], kind="stable")][:PAIRS]
    left, right = (table.take(places[shown]).to_pylist() for table, places in ((a, of_a), (b, of_b)))
    pairs = [
        Pair(int(ids[i]), float(x[i]), float(y[i]), note(own), note(other)) for i, own, other in zip(shown, left, right)
    ]
    return name, pairs, len(valued)
