"""Run a corpus through the subject and the SAE, and keep where each latent fires: sparse, shard by shard."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from autointerp.artifacts import Corpus, FiringsInfo, write_atomically
from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from autointerp.progress import Progress

    Activations = Callable[[Tensor], Tensor]  # token ids [b, s] int64 -> activations [b, s, d]
    EncodeSparse = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # [m, d] -> token index, latent, value: [n] each

HALF_MAX = 6e4  # above it a shard keeps float32: float16 ends at 65,504


def harvest(
    corpus: Corpus,
    activations: Activations | np.ndarray,
    encode_sparse: EncodeSparse,
    n_latents: int,
    folder: Path,
    *,
    hook: str,
    skip_bos: bool,
    batch_tokens: int,
    device: str | torch.device,
    shard_tokens: int = 2_000_000,
    bar: Progress,
) -> None:
    """Write the `Firings` of `corpus` into `folder`; go on where an earlier call was killed.

    A latent fires where its value is above 0. Rows of like length run together, padded on the right
    to at most `batch_tokens` tokens (one row at least); padding, and with `skip_bos` each row's BOS,
    never reach the SAE. Memory: one shard of at most `shard_tokens` tokens, about 24 bytes a firing.
    Disk: 6 bytes a firing (8 where a value is above `HALF_MAX`). `bar` advances by tokens, BOS included.
    `activations` can also be what `harvest_dense` wrote of this corpus: then no model is run.

    Raises AutointerpError where the subject's activations are not finite.
    """
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    for torn in folder.glob(".*.tmp"):  # left by a process that was killed while writing
        torn.unlink()
    skip = int(skip_bos and corpus.info.bos_id is not None)
    counts, peaks = np.zeros(n_latents, np.int64), np.zeros(n_latents, np.float32)
    n_shards = 0
    for first, last in _shards(corpus.offsets, shard_tokens):
        path = folder / f"shard-{n_shards:05d}.safetensors"
        covers = {"rows": f"{first}:{last}", "n_latents": str(n_latents), "hook": hook, "skip_bos": str(skip_bos)}
        if path.exists() and _metadata(path) == covers:
            bar.advance(int(corpus.offsets[last] - corpus.offsets[first]), skipped=True)
        else:
            batches = _batches(corpus, first, last, activations, encode_sparse, skip, batch_tokens, device, hook, bar)
            _write_shard(path, batches, n_latents, int(corpus.offsets[first]), int(corpus.offsets[last]), covers)
        _summarise(path, counts, peaks)
        n_shards += 1

    info = FiringsInfo(n_latents, int(corpus.offsets[-1]) - skip * corpus.info.n_rows, n_shards, hook, skip_bos)
    write_atomically(folder / "counts.npy", lambda path: _save(path, counts))
    write_atomically(folder / "peaks.npy", lambda path: _save(path, peaks))
    write_atomically(folder / "firings.json", lambda path: path.write_text(json.dumps(asdict(info), indent=2)))


def _shards(offsets: np.ndarray, shard_tokens: int) -> Iterator[tuple[int, int]]:
    """Runs of whole rows [first, last) of at most `shard_tokens` tokens; a longer row is a shard of its own."""
    first, n_rows = 0, len(offsets) - 1
    while first < n_rows:
        last = max(first + 1, int(offsets.searchsorted(offsets[first] + shard_tokens, side="right")) - 1)
        yield first, last
        first = last


def _batches(
    corpus: Corpus,
    first: int,
    last: int,
    activations: Activations | np.ndarray,
    encode_sparse: EncodeSparse,
    skip: int,
    batch_tokens: int,
    device: str | torch.device,
    hook: str,
    bar: Progress,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(latent, position in the shard, value) of the firings of the rows [first, last), batch by batch."""
    import numpy as np
    import torch

    start = corpus.offsets[first]
    text = np.asarray(corpus.tokens[start : corpus.offsets[last]])
    begins = corpus.offsets[first:last] - start
    lengths = np.diff(corpus.offsets[first : last + 1])
    order = np.argsort(-lengths, kind="stable")  # longest first: memory that suffices at the start suffices
    at = 0
    while at < len(order):
        width = int(lengths[order[at]])
        rows = order[at : at + max(1, batch_tokens // max(width, 1))]
        at += len(rows)
        column = np.arange(width)
        position = begins[rows, None] + column
        real = column < lengths[rows, None]
        kept = np.flatnonzero(real & (column >= skip))
        if len(kept):
            with torch.inference_mode():
                if isinstance(activations, np.ndarray):  # row r of the corpus comes after r BOS that are not in it
                    stored = start + position - skip * (1 + first + rows)[:, None]
                    acts = torch.from_numpy(activations[stored.ravel()[kept]]).to(device, torch.float32)
                else:
                    tokens = np.where(real, text[np.minimum(position, len(text) - 1)], 0).astype(np.int64)
                    acts = activations(torch.from_numpy(tokens).to(device)).flatten(0, 1)
                    if len(kept) < len(acts):
                        acts = acts[torch.from_numpy(kept).to(acts.device)]
                if not torch.isfinite(acts.sum(dtype=torch.float32)):
                    raise AutointerpError(f"activations at {hook} are not finite: set subject.dtype to float32")
                index, latent, value = encode_sparse(acts)
                fires = value > 0
                if not bool(fires.all()):
                    index, latent, value = index[fires], latent[fires], value[fires]
                where = position.ravel()[kept][index.cpu().numpy()]
                yield latent.cpu().numpy().astype(np.int64), where, value.float().cpu().numpy()
        bar.advance(int(lengths[rows].sum()))


def _write_shard(
    path: Path,
    batches: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]],
    n_latents: int,
    start: int,
    stop: int,
    covers: dict[str, str],
) -> None:
    """Sort the firings by latent, then position, and write them.

    One in-place sort of 64-bit integers that hold latent, position and float16 value side by side is
    several times faster than sorting indices and gathering by them, and needs no second copy.
    """
    import numpy as np
    from safetensors.numpy import save_file

    shift = max(stop - start, 1).bit_length()
    keys: list[np.ndarray] = []
    values: list[np.ndarray] = []
    for latent, position, value in batches:
        keys.append(latent << shift | position)
        values.append(value)
    n = sum(map(len, keys))
    highest = max((float(value.max()) for value in values if len(value)), default=0.0)
    packed = highest <= HALF_MAX and n_latents.bit_length() + shift + 16 < 64
    key = np.empty(n, np.int64)
    at = n
    while keys and packed:  # batch by batch, so that the lists shrink as `key` fills
        part, value = keys.pop(), values.pop()
        half = np.maximum(value.astype(np.float16), np.float16(6e-8))  # what fires stays above 0
        key[at - len(part) : at] = part << 16 | half.view(np.uint16)
        at -= len(part)
    if packed:
        key.sort()
        activation = key.astype(np.uint16).view(np.float16)  # the cast keeps the low 16 bits
        key >>= 16
    else:
        np.concatenate([key[:0], *keys], out=key)
        order = np.argsort(key)
        key, activation = key[order], np.concatenate([np.zeros(0, np.float32), *values])[order]
    indptr = key.searchsorted(np.arange(n_latents + 1, dtype=np.int64) << shift)
    key &= (1 << shift) - 1
    key += start
    position = key.astype(np.int32 if stop < 2**31 else np.int64)
    del key
    tensors = {"indptr": indptr.astype(np.int64), "position": position, "activation": activation}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=covers))


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as shard:
        return shard.metadata() or {}


def _summarise(path: Path, counts: np.ndarray, peaks: np.ndarray) -> None:
    """Add a shard's firings to `counts` and raise `peaks` to its highest activations, in place."""
    import numpy as np
    from safetensors.numpy import load_file

    shard = load_file(path)
    indptr, activation = shard["indptr"], shard["activation"]
    found = np.diff(indptr)
    counts += found
    fired = np.flatnonzero(found)
    if len(fired):
        bits = activation.view(np.uint16 if activation.dtype == np.float16 else np.uint32)  # positive floats order so
        top = np.maximum.reduceat(bits, indptr[:-1][fired]).view(activation.dtype)
        peaks[fired] = np.maximum(peaks[fired], top)


def _save(path: Path, array: np.ndarray) -> None:
    import numpy as np

    with open(path, "wb") as file:  # np.save would add .npy to a path
        np.save(file, array)
