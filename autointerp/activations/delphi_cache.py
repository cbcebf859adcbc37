"""Read a cache of delphi's (EleutherAI) as a corpus and a harvest: the subject need not run.

A cache is a hook's folder: files ``FIRST_LAST.safetensors`` of the latents from FIRST to LAST, each with ``locations``
[n, 3] (row, place in the row, latent less FIRST), ``activations`` [n] and, in all or in one of them, ``tokens`` [rows,
context]. delphi cuts its text into rows without regard to documents, so that a row stands for a document.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open

from autointerp.artifacts import Corpus, CorpusInfo
from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    from torch import Tensor

    from autointerp.activations.harvest import Harvest

_FILE = re.compile(r"(\d+)_(\d+)\.safetensors")


def is_cache(source: str) -> bool:
    """Whether a corpus.source is a cache's folder."""
    folder = Path(source).expanduser()
    return folder.is_dir() and any(_FILE.fullmatch(file.name) for file in folder.iterdir())


def read_corpus(folder: Path, out: Path, *, tokenizer: str, bos_id: int | None, tokens: int) -> Corpus:
    """Write the rows of a cache as a corpus into `out`, as many as reach `tokens`.

    `bos_id` is the tokenizer's; the rows have one where each begins with it. Raises AutointerpError for a cache that
    kept no tokens or cannot be read.
    """
    matrix = next((held for file in _files(folder) if (held := _tensor(file, "tokens")) is not None), None)
    if matrix is None or matrix.ndim != 2 or not len(matrix):
        raise AutointerpError(f"{folder} holds no tokens: make the cache again with save_tokens")
    matrix = matrix[: -(-tokens // matrix.shape[1])].astype(np.int64)
    rows, context = matrix.shape
    bos = bos_id if bos_id is not None and bool((matrix[:, 0] == bos_id).all()) else None
    digest = hashlib.sha256(matrix.astype(np.int32).tobytes()).hexdigest()
    info = CorpusInfo(str(folder), tokenizer, bos, context, matrix.size, rows, rows, digest)
    out.mkdir(parents=True, exist_ok=True)
    Corpus.save(out, info, matrix.ravel(), np.arange(rows + 1) * context, np.arange(rows), np.zeros(rows, np.int64))
    return Corpus(out)


def read_firings(folder: Path, wanted: Harvest, out: Path) -> None:
    """Write the firings of a cache into `out`, as a harvest of `wanted.corpus` would have left them.

    Memory: one file of the cache, and one shard. Raises AutointerpError for a latent or a row that there is not.
    """
    from autointerp.activations.harvest import harvest_triples, merge_shards, shard_path, text_shards

    out.mkdir(parents=True, exist_ok=True)
    shards = text_shards(wanted.corpus)
    for number, (first, last) in enumerate(shards):
        harvest_triples(wanted, first, last, shard_path(out, number), _firings(folder, wanted, first, last))
    merge_shards(wanted, out, len(shards))


def _firings(folder: Path, wanted: Harvest, first: int, last: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(latent, position in the shard, value) of the rows [first, last), file by file."""
    import torch

    context = wanted.corpus.info.context
    for file in _files(folder):
        where, value = _tensor(file, "locations"), _tensor(file, "activations")
        if where is None or value is None or where.shape != (len(value), 3):
            raise AutointerpError(f"{file} is no part of a cache: locations and activations do not fit each other")
        where = where.astype(np.int64)
        latent = where[:, 2] + int(file.stem.partition("_")[0])
        if len(latent) and int(latent.max()) >= wanted.n_latents:
            raise AutointerpError(
                f"{file} has the latent {latent.max()}, the SAE has {wanted.n_latents}: name its own SAE"
            )
        here = (where[:, 0] >= first) & (where[:, 0] < last) & (where[:, 1] >= wanted.skip) & (value > 0)
        position = (where[here, 0] - first) * context + where[here, 1]
        yield tuple(map(torch.from_numpy, (latent[here], position, value[here].astype(np.float32))))  # type: ignore[misc]


def _files(folder: Path) -> list[Path]:
    return sorted(
        (file for file in folder.iterdir() if _FILE.fullmatch(file.name)), key=lambda file: int(file.stem.split("_")[0])
    )


def _tensor(file: Path, name: str) -> np.ndarray | None:
    try:
        with safe_open(file, framework="np") as opened:
            return opened.get_tensor(name) if name in opened.keys() else None  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise AutointerpError(f"{file} cannot be read as safetensors ({error})") from error
