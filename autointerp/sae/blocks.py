"""Which latents fire, from pre-activations that are made some tokens at a time: never [tokens, d_sae] of a whole batch.

A block's product is written into the same memory each time, so that it stays near the processor. On a CPU the k
largest are selected in two steps: of groups of latents those with the k largest maxima hold them, so that nearly all of
a row is read once. On a GPU `torch.topk` does it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NUMBERS = {"cpu": 1 << 25, "cuda": 1 << 28}  # pre-activations held at a time: 128 MB and 1 GB in float32
ROWS = {"cpu": 1024, "cuda": 1 << 14}  # tokens, at most: with fewer a product takes longer
NEAR = 64  # tokens of which a CPU selects at a time: their pre-activations lie in its cache
BIASED = 1 << 26  # numbers of an encoder of which another form is worth its memory
WORD = 8  # bytes of a mask looked at together


def rows_of(width: int, device: torch.device) -> int:
    """Tokens in a block of SAEs of this width."""
    kind = "cuda" if device.type == "cuda" else "cpu"
    return max(16, min(ROWS[kind], NUMBERS[kind] // width))


def many(x: Tensor, weights: Tensor) -> bool:
    """Whether x [n, d] are so many tokens on a CPU that another form of the weights [d, width] is worth its making."""
    return x.device.type == "cpu" and len(x) >= 4 * ROWS["cpu"] and weights.numel() <= BIASED


def encoder(x: Tensor, weights: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """x [n, d], weights [d, width] and bias as they are multiplied fastest: over many tokens on a CPU with the bias as
    one more row of the weights, for a product that adds to something first fills all of it with that."""
    if not many(x, weights):
        return x, weights, bias
    return torch.cat([x, x.new_ones(len(x), 1)], 1), torch.cat([weights, bias[None]]), None


def product(x: Tensor, weights: Tensor, bias: Tensor | None, room: Tensor) -> Tensor:
    """What `encoder` gave of some tokens, multiplied into `room` [≥ n, width]."""
    out = room[: len(x)]
    return torch.mm(x, weights, out=out) if bias is None else torch.addmm(bias, x, weights, out=out)


def largest(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row of [b, n] and their columns, in any order: [b, k] each."""
    if pre.device.type != "cpu" or pre.dtype not in (torch.float32, torch.bfloat16):
        values, columns = pre.topk(k, sorted=False)
        return values, columns
    parts = [_largest(part, k) for part in pre.split(NEAR)]
    return torch.cat([values for values, _ in parts]), torch.cat([columns for _, columns in parts])


def _largest(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    b, n = pre.shape
    group = _group_size(n, k)
    if group == 1:
        columns = _largest_columns(pre, k)
        return pre.gather(1, columns), columns
    count = n // group  # a group's entries lie `count` apart: the maximum is taken along memory
    chosen = _largest_columns(pre.view(b, group, count).amax(1), k)
    columns = (chosen[:, None] + torch.arange(0, n, count)[:, None]).view(b, group * k)
    values = pre.gather(1, columns)
    best = _largest_columns(values, k)
    return values.gather(1, best), columns.gather(1, best)


def above(pre: Tensor, threshold: Tensor | float) -> Tensor:
    """Flat places of the entries of [b, n] above a threshold (one of each column, or one of all), rising: [m] int64."""
    mask = pre > threshold
    if mask.device.type != "cpu":
        return mask.flatten().nonzero().squeeze(1)
    bits = mask.numpy().reshape(-1)
    if len(bits) % WORD:
        return torch.from_numpy(np.flatnonzero(bits))
    words = np.flatnonzero(bits.view(np.uint64))  # few latents fire: most words are empty
    word, byte = bits.reshape(-1, WORD)[words].nonzero()
    return torch.from_numpy(words[word] * WORD + byte)


def _group_size(n: int, k: int) -> int:
    """A power of two by which n divides, so that n / size maxima and k · size candidates take about as long."""
    size = 1
    while n % (2 * size) == 0 and 8 * size * size * k <= n:
        size *= 2
    return size


def _largest_columns(rows: Tensor, k: int) -> Tensor:
    n = rows.shape[1]
    if k >= n:
        return torch.arange(n).expand(len(rows), n)
    # several times faster than torch.topk, for it looks at values alone before it looks for places
    return torch.from_numpy(np.argpartition(rows.float().numpy(), n - k, axis=1)[:, n - k :])
