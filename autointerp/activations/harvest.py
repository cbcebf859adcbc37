"""Harvest: run a corpus through the subject and the SAE, and keep where each latent fires, sparse, shard by shard.

1. `text_shards`: the corpus is cut into runs of whole rows.
2. `harvest_shard`: the firings of one run, sorted by latent, in one file. `harvest_side_by_side`: those of several
   SAEs, a file each, by one pass of the subject.
3. `merge_shards`: counts and peaks over all shards, and ``firings.json``, which says that the harvest is whole.

`harvest` does all three and goes on where an earlier call was killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from autointerp.activations.outliers import is_outlying
from autointerp.artifacts import Corpus, FiringsInfo, save_shard, write_atomically
from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    from torch import Tensor

    from autointerp.progress import Progress

    Activations = Callable[[Tensor], Tensor]  # token ids [b, s] int64 -> activations [b, s, d]
    EncodeSparse = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # [m, d] -> token index, latent, value: [n] each
    Triple = tuple[Tensor, Tensor, Tensor]  # latent, position in the shard, value above 0: [n] each

SHARD_TOKENS = 500_000


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
    firing. Disk: 4 bytes a firing (`artifacts.save_shard`). `bar` advances by tokens, BOS included. The
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
    source = wanted.activations
    if isinstance(source, np.ndarray):
        (failure,) = _harvest([wanted], lambda batch: [_stored(wanted, source, batch)], first, last, [path], bar)
    else:
        (failure,) = harvest_side_by_side([wanted], lambda tokens: [source(tokens)], first, last, [path], bar)
    if failure is not None:
        raise failure


def harvest_side_by_side(
    wanted: Sequence[Harvest],
    read: Callable[[Tensor], Sequence[Tensor]],
    first: int,
    last: int,
    paths: Sequence[Path],
    bar: Progress,
) -> list[AutointerpError | None]:
    """`harvest_shard` of several SAEs by one pass of the subject: `read` gives each one's activations [b, s, d] of
    token ids [b, s].

    They have corpus, `skip_bos`, `batch_tokens` and device in common. What went wrong with one of them is returned in
    its place, and its shard is not written; the others' are.
    """

    def activations(batch: _Batch) -> Iterator[Tensor]:
        values = read(torch.from_numpy(batch.tokens).to(wanted[0].device))
        return (_counted(each, batch, value) for each, value in zip(wanted, values))

    return _harvest(wanted, activations, first, last, paths, bar)


def harvest_triples(wanted: Harvest, first: int, last: int, path: Path, batches: Iterator[Triple]) -> None:
    """`harvest_shard` of known firings: (latent, position in the shard, value), batch by batch in any order."""
    shard = _Shard(wanted, first, last)
    for batch in batches:
        shard.add(*batch)
    shard.write(path)


def merge_shards(wanted: Harvest, folder: Path, n_shards: int) -> None:
    """Write what is counted over all shards; ``firings.json`` comes last."""
    counts, peaks = np.zeros(wanted.n_latents, np.int64), np.zeros(wanted.n_latents, np.float32)
    outlying = sum(_summarise(shard_path(folder, number), counts, peaks) for number in range(n_shards))
    tokens = int(wanted.corpus.offsets[-1]) - wanted.skip * wanted.corpus.info.n_rows - outlying
    info = FiringsInfo(
        wanted.n_latents, tokens, n_shards, wanted.hook, wanted.skip_bos, wanted.outlier_threshold, outlying
    )
    write_atomically(folder / "counts.npy", lambda path: _save(path, counts))
    write_atomically(folder / "peaks.npy", lambda path: _save(path, peaks))
    write_atomically(folder / "firings.json", lambda path: path.write_text(json.dumps(asdict(info), indent=2)))


def _harvest(
    wanted: Sequence[Harvest],
    activations: Callable[[_Batch], Iterable[Tensor]],
    first: int,
    last: int,
    paths: Sequence[Path],
    bar: Progress,
) -> list[AutointerpError | None]:
    """`activations`: of a batch, for each SAE in turn what `_counted` gives."""
    shards: list[_Shard | AutointerpError] = [_begun(each, first, last) for each in wanted]
    for batch in _batches(wanted[0], first, last):
        if not any(isinstance(shard, _Shard) for shard in shards):
            break
        if len(batch.kept):
            with torch.inference_mode():
                for number, acts in enumerate(activations(batch)):
                    shard = shards[number]
                    if isinstance(shard, _Shard):
                        try:
                            shard.encode(batch, acts)
                        except AutointerpError as error:
                            shards[number] = error
        bar.advance(batch.n_tokens)
    for number, path in enumerate(paths):
        shard = shards[number]
        if isinstance(shard, _Shard):
            shard.write(path)
    return [shard if isinstance(shard, AutointerpError) else None for shard in shards]


@dataclass(frozen=True)
class _Batch:
    """Rows that run together, padded on the right."""

    rows: np.ndarray  # [b], of the corpus
    tokens: np.ndarray  # [b, s] int64, 0 as padding
    position: np.ndarray  # [b, s] in the shard
    kept: np.ndarray  # [m] flat places of [b, s] that may fire: no padding and no BOS
    n_tokens: int  # without padding


def _batches(wanted: Harvest, first: int, last: int) -> Iterator[_Batch]:
    corpus = wanted.corpus
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
        tokens = np.where(real, text[np.minimum(position, len(text) - 1)], 0) if len(text) else position
        kept = np.flatnonzero(real & (column >= wanted.skip))
        yield _Batch(first + rows, tokens.astype(np.int64), position, kept, int(lengths[rows].sum()))


def _stored(wanted: Harvest, stored: np.ndarray, batch: _Batch) -> Tensor:
    """What `harvest_dense` wrote of what counts in a batch, [m, d]: row r comes after r BOS that are not in it."""
    start = wanted.corpus.offsets[batch.rows, None] + np.arange(batch.position.shape[1])
    places = start - wanted.skip * (1 + batch.rows)[:, None]
    return torch.from_numpy(stored[places.ravel()[batch.kept]]).to(wanted.device, torch.float32)


def _counted(wanted: Harvest, batch: _Batch, acts: Tensor) -> Tensor:
    """Of the subject's activations [b, s, d] those that count, [m, d]; all where the SAE reads whole rows."""
    if wanted.contextual:
        return acts
    acts = acts.flatten(0, 1)
    return acts[torch.from_numpy(batch.kept).to(acts.device)] if len(batch.kept) < len(acts) else acts


def _usual(wanted: Harvest, acts: Tensor, kept: np.ndarray) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """What the SAE is given of activations [m, d] (or whole rows [b, s, d]), of which those at `kept` [m] count; the
    places that count, and those left out for their norm."""
    if wanted.outlier_threshold is None:
        return acts, kept, kept[:0]
    counted = acts.flatten(0, 1)[torch.from_numpy(kept).to(acts.device)] if wanted.contextual else acts
    apart = is_outlying(counted, wanted.outlier_threshold)
    if not bool(apart.any()):
        return acts, kept, kept[:0]
    where = apart.cpu().numpy()
    return acts if wanted.contextual else acts[~apart], kept[~where], kept[where]


def _begun(wanted: Harvest, first: int, last: int) -> _Shard | AutointerpError:
    try:
        return _Shard(wanted, first, last)
    except AutointerpError as error:
        return error


class _Shard:
    """The firings of the rows [first, last), gathered batch by batch, then sorted by latent and position and written.

    One in-place sort of 64-bit integers that hold latent, position and float16 value side by side is several times
    faster than sorting indices and gathering by them.
    """

    def __init__(self, wanted: Harvest, first: int, last: int) -> None:
        self._wanted, self._covers = wanted, wanted.covers(first, last)
        self._start, stop = int(wanted.corpus.offsets[first]), int(wanted.corpus.offsets[last])
        self._shift = max(stop - self._start, 1).bit_length()
        if wanted.n_latents.bit_length() + self._shift + 16 >= 64:
            raise AutointerpError(
                f"{wanted.n_latents} latents and {stop - self._start} tokens do not fit one shard: lower shard_tokens"
            )
        self._parts: list[np.ndarray] = []
        self._large: list[tuple[np.ndarray, np.ndarray]] = []
        self._outlying: list[np.ndarray] = []  # positions of what is left out for its norm

    def encode(self, batch: _Batch, acts: Tensor) -> None:
        """Add the firings of what `_counted` gave of a batch. Raises AutointerpError where it is not finite."""
        wanted, position = self._wanted, batch.position.ravel()
        if not torch.isfinite(acts.sum(dtype=torch.float32)):
            raise AutointerpError(f"activations at {wanted.hook} are not finite: set subject.dtype to float32")
        acts, kept, apart = _usual(wanted, acts, batch.kept)
        if len(apart):
            self._outlying.append(position[apart])
        index, latent, value = wanted.encode_sparse(acts)
        fires = value > 0
        if wanted.contextual:  # the SAE saw BOS and padding, which only what comes after can depend on
            fires &= torch.from_numpy(np.isin(np.arange(position.size), kept)).to(index.device)[index]
        if not bool(fires.all()):
            index, latent, value = index[fires], latent[fires], value[fires]
        places = position if wanted.contextual else position[kept]
        self.add(latent, torch.from_numpy(places).to(index.device)[index], value)

    def add(self, latent: Tensor, position: Tensor, value: Tensor) -> None:
        """[n] each, in any order. The tensors are used up."""
        self._parts.append(_packed(latent, position, value, self._shift, self._large))

    def write(self, path: Path) -> None:
        """Once; it takes what was gathered with it."""
        parts, shift = self._parts, self._shift
        key = np.empty(sum(map(len, parts)), np.int64)
        at = len(key)
        while parts:  # batch by batch, so that the list shrinks as `key` fills
            part = parts.pop()
            key[at - len(part) : at] = part
            at -= len(part)
        key.sort()
        activation = key.astype(np.uint16).view(np.float16)  # the cast keeps the low 16 bits
        key >>= 16
        indptr = key.searchsorted(np.arange(self._wanted.n_latents + 1, dtype=np.int64) << shift)
        key &= (1 << shift) - 1
        position = key.astype(np.int32 if shift < 32 else np.int64)
        del key
        outlying, start = self._outlying, self._start
        apart = np.sort(np.concatenate(outlying)).astype(np.int64) + start if outlying else None
        # Of several entries the writer would draw the order anew in each process, and with it the file's hash.
        metadata = {"covers": self._covers}
        values = _in_order(self._large)
        save_shard(path, indptr, position, activation, start=start, large=values, outlying=apart, metadata=metadata)


def _packed(
    latent: Tensor, position: Tensor, value: Tensor, shift: int, large: list[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """latent, position and float16 value in one integer each; `large` gets (latent and position, value) of those that
    float16 cannot hold, which are infinite in it. The tensors given are used up."""
    key = latent.to(torch.int64).bitwise_left_shift_(shift).bitwise_or_(position)
    half = value.to(torch.float16).clamp_(min=6e-8)  # what fires stays above 0
    if len(half) and bool(torch.isinf(half.max())):
        over = torch.isinf(half)
        large.append((key[over].cpu().numpy(), value[over].float().cpu().numpy()))
    return key.bitwise_left_shift_(16).bitwise_or_(half.view(torch.int16)).cpu().numpy()


def _in_order(large: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray | None:
    """The values in the order of their latents and positions."""
    if not large:
        return None
    keys, values = (np.concatenate(part) for part in zip(*large))
    return values[np.argsort(keys)]


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
    from safetensors.numpy import load_file

    shard = load_file(path)
    indptr, activation = shard["indptr"], shard["activation"]
    firings = np.diff(indptr)
    counts += firings
    fired = np.flatnonzero(firings)
    if len(fired):
        top = np.maximum.reduceat(activation.view(np.uint16), indptr[:-1][fired]).view(np.float16)  # order as bits do
        within = np.where(np.isinf(top), 0, top)
        peaks[fired] = np.maximum(peaks[fired], within)
    if "large" in shard:
        np.maximum.at(peaks, indptr.searchsorted(shard["large_at"], side="right") - 1, shard["large"])
    return len(shard.get("outlying", ()))


def _save(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:  # np.save would add .npy to a path
        np.save(file, array)
