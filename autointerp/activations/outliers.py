"""Rows of outlying norm among activations: attention sinks, which would hide from an SAE all that the others hold.

In many models the first token of a row, and a few others such as line breaks, have activations of a hundred times the
usual norm, in nearly one direction (2402.17762, 2309.17453). A squared error then sees little else. A row is outlying
whose norm is more than a given multiple of the median norm: the median stays where it is, however large they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

AT_ONCE = 1 << 24  # numbers read at a time: 128 MB in float64
FOR_MEDIAN = 1 << 20  # rows whose median is taken; of more, so many evenly spread ones


@dataclass(frozen=True)
class Outliers:
    """What was found of outlying rows. `threshold` = `multiple` · `median_norm`."""

    multiple: float
    median_norm: float
    threshold: float
    rows: int  # looked at
    outlying: int
    variance_share: float  # that the outlying rows have of Σ‖x − mean‖²; 0 where nothing varies


def is_outlying(x: Tensor, threshold: float) -> Tensor:
    """[…, d] -> […] bool: norm above `threshold`. A close case is taken in float64: no batching decides it."""
    import torch

    if x.dtype != torch.float32:
        return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64) > threshold
    norms = torch.linalg.vector_norm(x, dim=-1)
    outlying = norms > threshold
    close = (norms - threshold).abs() < 1e-3 * threshold
    if bool(close.any()):
        outlying[close] = torch.linalg.vector_norm(x[close], dim=-1, dtype=torch.float64) > threshold
    return outlying


def find_outliers(rows: NDArray[np.floating], multiple: float) -> tuple[Outliers, NDArray[np.int64]]:
    """The rows of [n, d] (in memory or memory-mapped) that are outlying: what they are, and their indices, rising."""
    import torch

    if len(rows) == 0:
        return Outliers(multiple, 0.0, 0.0, 0, 0, 0.0), np.zeros(0, np.int64)
    spread = rows[:: -(-len(rows) // FOR_MEDIAN)]
    median = float(np.median(np.concatenate([_norms(part) for _, part in _parts(spread)])))
    threshold = multiple * median
    indices: list[NDArray[np.int64]] = []
    sums, powers = np.zeros((2, rows.shape[1])), np.zeros(2)  # of all rows, of the outlying ones
    for start, part in _parts(rows):
        outlying = np.flatnonzero(is_outlying(torch.from_numpy(part), threshold).numpy())
        indices.append(start + outlying)
        for i, counted in enumerate((part, part[outlying])):
            sums[i] += counted.sum(0)
            powers[i] += np.square(counted).sum()
    index = np.concatenate(indices)
    mean = sums[0] / len(rows)
    total = powers[0] - len(rows) * mean @ mean
    theirs = powers[1] - 2 * mean @ sums[1] + len(index) * mean @ mean
    share = float(theirs / total) if total > 0 else 0.0
    return Outliers(multiple, median, threshold, len(rows), len(index), share), index


def _norms(part: NDArray[np.float64]) -> NDArray[np.float64]:
    import torch

    return torch.linalg.vector_norm(torch.from_numpy(part), dim=-1).numpy()


def _parts(rows: NDArray[np.floating]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """(index of the first row, rows in float64), part by part."""
    size = max(1, AT_ONCE // rows.shape[1])
    for start in range(0, len(rows), size):
        yield start, rows[start : start + size].astype(np.float64)
