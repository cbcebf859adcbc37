"""Activations for a training straight from the subject: nothing of them is stored.

1. Each epoch goes through the corpus' rows in another random order, which depends on the seed and the epoch alone.
2. Chunk i is the i-th run of `rows` tokens of that order; it is the same each time it is asked for, so that a training
   resumes exactly. A row that two chunks share is run for both.
3. `sae.source.StreamSource` mixes as many chunks as its buffer holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from autointerp.activations.dense import as_half, padded
from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    from autointerp.artifacts import Corpus

CHUNK = 8192  # tokens
BUFFER = 1 << 18  # tokens that are mixed: 400 MB of 768 numbers in float16


class CorpusStream:
    """The activations of the corpus' rows [0, last), BOS left out, in float16 as `harvest_dense` stores them.

    Raises AutointerpError for activations that float16 cannot hold.
    """

    def __init__(
        self,
        corpus: Corpus,
        activations: Callable[[Tensor], Tensor],
        last: int,
        *,
        seed: int,
        batch_tokens: int,
        device: str | torch.device,
    ) -> None:
        """activations: token ids [b, s] int64 -> [b, s, d]. batch_tokens: of one pass, at most (one row at least)."""
        self.corpus, self.activations, self.seed = corpus, activations, seed
        self.batch_tokens, self.device = batch_tokens, device
        self.skip = int(corpus.info.bos_id is not None)
        self.last = last
        self._lengths = np.diff(corpus.offsets) - self.skip  # of all rows
        self.tokens = int(self._lengths[:last].sum())
        self.rows = min(CHUNK, self.tokens)  # of every chunk
        self._order: tuple[int, np.ndarray, np.ndarray] | None = None  # epoch, rows in its order, where each ends

    def chunk(self, index: int) -> Tensor:
        """[rows, d] float16."""
        epoch, within = divmod(index, self.tokens // self.rows)
        order, ends = self._order_of(epoch)
        start, stop = within * self.rows, (within + 1) * self.rows
        first, last = int(ends.searchsorted(start, side="right")), int(ends.searchsorted(stop)) + 1
        begins = ends[first:last] - self._lengths[order[first:last]]
        low, high = np.maximum(start - begins, 0), np.minimum(stop, ends[first:last]) - begins
        return self._run(order[first:last], low, high)

    def held_out(self) -> Tensor:
        """[n, d] float16 activations of the rows from `last` on, which no chunk has. AutointerpError where there are
        none."""
        if self.last == self.corpus.info.n_rows:
            raise AutointerpError(
                "the text is too short for rows on which the SAE is measured alone: raise corpus.tokens"
            )
        rows = np.arange(self.last, self.corpus.info.n_rows)
        return self._run(rows, np.zeros_like(rows), self._lengths[rows])

    def _order_of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.last)
            self._order = epoch, order, self._lengths[order].cumsum()
        return self._order[1:]

    def _run(self, rows: np.ndarray, low: np.ndarray, high: np.ndarray) -> Tensor:
        """Of each row the tokens from `low` to `high`, BOS not counted; rows of like length are run together."""
        parts: list[Tensor] = []
        longest_first = np.argsort(-self._lengths[rows], kind="stable")
        at = 0
        while at < len(rows):
            width = int(self._lengths[rows[longest_first[at]]]) + self.skip
            chosen = longest_first[at : at + max(1, self.batch_tokens // width)]
            at += len(chosen)
            made = self.activations(padded(self.corpus, rows[chosen]).to(self.device))
            parts += [as_half(x[self.skip + low[i] : self.skip + high[i]]) for x, i in zip(made, chosen)]
        return torch.cat(parts)
