"""Store the subject's activations of a whole corpus, dense, for an SAE to be trained on over several epochs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autointerp.artifacts import Corpus, write_atomically
from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from autointerp.progress import Progress

HASHED_AT_ONCE = 1 << 26  # bytes
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

    Goes on where an earlier call was killed: ``log/rows.json`` holds the rows that are done and the hash of their
    bytes, and where these are others now, it begins anew. Raises AutointerpError for activations that float16 cannot
    hold, and OSError where the disk is full: into a memory map a full disk ends the process by SIGBUS.
    """
    import numpy as np
    import torch

    skip = int(corpus.info.bos_id is not None)
    lengths = np.diff(corpus.offsets) - skip
    ends = np.concatenate([[0], np.cumsum(lengths)])
    path, mark = folder / "activations.npy", folder / "log" / "rows.json"
    mark.parent.mkdir(exist_ok=True)
    width = d * np.dtype(np.float16).itemsize
    first, hashed = _done(mark, path, ends * width)
    if not first:
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(int(ends[-1]), d))  # its header and size
    bar.advance(int(corpus.offsets[first]), skipped=True)
    saved = first
    per_batch = max(1, batch_tokens // corpus.info.context)
    with open(path, "r+b") as out:
        out.seek(int(ends[first] - ends[-1]) * width, os.SEEK_END)
        for start in range(first, len(lengths), per_batch):
            stop = min(start + per_batch, len(lengths))
            made = activations(padded(corpus, range(start, stop)).to(device))
            own = [x[skip : skip + length] for x, length in zip(made, lengths[start:stop].tolist())]
            kept = as_half(torch.cat(own)).cpu().numpy().tobytes()
            out.write(kept)
            hashed.update(kept)
            bar.advance(int(corpus.offsets[stop] - corpus.offsets[start]))
            if ends[stop] - ends[saved] >= SAVE_EVERY or stop == len(lengths):
                out.flush()
                os.fsync(out.fileno())
                saved = stop
                text = json.dumps({"rows": saved, "sha256": hashed.hexdigest()})
                write_atomically(mark, lambda temporary, text=text: temporary.write_text(text))


def padded(corpus: Corpus, rows: Sequence[int] | np.ndarray) -> Tensor:
    """Rows of the corpus as tokens [b, s] int64, padded on the right with 0."""
    import numpy as np
    import torch

    given = [corpus.row(row) for row in rows]
    tokens = np.zeros((len(given), max(map(len, given))), np.int64)
    for line, row in zip(tokens, given):
        line[: len(row)] = row
    return torch.from_numpy(tokens)


def as_half(x: Tensor) -> Tensor:
    """x in float16. Raises AutointerpError where that cannot hold it."""
    if x.numel() and not float(x.abs().max()) < 6e4:
        raise AutointerpError("activations are too large for float16, or not finite: choose another hook point")
    return x.half()


def _done(mark: Path, path: Path, ends: np.ndarray) -> tuple[int, hashlib._Hash]:
    """How many rows an earlier call has left whole, and the hash of their bytes, to go on with. `ends`: the byte at
    which each row begins, and where the last ends."""
    import numpy as np

    nothing = 0, hashlib.sha256()
    try:
        about = json.loads(mark.read_text())
        rows, sha256 = int(about["rows"]), about["sha256"]
        data = np.lib.format.open_memmap(path, mode="r").reshape(-1).view(np.uint8)
    except (OSError, ValueError, KeyError, TypeError):
        return nothing
    if not 0 <= rows < len(ends) or len(data) != ends[-1]:
        return nothing
    hashed = hashlib.sha256()
    for start in range(0, int(ends[rows]), HASHED_AT_ONCE):
        hashed.update(data[start : min(start + HASHED_AT_ONCE, int(ends[rows]))].tobytes())
    return (rows, hashed) if hashed.hexdigest() == sha256 else nothing
