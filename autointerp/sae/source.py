"""Where a training's activations come from: an array on disk or a stream, from any step on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from autointerp.activations.outliers import is_outlying
from autointerp.errors import AutointerpError, ConfigError
from autointerp.sae.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ActivationSource(Protocol):
    @property
    def d_in(self) -> int: ...

    def batches(self, seed: int, start_step: int, batch_size: int) -> Iterator[Tensor]:
        """Endless [batch_size, d_in] batches from `start_step` on. Batch i depends on (seed, i) alone."""
        ...


@runtime_checkable
class SharedSource(ActivationSource, Protocol):
    """One of which a rank reads no more than it needs."""

    def batches_of(self, ranks: Ranks, seed: int, start_step: int, batch_size: int) -> Iterator[Tensor]:
        """Of the same batches the rows [≤ batch_size, d_in] of this rank; each row is one rank's."""
        ...


def batches_of(ranks: Ranks, source: ActivationSource, seed: int, start_step: int, batch_size: int) -> Iterator[Tensor]:
    """This rank's rows of a source's batches."""
    if ranks.count > 1 and isinstance(source, SharedSource):
        return source.batches_of(ranks, seed, start_step, batch_size)
    batches = source.batches(seed, start_step, batch_size)
    return batches if ranks.count == 1 else (batch[ranks.part(batch_size)] for batch in batches)


def ahead(batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same batches, each read while a GPU is busy with the one before it."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, batches)
        while True:
            batch = coming.result()
            coming = reader.submit(next, batches)
            yield batch if batch.is_cuda else batch.pin_memory()


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
        return self.batches_of(ALONE, seed, start_step, batch_size)

    def batches_of(self, ranks: Ranks, seed: int, start_step: int, batch_size: int) -> Iterator[Tensor]:
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
                chosen = np.sort(order[step * batch_size : (step + 1) * batch_size])[ranks.part(batch_size)]
                yield torch.from_numpy(np.ascontiguousarray(self.rows[chosen]))
            epoch, at = epoch + 1, 0

    def __getstate__(self) -> dict[str, Any]:
        """For another process: of a file its place, else the numbers themselves."""
        place = _Map.of(self.rows) if isinstance(self.rows, np.memmap) else None
        return {"rows": self.rows if place is None else place, "left_out": self.left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        rows = state["rows"]
        self.rows, self.left_out = rows.open() if isinstance(rows, _Map) else rows, state["left_out"]

    def hold_out(self, count: int) -> tuple[ArraySource, Tensor]:
        """(source without its last `count` rows, those rows [count, d_in]): the tail, to share no document. What is
        left out of batches is among them."""
        if not 0 < count < len(self.rows):
            raise ConfigError(f"cannot hold out {count} of {len(self.rows)} activations")
        held_out = torch.from_numpy(np.array(self.rows[-count:]))  # a copy: the rows may be a read-only map
        rest = len(self.rows) - count
        return ArraySource(self.rows[:rest], self.left_out[self.left_out < rest]), held_out


class _Map(NamedTuple):
    """Where the numbers of a memory map lie."""

    file: str
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @staticmethod
    def of(rows: np.memmap[Any, Any]) -> _Map | None:
        """None where they do not lie one after the other in a file."""
        whole = rows
        while isinstance(whole.base, np.memmap):
            whole = whole.base
        if whole.filename is None or not rows.flags.c_contiguous:
            return None
        offset = whole.offset + rows.ctypes.data - whole.ctypes.data
        return _Map(str(whole.filename), offset, rows.shape, rows.dtype)

    def open(self) -> NDArray[np.floating]:
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)


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

    Each of several ranks makes and holds its part of a buffer's chunks, and gets the rows of a batch that are of those:
    about as many as the others, by chance.
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
        self._held: tuple[tuple[int, int, Ranks], tuple[Tensor, Tensor]] | None = None

    @property
    def d_in(self) -> int:
        return self._d_in

    def batches(self, seed: int, start_step: int, batch_size: int) -> Iterator[Tensor]:
        return self.batches_of(ALONE, seed, start_step, batch_size)

    def batches_of(self, ranks: Ranks, seed: int, start_step: int, batch_size: int) -> Iterator[Tensor]:
        per_buffer = self.rows * self.buffer_chunks // batch_size
        if per_buffer == 0:
            raise ConfigError(
                f"a buffer of {self.rows * self.buffer_chunks} rows does not fill a batch of {batch_size}"
            )
        if ranks.count > self.buffer_chunks:
            raise ConfigError(f"{ranks.count} ranks cannot share a buffer of {self.buffer_chunks} chunks: take fewer")
        index, at = divmod(start_step, per_buffer)
        first = range(self.buffer_chunks)[ranks.part(self.buffer_chunks)].start * self.rows
        while True:
            buffer, order = self._buffer(seed, index, ranks)
            for step in range(at, per_buffer):
                chosen = order[step * batch_size : (step + 1) * batch_size] - first
                if ranks.count > 1:
                    chosen = chosen[(chosen >= 0) & (chosen < len(buffer))]
                yield buffer[chosen]
            index, at = index + 1, 0

    def _buffer(self, seed: int, index: int, ranks: Ranks) -> tuple[Tensor, Tensor]:
        """This rank's part of the index-th buffer, [rows · its chunks, d_in], and the order of the whole; the last one
        is kept, for a training reads the first twice."""
        if self._held is not None and self._held[0] == (seed, index, ranks):
            return self._held[1]
        self._held = None  # before the next is made: both would not fit
        buffer: Tensor | None = None
        own = range(self.buffer_chunks)[ranks.part(self.buffer_chunks)]
        for place, number in enumerate(own):
            chunk = self._checked_chunk(index * self.buffer_chunks + number)
            if buffer is None:
                buffer = chunk.new_empty(self.rows * len(own), self.d_in)
            buffer[place * self.rows : (place + 1) * self.rows] = chunk
        assert buffer is not None
        drawn = np.random.default_rng((seed, index)).permutation(self.rows * self.buffer_chunks)
        if self.outlier_threshold is not None:
            drawn = self._usual(drawn, self._outlying(buffer, own.start * self.rows, ranks))
        order = torch.from_numpy(drawn).to(buffer.device)
        self._held = (seed, index, ranks), (buffer, order)
        return buffer, order

    def _outlying(self, buffer: Tensor, first: int, ranks: Ranks) -> NDArray[np.bool_]:
        """Which rows of the whole buffer have an outlying norm, of which this rank has those from `first` on."""
        assert self.outlier_threshold is not None
        mask = torch.zeros(self.rows * self.buffer_chunks, dtype=torch.bool)
        mask[first : first + len(buffer)] = is_outlying(buffer, self.outlier_threshold).cpu()
        return ranks.any_aside(mask).numpy()

    def _usual(self, drawn: NDArray[np.int64], outlying: NDArray[np.bool_]) -> NDArray[np.int64]:
        """`drawn` with its first rows again in place of those of outlying norm."""
        usual = drawn[~outlying[drawn]]
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
