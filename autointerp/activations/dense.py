"""Activations of a whole corpus, dense, for an SAE to be trained on over several epochs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from autointerp.artifacts import Corpus, write_atomically
from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from autointerp.progress import Progress

SAVE_EVERY = 500_000  # tokens between the points from which a killed run goes on


def harvest_dense(
    corpus: Corpus,
    activations: Callable[[Tensor], Tensor],
    d: int,
    folder: Path,
    *,
    batch_tokens: int,
    device: str | torch.device,
    bar: Progress,
) -> None:
    """Write ``activations.npy``, [tokens, d] float16 in the order of the corpus, every row's BOS left out.

    Goes on where an earlier call was killed (``log/rows.json``). Raises AutointerpError for activations
    that float16 cannot hold.
    """
    import numpy as np
    import torch

    skip = int(corpus.info.bos_id is not None)
    lengths = np.diff(corpus.offsets) - skip
    ends = np.concatenate([[0], np.cumsum(lengths)])
    path, mark = folder / "activations.npy", folder / "log" / "rows.json"
    mark.parent.mkdir(exist_ok=True)
    first = json.loads(mark.read_text()) if mark.exists() and path.exists() else 0
    out = (
        np.lib.format.open_memmap(path, mode="r+")
        if first
        else np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(int(ends[-1]), d))
    )
    bar.advance(int(corpus.offsets[first]), skipped=True)
    saved = first
    per_batch = max(1, batch_tokens // corpus.info.context)
    for start in range(first, len(lengths), per_batch):
        stop = min(start + per_batch, len(lengths))
        rows = [corpus.row(r) for r in range(start, stop)]
        tokens = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
        x = activations(torch.from_numpy(tokens).to(device))
        if x.numel() and not float(x.abs().max()) < 6e4:
            raise AutointerpError("activations are too large for float16, or not finite: choose another hook point")
        for i, row in enumerate(rows):
            out[ends[start + i] : ends[start + i + 1]] = x[i, skip : len(row)].half().cpu().numpy()
        bar.advance(int(corpus.offsets[stop] - corpus.offsets[start]))
        if ends[stop] - ends[saved] >= SAVE_EVERY or stop == len(lengths):
            out.flush()
            saved = stop
            write_atomically(mark, lambda temporary: temporary.write_text(json.dumps(saved)))  # noqa: B023
