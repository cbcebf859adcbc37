"""The rows of text that an evaluation reads: documents from the corpus' end, cut to the wanted length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

    from autointerp.artifacts import Corpus


@dataclass(frozen=True)
class Row:
    document: int
    tokens: np.ndarray  # [n] int64, BOS first where the corpus has one


def rows_of(corpus: Corpus, tokens: int, context: int, *, first_token: int = 0) -> list[Row]:
    """Whole documents from the corpus' end until they hold `tokens`, cut into rows of at most `context`, BOS included.

    A document's rows in the corpus are joined before they are cut, so `context` may be longer than the corpus'.
    Documents that begin before the flat corpus position `first_token` are left out. Rows of one token after BOS
    (nothing to predict) are kept: they count for reconstruction.
    """
    import numpy as np

    head = [] if corpus.info.bos_id is None else [corpus.info.bos_id]
    skip, room = len(head), context - len(head)
    found: list[Row] = []
    count, last = 0, corpus.info.n_rows
    while last and count < tokens:
        document = int(corpus.documents[last - 1])
        first = int(np.searchsorted(corpus.documents, document))
        if corpus.offsets[first] < first_token:
            break
        whole = np.concatenate([corpus.row(r)[skip:] for r in range(first, last)])
        pieces = [Row(document, np.concatenate([head, whole[at : at + room]]).astype(np.int64))
                  for at in range(0, len(whole), room)]  # fmt: skip
        found += pieces
        count += sum(len(row.tokens) for row in pieces)
        last = first
    return found


def batches(rows: Sequence[Row], batch_tokens: int) -> Iterator[tuple[list[Row], torch.Tensor]]:
    """Rows of like length and their tokens [b, s] int64, padded on the right with 0: at most `batch_tokens` a batch
    (one row at least), the longest first."""
    import numpy as np
    import torch

    order = sorted(rows, key=lambda row: -len(row.tokens))
    at = 0
    while at < len(order):
        width = len(order[at].tokens)
        some = order[at : at + max(1, batch_tokens // width)]
        at += len(some)
        tokens = np.zeros((len(some), width), np.int64)
        for i, row in enumerate(some):
            tokens[i, : len(row.tokens)] = row.tokens
        yield some, torch.from_numpy(tokens)
