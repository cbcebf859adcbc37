"""Harvest: run a corpus through the subject and the SAE, and keep where each latent fires, sparse, shard by shard.

1. `text_shards`: the corpus is cut into runs of whole rows.
2. `harvest_shard`: the firings of one run, sorted by latent, in one file.
3. `merge_shards`: counts and peaks over all shards, and ``firings.json``, which says that the harvest is whole.

`harvest` does all three and goes on where an earlier call was killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autointerp.activations.outliers import is_outlying
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
SHARD_TOKENS = 2_000_000


@dataclass(frozen=True)
class Harvest:
    """What is harvested, and how.

    `activations` are the subject, or what `harvest_dense` wrote of this corpus: then no model is run. Rows of like
    length run together, padded on the right to at most `batch_tokens` tokens (one row at least). Padding, with
    `skip_bos` each row's BOS, and activations of a norm above `outlier_threshold` (a firing at an attention sink is no
    evidence of what a latent means) never fire, and reach the SAE only where it is `contextual`.
    """

    corpus: Corpus
    activations: Activations | np.ndarray
    encode_sparse: EncodeSparse
    n_latents: int
    hook: str  # what the activations are of, for `FiringsInfo` and for errors
    skip_bos: bool
    batch_tokens: int
    device: str | torch.device
    contextual: bool = False  # encode_sparse is given whole rows [b, s, d], whose tokens it counts through
    outlier_threshold: float | None = None

    @property
    def skip(self) -> int:
        """Tokens at the start of a row that are left out."""
        return int(self.skip_bos and self.corpus.info.bos_id is not None)

    def covers(self, first: int, last: int) -> str:
        """What a shard's file says of itself, as JSON."""
        about = {"rows": [first, last], "n_latents": self.n_latents, "hook": self.hook, "skip_bos": self.skip_bos}
        if self.outlier_threshold is not None:
            about["outlier_threshold"] = self.outlier_threshold
        return json.dumps(about)


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
    outlier_threshold: float | None = None,
    shard_tokens: int = SHARD_TOKENS,
    bar: Progress,
) -> None:
    """Write the `Firings` of `corpus` into `folder`; go on where an earlier call was killed.

    A latent fires where its value is above 0. Memory: one shard of at most `shard_tokens` tokens, about 24 bytes a
    firing. Disk: 6 bytes a firing (8 where a value is above `HALF_MAX`). `bar` advances by tokens, BOS included. The
    other arguments are those of `Harvest`. A shard whose file is there and covers the same rows is not made again.

    Raises AutointerpError where the subject's activations are not finite.
    """
    about = (corpus, activations, encode_sparse, n_latents, hook, skip_bos, batch_tokens, device)
    wanted = Harvest(*about, outlier_threshold=outlier_threshold)
    folder.mkdir(parents=True, exist_ok=True)
    remove_torn(folder)
    shards = text_shards(corpus, shard_tokens)
    for number, (first, last) in enumerate(shards):
        path = shard_path(folder, number)
        if _covers(path) == wanted.covers(first, last):
            bar.advance(int(corpus.offsets[last] - corpus.offsets[first]), skipped=True)
        else:
            harvest_shard(wanted, first, last, path, bar)
    merge_shards(wanted, folder, len(shards))


def text_shards(corpus: Corpus, shard_tokens: int = SHARD_TOKENS) -> list[tuple[int, int]]:
    """Runs of whole rows [first, last) of at most `shard_tokens` tokens; a longer row is a shard of its own."""
    offsets, shards, first = corpus.offsets, [], 0
    while first < len(offsets) - 1:
        last = max(first + 1, int(offsets.searchsorted(offsets[first] + shard_tokens, side="right")) - 1)
        shards.append((first, last))
        first = last
    return shards


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def remove_torn(folder: Path) -> None:
    """Remove what a process that was killed while writing left in `folder`."""
    for torn in folder.glob(".*.tmp"):
        torn.unlink()


def harvest_shard(wanted: Harvest, first: int, last: int, path: Path, bar: Progress) -> None:
    """Write the firings of the rows [first, last) as one shard of `Firings`."""
    outlying: list[np.ndarray] = []
    _shard_of(wanted, first, last, path, _batches(wanted, first, last, outlying, bar), outlying)


def harvest_triples(
    wanted: Harvest, first: int, last: int, path: Path, batches: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> None:
    """`harvest_shard` of known firings: (latent, position in the shard, value), batch by batch in any order."""
    _shard_of(wanted, first, last, path, batches, [])


def _shard_of(
    wanted: Harvest,
    first: int,
    last: int,
    path: Path,
    batches: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]],
    outlying: list[np.ndarray],
) -> None:
    start, stop = int(wanted.corpus.offsets[first]), int(wanted.corpus.offsets[last])
    _write_shard(path, batches, outlying, wanted.n_latents, start, stop, wanted.covers(first, last))


def merge_shards(wanted: Harvest, folder: Path, n_shards: int) -> None:
    """Write what is counted over all shards; ``firings.json`` comes last."""
    import numpy as np

    counts, peaks = np.zeros(wanted.n_latents, np.int64), np.zeros(wanted.n_latents, np.float32)
    outlying = sum(_summarise(shard_path(folder, number), counts, peaks) for number in range(n_shards))
    tokens = int(wanted.corpus.offsets[-1]) - wanted.skip * wanted.corpus.info.n_rows - outlying
    info = FiringsInfo(
        wanted.n_latents, tokens, n_shards, wanted.hook, wanted.skip_bos, wanted.outlier_threshold, outlying
    )
    write_atomically(folder / "counts.npy", lambda path: _save(path, counts))
    write_atomically(folder / "peaks.npy", lambda path: _save(path, peaks))
    write_atomically(folder / "firings.json", lambda path: path.write_text(json.dumps(asdict(info), indent=2)))


def _batches(
    wanted: Harvest, first: int, last: int, outlying: list[np.ndarray], bar: Progress
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(latent, position in the shard, value) of the firings of the rows [first, last), batch by batch; `outlying` gets
    the positions of what is left out for its norm."""
    import numpy as np
    import torch

    corpus, skip = wanted.corpus, wanted.skip
    start = corpus.offsets[first]
    text = np.asarray(corpus.tokens[start : corpus.offsets[last]])
    begins = corpus.offsets[first:last] - start
    lengths = np.diff(corpus.offsets[first : last + 1])
    order = np.argsort(-lengths, kind="stable")  # longest first: memory that suffices at the start suffices
    at = 0
    while at < len(order):
        width = int(lengths[order[at]])
        rows = order[at : at + max(1, wanted.batch_tokens // max(width, 1))]
        at += len(rows)
        column = np.arange(width)
        position = begins[rows, None] + column
        real = column < lengths[rows, None]
        kept = np.flatnonzero(real & (column >= skip))
        if len(kept):
            with torch.inference_mode():
                if isinstance(wanted.activations, np.ndarray):  # row r comes after r BOS that are not in it
                    stored = start + position - skip * (1 + first + rows)[:, None]
                    acts = torch.from_numpy(wanted.activations[stored.ravel()[kept]]).to(wanted.device, torch.float32)
                else:
                    tokens = np.where(real, text[np.minimum(position, len(text) - 1)], 0).astype(np.int64)
                    acts = wanted.activations(torch.from_numpy(tokens).to(wanted.device))
                    if not wanted.contextual:
                        acts = acts.flatten(0, 1)
                        acts = acts[torch.from_numpy(kept).to(acts.device)] if len(kept) < len(acts) else acts
                if not torch.isfinite(acts.sum(dtype=torch.float32)):
                    raise AutointerpError(f"activations at {wanted.hook} are not finite: set subject.dtype to float32")
                acts, kept, apart = _usual(wanted, acts, kept)
                outlying.append(position.ravel()[apart])
                index, latent, value = wanted.encode_sparse(acts)
                fires = value > 0
                if wanted.contextual:  # the SAE saw BOS and padding, which only what comes after can depend on
                    fires &= torch.from_numpy(np.isin(np.arange(position.size), kept)).to(index.device)[index]
                if not bool(fires.all()):
                    index, latent, value = index[fires], latent[fires], value[fires]
                places = position.ravel() if wanted.contextual else position.ravel()[kept]
                where = places[index.cpu().numpy()]
                yield latent.cpu().numpy().astype(np.int64), where, value.float().cpu().numpy()
        bar.advance(int(lengths[rows].sum()))


def _usual(wanted: Harvest, acts: Tensor, kept: np.ndarray) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """What the SAE is given of activations [m, d] (or whole rows [b, s, d]), of which those at `kept` [m] count; the
    places that count, and those left out for their norm."""
    import torch

    if wanted.outlier_threshold is None:
        return acts, kept, kept[:0]
    counted = acts.flatten(0, 1)[torch.from_numpy(kept).to(acts.device)] if wanted.contextual else acts
    apart = is_outlying(counted, wanted.outlier_threshold)
    if not bool(apart.any()):
        return acts, kept, kept[:0]
    where = apart.cpu().numpy()
    return acts if wanted.contextual else acts[~apart], kept[~where], kept[where]


def _write_shard(
    path: Path,
    batches: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]],
    outlying: list[np.ndarray],
    n_latents: int,
    start: int,
    stop: int,
    covers: str,
) -> None:
    """Sort the firings by latent, then position, and write them.

    One in-place sort of 64-bit integers that hold latent, position and float16 value side by side is
    several times faster than sorting indices and gathering by them, and needs no second copy. `outlying`, positions
    in the shard, is whole once all batches are read.
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
    if any(map(len, outlying)):
        tensors["outlying"] = np.sort(np.concatenate(outlying)).astype(np.int64) + start
    # Of several entries the writer would draw the order anew in each process, and with it the file's hash.
    metadata = {"covers": covers}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def _covers(path: Path) -> str | None:
    """What a shard's file says of itself; None where there is none that can be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as shard:
            return (shard.metadata() or {}).get("covers")
    except (OSError, SafetensorError):
        return None


def hook_of(path: Path) -> str | None:
    """What a shard's file says that the activations are of; None where there is none that can be read."""
    covers = _covers(path)
    return json.loads(covers)["hook"] if covers else None


def _summarise(path: Path, counts: np.ndarray, peaks: np.ndarray) -> int:
    """Add a shard's firings to `counts` and raise `peaks` to its highest activations, in place; how many tokens were
    left out for their norm."""
    import numpy as np
    from safetensors.numpy import load_file

    shard = load_file(path)
    indptr, activation = shard["indptr"], shard["activation"]
    firings = np.diff(indptr)
    counts += firings
    fired = np.flatnonzero(firings)
    if len(fired):
        bits = activation.view(np.uint16 if activation.dtype == np.float16 else np.uint32)  # positive floats order so
        top = np.maximum.reduceat(bits, indptr[:-1][fired]).view(activation.dtype)
        peaks[fired] = np.maximum(peaks[fired], top)
    return len(shard.get("outlying", ()))


def _save(path: Path, array: np.ndarray) -> None:
    import numpy as np

    with open(path, "wb") as file:  # np.save would add .npy to a path
        np.save(file, array)
