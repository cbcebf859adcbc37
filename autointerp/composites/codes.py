"""Run the subject again on the rows that hold chosen tokens, and encode them with an SAE."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from autointerp.artifacts import Corpus
    from autointerp.progress import Progress
    from autointerp.sae.model import SAE
    from autointerp.subject.model import Subject


class Codes:
    """The codes of a batch of activations [n, d], by token and latent, and what they leave unexplained."""

    def __init__(self, sae: SAE, acts: torch.Tensor) -> None:
        codes = sae.encode_sparse(acts)
        self.n = sae.cfg.d_sae
        self.left = sae.unexplained(acts, codes)  # [n, d]
        self.keys, order = (codes.token_index * self.n + codes.latent_index).sort()
        self.values = codes.value[order]

    def value(self, token: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """Activations of latents at tokens, of one shape; 0 where a latent is silent or -1."""
        if not len(self.keys):
            return torch.zeros_like(latent, dtype=self.left.dtype)
        wanted = token * self.n + latent
        at = torch.searchsorted(self.keys, wanted).clamp_max(len(self.keys) - 1)
        return torch.where((self.keys[at] == wanted) & (latent >= 0), self.values[at], 0)


def activations_at(
    corpus: Corpus, subject: Subject, position: np.ndarray, rows: np.ndarray, batch_tokens: int, bar: Progress
) -> Iterator[tuple[np.ndarray, torch.Tensor, np.ndarray]]:
    """Run the subject on each row that holds one of the flat positions [t], batch by batch.

    Yields which of the positions lie in the batch (their places among the t, [p]), the activations [n, d] of its
    distinct tokens that are asked for, and for each of the p which of the n is its own.
    """
    used = np.unique(rows)
    lengths = corpus.offsets[used + 1] - corpus.offsets[used]
    used = used[np.argsort(-lengths, kind="stable")]  # longest first: memory that suffices at the start suffices
    rank = np.zeros(corpus.info.n_rows, np.int64)
    rank[used] = np.arange(len(used))
    order = np.argsort(rank[rows], kind="stable")
    ranked, start = rank[rows][order], 0
    while start < len(used):
        width = int(corpus.offsets[used[start] + 1] - corpus.offsets[used[start]])
        batch = used[start : start + max(1, batch_tokens // width)]
        tokens = np.zeros((len(batch), width), np.int64)
        for i, row in enumerate(batch):
            tokens[i, : len(corpus.row(row))] = corpus.row(row)
        low, high = np.searchsorted(ranked, (start, start + len(batch)))
        here = order[low:high]
        flat = (rank[rows[here]] - start) * width + position[here] - corpus.offsets[rows[here]]
        places, token = np.unique(flat, return_inverse=True)
        acts = subject.activations(torch.from_numpy(tokens)).flatten(0, 1)
        yield here, acts[torch.from_numpy(places).to(acts.device)], token
        bar.advance(len(here))
        start += len(batch)
