"""Ranks: processes that train one SAE together, each on its rows of every batch (torch.distributed).

1. Every rank holds all weights, and starts from the same ones.
2. Each takes its rows of a batch. Losses are over the tokens of the whole batch, so that gradients are added up.
3. Where a choice is over the whole batch (which latents fired, BatchTopK's threshold, JumpReLU's L0) its sums are too.
4. The sums come out the same on all ranks, bit for bit, and so does the step that follows from them.

`ALONE` is the one process of a usual training: it adds nothing up, and no result hangs on this file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

DIGITS = 11  # bits of a float32 that `kth_largest` looks at together
PASSES = (22, 11, 0)  # from which bit on; a float32 above 0 has no sign


class Ranks:
    """One process."""

    rank, count = 0, 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.rank == 0

    def part(self, rows: int) -> slice:
        """Of `rows` rows those of this rank; they differ by one at most."""
        return slice(rows * self.rank // self.count, rows * (self.rank + 1) // self.count)

    def sum(self, value: Tensor) -> Tensor:
        """Added up over the ranks, elementwise."""
        return value

    def any(self, mask: Tensor) -> Tensor:
        """[n] bool: true on any of the ranks."""
        return mask

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """`sum`, in place."""

    def total(self, value: Tensor) -> Tensor:
        """`sum` with a gradient."""
        return value

    def kth_largest(self, values: Tensor, k: int) -> Tensor:
        """The k-th largest of all ranks' values [m], positive float32; the smallest where there are fewer."""
        return values.kthvalue(max(1, len(values) - k + 1)).values

    def any_aside(self, mask: Tensor) -> Tensor:
        """`any` for a source, which may be read in a thread of its own."""
        return mask

    def number(self, n: int) -> int:
        """`sum` of a number."""
        return n

    def meet(self) -> None:
        """Wait until all ranks are here."""


ALONE = Ranks()


class Group(Ranks):
    """The processes of torch.distributed's group, which has begun."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.count, self.device = dist.get_rank(), dist.get_world_size(), device
        # NCCL takes operations in the order in which a process starts them, which two threads do not keep
        self._aside = dist.new_group(backend="gloo")

    def sum(self, value: Tensor) -> Tensor:
        value = value.detach().clone()
        dist.all_reduce(value)
        return value

    def any(self, mask: Tensor) -> Tensor:
        return self.sum(mask.to(torch.int32)) > 0

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        under_way = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
        for work in under_way:
            assert work is not None
            work.wait()

    def total(self, value: Tensor) -> Tensor:
        return _Total.apply(value, self)  # type: ignore[return-value]

    def kth_largest(self, values: Tensor, k: int) -> Tensor:
        """By digits, from the highest: of each digit the ranks add up how many values have it, and the one that the
        k-th largest has is known. Positive floats are ordered as their bits are."""
        bits = values.detach().view(torch.int32)
        left = self.sum(torch.tensor(len(bits), device=bits.device)).clamp(max=k)
        prefix = torch.zeros((), dtype=torch.int32, device=bits.device)
        for shift in PASSES:
            digit = (bits >> shift) & ((1 << DIGITS) - 1)
            counts = self.sum(torch.bincount(digit, minlength=1 << DIGITS))
            reach = counts.flip(0).cumsum(0).flip(0)  # values with this digit or a larger one
            largest = (reach >= left).sum() - 1
            left = left - (reach[largest] - counts[largest])
            prefix = prefix | (largest << shift).to(torch.int32)
            bits = bits[digit == largest]
        return prefix.view(torch.float32)

    def any_aside(self, mask: Tensor) -> Tensor:
        held = mask.to("cpu", torch.uint8)
        dist.all_reduce(held, dist.ReduceOp.MAX, group=self._aside)
        return held.bool().to(mask.device)

    def number(self, n: int) -> int:
        return int(self.sum(torch.tensor(n, device=self.device)))

    def meet(self) -> None:
        self.number(0)


class _Total(torch.autograd.Function):
    """Σ over the ranks. The whole loss is the sum of the ranks' losses, and each of them has a share of what the sum
    costs: its gradient is what all of them pass back, which is the same on each."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, ranks: Ranks) -> Tensor:
        ctx.count = ranks.count
        return ranks.sum(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.count, None


def here(device: torch.device) -> Ranks:
    """The ranks that this process is one of: torch.distributed's group, where a script (such as one that torchrun
    started) has begun one."""
    return Group(device) if dist.is_available() and dist.is_initialized() else ALONE
