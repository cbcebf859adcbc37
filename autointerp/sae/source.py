"""Where a training's activations come from: an array on disk or a stream, from any step on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from autointerp.activations.outliers import is_outlying
from autointerp.errors import AutointerpError, ConfigError

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

    def __init__(self, rows: NDArray[np.floating], left_out: NDArray[np.int64] | None = None) -> None:
        """left_out: indices of rows that are never given out, such as `find_outliers` has them."""
        if rows.ndim != 2:
            raise ConfigError(f"activations are an array [tokens, d_in], this one has the shape {rows.shape}")
        self.rows = rows
        self.left_out = np.zeros(0, np.int64) if left_out is None else left_out

    @property
    def d_in(self) -> int:
        return self.rows.shape[1]

    def batches(self, seed: int, start_step: int, batch_size: int) -> Iterator[Tensor]:
        count = len(self.rows) - len(self.left_out)
        per_epoch = count // batch_size
        if per_epoch == 0:
            raise ConfigError(f"{count} activations do not fill one batch of {batch_size}: lower batch_size")
        kept = np.delete(np.arange(len(self.rows)), self.left_out) if len(self.left_out) else None
        epoch, at = divmod(start_step, per_epoch)
        while True:
            order = np.random.default_rng((seed, epoch)).permutation(count if kept is None else kept)
            for step in range(at, per_epoch):
                # sorted: a memory map is then read forwards
                chosen = np.sort(order[step * batch_size : (step + 1) * batch_size])
                yield torch.from_numpy(np.ascontiguousarray(self.rows[chosen]))
            epoch, at = epoch + 1, 0

    def hold_out(self, count: int) -> tuple[ArraySource, Tensor]:
        """(source without its last `count` rows, those rows [count, d_in]): the tail, to share no document. What is
        left out of batches is among them."""
        if not 0 < count < len(self.rows):
            raise ConfigError(f"cannot hold out {count} of {len(self.rows)} activations")
        held_out = torch.from_numpy(np.array(self.rows[-count:]))  # a copy: the rows may be a read-only map
        rest = len(self.rows) - count
        return ArraySource(self.rows[:rest], self.left_out[self.left_out < rest]), held_out


class StreamSource:
    """Activations made as they are needed, mixed in a buffer.

    Args:
        chunk: ``chunk(i) -> [rows, d_in]``, the i-th piece of the corpus' activations, the same each time it is
            called; `i` counts on for ever, so wrap round at the corpus' end.
        rows: of every chunk.
        buffer_chunks: chunks mixed with each other before they are given out. The larger, the better mixed.
        outlier_threshold: rows of a norm above it (`activations.outliers`) are never given out; others of the same
            buffer come twice in their place, so that every buffer has as many batches.

    A buffer is filled, shuffled, given out whole and filled anew, so that training resumes at any step by making
    one buffer again; the rows that do not fill a batch are dropped.
    """

    def __init__(
        self,
        chunk: Callable[[int], Tensor],
        *,
        d_in: int,
        rows: int,
        buffer_chunks: int = 32,
        outlier_threshold: float | None = None,
    ) -> None:
        self.chunk, self.rows, self.buffer_chunks = chunk, rows, buffer_chunks
        self.outlier_threshold = outlier_threshold
        self._d_in = d_in
        self._held: tuple[tuple[int, int], tuple[Tensor, Tensor]] | None = None

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
            buffer, order = self._buffer(seed, index)
            for step in range(at, per_buffer):
                yield buffer[order[step * batch_size : (step + 1) * batch_size]]
            index, at = index + 1, 0

    def _buffer(self, seed: int, index: int) -> tuple[Tensor, Tensor]:
        """The index-th buffer [rows · buffer_chunks, d_in] and its order; the last one is kept, for a training reads
        the first twice."""
        if self._held is not None and self._held[0] == (seed, index):
            return self._held[1]
        self._held = None  # before the next is made: both would not fit
        buffer: Tensor | None = None
        for number in range(self.buffer_chunks):
            chunk = self._checked_chunk(index * self.buffer_chunks + number)
            if buffer is None:
                buffer = chunk.new_empty(self.rows * self.buffer_chunks, self.d_in)
            buffer[number * self.rows : (number + 1) * self.rows] = chunk
        assert buffer is not None
        drawn = np.random.default_rng((seed, index)).permutation(len(buffer))
        order = torch.from_numpy(self._usual(buffer, drawn)).to(buffer.device)
        self._held = (seed, index), (buffer, order)
        return buffer, order

    def _usual(self, buffer: Tensor, drawn: NDArray[np.int64]) -> NDArray[np.int64]:
        """`drawn` with its first rows again in place of those of outlying norm."""
        if self.outlier_threshold is None:
            return drawn
        usual = drawn[~is_outlying(buffer, self.outlier_threshold).cpu().numpy()[drawn]]
        if not len(usual):
            raise AutointerpError(
                f"all {len(drawn)} activations of a buffer have a norm above {self.outlier_threshold:g}"
            )
        return np.resize(usual, len(drawn))

    def _checked_chunk(self, index: int) -> Tensor:
        made = self.chunk(index)
        if made.shape != (self.rows, self.d_in):
            raise ConfigError(f"chunk {index} has the shape {tuple(made.shape)}, expected {(self.rows, self.d_in)}")
        return made
