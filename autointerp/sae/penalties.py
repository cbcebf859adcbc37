"""Orthogonality penalties on the decoder's directions: each draws latents apart (a negative weight: together).

A penalty is a function of a `Batch` that returns its value and its gradient for the rows, in closed form: products of
all rows with all others are made in blocks and never held. Rows have unit length, so that a dot product is a cosine;
the gradient's part along a row is left in, for `Recipe.before_step` takes it out. c_ij is the cosine of rows i and j,
means over i are over the n rows. What a penalty keeps from step to step goes into the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from autointerp.sae import sparse
from autointerp.sae.ranks import ALONE, Ranks
from autointerp.sae.train_config import PenaltyConfig

_BLOCK = 512  # rows whose products with all others are held at a time; a multiple of _PART
_PART = 32


class Batch(NamedTuple):
    """What a penalty sees of a step."""

    rows: Tensor  # [n, d] unit decoder rows
    z: Tensor  # [b, d] inputs: this rank's
    fired: Tensor  # [n] bool: active in the batch, on any rank
    seed: int
    step: int
    dtype: torch.dtype  # of the large products
    kept: dict[str, Tensor]  # what the penalty keeps
    ranks: Ranks = ALONE


Graded = tuple[Tensor, Tensor]  # value [], its gradient for the rows [n, d]


def chunk_max(batch: Batch, config: PenaltyConfig) -> Graded:
    """mean_i (max_{j≠i in i's chunk} c_ij)², in random chunks (OrtSAE, 2509.22033), one chunk at a time: an estimate
    of the mean over all.

    Only the search needs all products, and needs them neither exactly nor backwards: the gradient is that of a
    chunk's highest cosines, which are made again in the rows' dtype.
    """
    n = len(batch.rows)
    chunk = chunk_at(n, config.chunk, batch.seed, batch.step // config.every)
    if chunk is None:
        return _of_nearest(batch.rows, batch.dtype)
    chunk = chunk.to(batch.rows.device)
    value, gradient = _of_nearest(batch.rows[chunk], batch.dtype)
    return value, torch.zeros_like(batch.rows).index_copy_(0, chunk, gradient)


def chunk_at(n: int, size: int, seed: int, turn: int) -> Tensor | None:
    """The latents, at most `size`, whose turn it is; None: all. Successive turns go through all n in random equal
    chunks, then through others; the same for the same seed and turn."""
    count = -(-n // size)
    if count == 1:
        return None
    order, at = divmod(turn, count)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + order)
    return torch.randperm(n, generator=generator).tensor_split(count)[at]


def _of_nearest(rows: Tensor, dtype: torch.dtype) -> Graded:
    everyone, partners = torch.arange(len(rows), device=rows.device), _nearest(rows.to(dtype))
    return _of_pairs(rows, everyone, partners[:, None], lambda c: (c.square(), 2 * c))


def all_pairs(batch: Batch, config: PenaltyConfig) -> Graded:
    """mean_{i≠j} |c_ij|: the sum over all pairs, up to a constant."""
    n = len(batch.rows)
    value, gradient = _of_all(batch, lambda c: (c.abs(), c.sign()))
    return value / (n * (n - 1)), gradient / (n * (n - 1))


def threshold(batch: Batch, config: PenaltyConfig) -> Graded:
    """mean_i Σ_{j≠i} relu(|c_ij| − τ)²."""

    def shape(c: Tensor) -> tuple[Tensor, Tensor]:
        over = (c.abs() - config.threshold).relu()
        return over.square(), 2 * over * c.sign()

    value, gradient = _of_all(batch, shape)
    return value / len(batch.rows), gradient / len(batch.rows)


def mean_max(batch: Batch, config: PenaltyConfig) -> Graded:
    """mean_{i≠j} |c_ij| + mean_i max_{j≠i} |c_ij| + max_{i≠j} |c_ij|."""
    n = len(batch.rows)
    rows = batch.rows.to(batch.dtype)
    partners = torch.cat([c.abs().max(1).indices for _, c in _blocks(rows)])[:, None]

    def shape(c: Tensor) -> tuple[Tensor, Tensor]:
        largest = torch.zeros_like(c)
        largest[c.abs().argmax()] = 1.0
        weight = 1 + len(c) * largest  # _of_pairs takes the mean: the largest counts n times more
        return weight * c.abs(), weight * c.sign()

    value, gradient = _of_pairs(batch.rows, torch.arange(n, device=rows.device), partners, shape)
    mean, for_mean = all_pairs(batch, config)
    return value + mean, gradient + for_mean


def nearest(batch: Batch, config: PenaltyConfig) -> Graded:
    """mean over the latents i active in the batch of s(max_{j≠i} c_ij): j may be inactive and is drawn away too,
    and one j may be the nearest of many. s is relu(c)² (convex) or σ((c − τ) / .1)."""
    active = batch.fired.nonzero().squeeze(1)
    if not len(active):
        return batch.rows.new_zeros(()), torch.zeros_like(batch.rows)
    partners = _nearest(batch.rows.to(batch.dtype))[active, None]

    def sigmoid(c: Tensor) -> tuple[Tensor, Tensor]:
        s = ((c - config.threshold) / 0.1).sigmoid()
        return s, s * (1 - s) / 0.1

    return _of_pairs(batch.rows, active, partners, _convex if config.shape == "convex" else sigmoid)


def neighbours(batch: Batch, config: PenaltyConfig) -> Graded:
    """mean_i Σ_{j in i's list} relu(c_ij)², the list of i's m nearest made anew every `refresh` steps: O(n·m·d)."""
    n = len(batch.rows)
    made, lists = batch.kept.get("made"), batch.kept.get("lists")
    if made is None or lists is None or len(lists) != n or batch.step - int(made) >= config.refresh:
        rows, m = batch.rows.to(batch.dtype), min(config.neighbours, n - 1)
        lists = torch.cat([c.topk(m, dim=1, sorted=False).indices for _, c in _blocks(rows, itself=-2.0)])
        batch.kept.update(made=torch.tensor(batch.step), lists=lists)
    return _of_pairs(batch.rows, torch.arange(n, device=lists.device), lists, _convex)


def soft_orthonormal(batch: Batch, config: PenaltyConfig) -> Graded:
    """‖s W Wᵀ x − x‖² / ‖x‖² over the batch, W = rowsᵀ (reconstruction cost of RICA, Le et al. 2011). s = d / n,
    for n > d unit rows cannot be orthonormal: with it a tight frame, the nearest to it there is, costs nothing."""
    rows, z = batch.rows.to(batch.dtype), batch.z.to(batch.dtype)
    n, d = rows.shape
    error = (z @ (rows.T @ rows)).to(batch.rows.dtype) * (d / n) - batch.z
    power = batch.ranks.sum(batch.z.square().sum())
    slope = batch.ranks.sum(z.T @ error.to(batch.dtype)) * (2 * d / n)
    return batch.ranks.sum(error.square().sum()) / power, (rows @ (slope + slope.T)).to(batch.rows.dtype) / power


PENALTIES: dict[str, Callable[[Batch, PenaltyConfig], Graded]] = {
    "chunk_max": chunk_max,
    "all_pairs": all_pairs,
    "nearest": nearest,
    "threshold": threshold,
    "mean_max": mean_max,
    "neighbours": neighbours,
    "soft_orthonormal": soft_orthonormal,
}


@torch.no_grad()
def mmcs(rows: Tensor, dtype: torch.dtype, sample: int = 2048) -> float:
    """Mean of the highest cosine of unit rows [n, d] to another one, over at most about `sample` evenly spaced rows."""
    asked = torch.arange(0, len(rows), max(1, len(rows) // sample), device=rows.device)
    candidates, highest = rows.to(dtype), []
    for block in asked.split(_BLOCK):
        cosines = candidates[block] @ candidates.T
        highest.append(cosines.scatter_(1, block[:, None], -2.0).amax(1))
    return float(torch.cat(highest).float().mean())


Shape = Callable[[Tensor], tuple[Tensor, Tensor]]  # cosines -> what each costs, and its derivative


def _convex(c: Tensor) -> tuple[Tensor, Tensor]:
    positive = c.relu()
    return positive.square(), 2 * positive


def _blocks(rows: Tensor, itself: float = 0.0) -> Iterator[tuple[int, Tensor]]:
    """(first row, its block's cosines with all rows [≤ _BLOCK, n]); a row's with itself are given as `itself`."""
    for start in range(0, len(rows), _BLOCK):
        cosines = rows[start : start + _BLOCK] @ rows.T
        cosines[:, start:].diagonal().fill_(itself)
        yield start, cosines


def _of_all(batch: Batch, shape: Shape) -> Graded:
    """Σ_{i≠j} shape(c_ij); shape(0) = 0."""
    rows, gradient = batch.rows.to(batch.dtype), torch.empty_like(batch.rows)
    value = batch.rows.new_zeros(())
    for start, cosines in _blocks(rows):
        cost, slope = shape(cosines)
        value += cost.sum(dtype=value.dtype)
        gradient[start : start + _BLOCK] = 2 * (slope @ rows)  # (i, j) and (j, i)
    return value, gradient


def _of_pairs(rows: Tensor, queries: Tensor, partners: Tensor, shape: Shape) -> Graded:
    """mean over queries i [q] of Σ_m shape(cosine of row i and row partners[i, m]); both rows are moved."""
    asking = rows if len(queries) == len(rows) else rows[queries]
    if rows.is_cuda:
        return _of_gathered(rows, queries, partners, shape)
    cost, slope = shape(sparse.inner(asking, rows, partners).flatten())
    slope = slope.view_as(partners) / len(queries)
    gradient = sparse.transposed(slope, partners, asking, len(rows))
    gradient.index_add_(0, queries, sparse.decode(slope, partners, rows))
    return cost.sum() / len(queries), gradient


def _of_gathered(rows: Tensor, queries: Tensor, partners: Tensor, shape: Shape) -> Graded:
    """The same by gathering the partners, some queries at a time: a GPU's memory is fast, its sparse products slow."""
    cosines = torch.cat(
        [
            torch.einsum("qd,qmd->qm", rows[asking], rows[others])
            for asking, others in zip(queries.split(_BLOCK), partners.split(_BLOCK))
        ]
    )
    cost, slope = shape(cosines.flatten())
    slope = slope.view_as(partners) / len(queries)
    gradient = torch.zeros_like(rows)
    for asking, others, slopes in zip(queries.split(_BLOCK), partners.split(_BLOCK), slope.split(_BLOCK)):
        gradient.index_add_(0, asking, torch.einsum("qm,qmd->qd", slopes, rows[others]))
        gradient.index_add_(0, others.flatten(), (slopes[:, :, None] * rows[asking][:, None]).flatten(0, 1))
    return cost.sum() / len(queries), gradient


def _nearest(rows: Tensor) -> Tensor:
    """For each row [c, d] the other row of the largest product, [c]. Each pair is multiplied once: a block with those
    after it, whose maxima along both sides count."""
    count, device = len(rows), rows.device
    best = torch.full((count,), -2.0, dtype=rows.dtype, device=device)
    partner = torch.zeros(count, dtype=torch.int64, device=device)

    def improve(at: slice, found: Tensor, by: Tensor) -> None:
        better = found > best[at]
        partner[at] = torch.where(better, by, partner[at])
        best[at] = torch.where(better, found, best[at])

    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        cosines = rows[start:stop] @ rows[start:].T
        cosines.diagonal().fill_(-2.0)
        highest, column = _row_max(cosines)
        improve(slice(start, stop), highest, column + start)
        if stop < count:
            highest, row = _column_max(cosines[:, stop - start :])
            improve(slice(stop, count), highest, row + start)
    return partner


def _row_max(x: Tensor) -> tuple[Tensor, Tensor]:
    """x.max(1), in two steps: a CPU finds a maximum several times faster than its place."""
    b, n = x.shape
    if x.is_cuda or n % _PART:
        highest = x.max(1)
        return highest.values, highest.indices
    parts = x.view(b, _PART, n // _PART)
    highest, part = parts.amax(1).max(1)
    place = parts[torch.arange(b), :, part].argmax(1)
    return highest, place * (n // _PART) + part


def _column_max(x: Tensor) -> tuple[Tensor, Tensor]:
    """x.max(0) of [a multiple of _PART, n], likewise."""
    if x.is_cuda:
        highest = x.max(0)
        return highest.values, highest.indices
    parts = x.unflatten(0, (-1, _PART))
    highest, part = parts.amax(1).max(0)
    place = parts[part, :, torch.arange(x.shape[1])].argmax(1)
    return highest, part * _PART + place
