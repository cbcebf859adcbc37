"""Where a training's activations come from: an array on disk or a stream, from any step on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from autointerp.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ActivationSource(Protocol):
    @property
    def d_in(self) -> int: ...

    def batches(self, seed: int, start_step: int, batch_size: int) -> Iterator[Tensor]:
        """Endless [batch_size, d_in] batches from `start_step` on. Batch i depends on (seed, i) alone."""
        ...


class ArraySource:
    """Rows of an array [n, d_in] (float16 or float32, in memory or memory-mapped), in a new order each epoch.

    Rows that do not fill a batch at an epoch's end are left to other epochs.
    """

    def __init__(self, rows: NDArray[np.floating]) -> None:
        if rows.ndim != 2:
            raise ConfigError(f"activations are an array [tokens, d_in], this one has the shape {rows.shape}")
        self.rows = rows

    @property
    def d_in(self) -> int:
        return self.rows.shape[1]

    def batches(self, seed: int, start_step: int, batch_size: int) -> Iterator[Tensor]:
        per_epoch = len(self.rows) // batch_size
        if per_epoch == 0:
            raise ConfigError(f"{len(self.rows)} activations do not fill one batch of {batch_size}: lower batch_size")
        epoch, at = divmod(start_step, per_epoch)
        while True:
            order = np.random.default_rng((seed, epoch)).permutation(len(self.rows))
            for step in range(at, per_epoch):
                # sorted: a memory map is then read forwards
                chosen = np.sort(order[step * batch_size : (step + 1) * batch_size])
                yield torch.from_numpy(np.ascontiguousarray(self.rows[chosen]))
            epoch, at = epoch + 1, 0

    def hold_out(self, count: int) -> tuple[ArraySource, Tensor]:
        """(source without its last `count` rows, those rows [count, d_in]): the tail, to share no document."""
        if not 0 < count < len(self.rows):
            raise ConfigError(f"cannot hold out {count} of {len(self.rows)} activations")
        held_out = torch.from_numpy(np.array(self.rows[-count:]))  # a copy: the rows may be a read-only map
        return ArraySource(self.rows[:-count]), held_out


class StreamSource:
    """Activations made as they are needed, mixed in a buffer.

    Args:
        chunk: ``chunk(i) -> [rows, d_in]``, the i-th piece of the corpus' activations, the same each time it is
            called; `i` counts on for ever, so wrap round at the corpus' end.
        rows: of every chunk.
        buffer_chunks: chunks mixed with each other before they are given out. The larger, the better mixed.

    A buffer is filled, shuffled, given out whole and filled anew, so that training resumes at any step by making
    one buffer again; the rows that do not fill a batch are dropped.
    """

    def __init__(self, chunk: Callable[[int], Tensor], *, d_in: int, rows: int, buffer_chunks: int = 32) -> None:
        self.chunk, self.rows, self.buffer_chunks = chunk, rows, buffer_chunks
        self._d_in = d_in

    @property
    def d_in(self) -> int:
        return self._d_in

    def batches(self, seed: int, start_step: int, batch_size: int) -> Iterator[Tensor]:
        per_buffer = self.rows * self.buffer_chunks // batch_size
        if per_buffer == 0:
            raise ConfigError(
                f"a buffer of {self.rows * self.buffer_chunks} rows does not fill a batch of {batch_size}"
            )
        index, at = divmod(start_step, per_buffer)
        while True:
            first = index * self.buffer_chunks
            buffer = torch.cat([self._checked_chunk(i) for i in range(first, first + self.buffer_chunks)])
            order = torch.from_numpy(np.random.default_rng((seed, index)).permutation(len(buffer))).to(buffer.device)
            for step in range(at, per_buffer):
                yield buffer[order[step * batch_size : (step + 1) * batch_size]]
            index, at = index + 1, 0

    def _checked_chunk(self, index: int) -> Tensor:
        made = self.chunk(index)
        if made.shape != (self.rows, self.d_in):
            raise ConfigError(f"chunk {index} has the shape {tuple(made.shape)}, expected {(self.rows, self.d_in)}")
        return made
