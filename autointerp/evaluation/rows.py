"""Held-out documents: the rows of text that an evaluation reads, from the corpus' end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

    from autointerp.artifacts import Corpus

HELD_OUT = 50_000  # tokens at the corpus' end on which an SAE that the run trains is measured


def held_out_of(tokens: int) -> int:
    """How many of the corpus' last tokens, BOS not counted, an SAE that the run trains does not see."""
    return min(HELD_OUT, tokens // 10)


def held_out_from(corpus: Corpus, count: int) -> int:
    """Flat position of the first row that lies wholly in the last `count` tokens, BOS not counted."""
    import numpy as np

    skip = int(corpus.info.bos_id is not None)
    begins = corpus.offsets - skip * np.arange(len(corpus.offsets))  # of each row among the activations
    return int(corpus.offsets[np.searchsorted(begins, begins[-1] - count)])


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
    rows: list[Row] = []
    count, last = 0, corpus.info.n_rows
    while last and count < tokens:
        document = int(corpus.documents[last - 1])
        first = int(np.searchsorted(corpus.documents, document))
        if corpus.offsets[first] < first_token:
            break
        whole = np.concatenate([corpus.row(r)[skip:] for r in range(first, last)])
        pieces = [Row(document, np.concatenate([head, whole[at : at + room]]).astype(np.int64))
                  for at in range(0, len(whole), room)]  # fmt: skip
        rows += pieces
        count += sum(len(row.tokens) for row in pieces)
        last = first
    return rows


def batches(rows: Sequence[Row], batch_tokens: int) -> Iterator[tuple[list[Row], torch.Tensor]]:
    """Rows of like length and their tokens [b, s] int64, padded on the right with 0: at most `batch_tokens` a batch
    (one row at least), the longest first."""
    import numpy as np
    import torch

    order = sorted(rows, key=lambda row: -len(row.tokens))
    at = 0
    while at < len(order):
        width = len(order[at].tokens)
        batch = order[at : at + max(1, batch_tokens // width)]
        at += len(batch)
        tokens = np.zeros((len(batch), width), np.int64)
        for i, row in enumerate(batch):
            tokens[i, : len(row.tokens)] = row.tokens
        yield batch, torch.from_numpy(tokens)
