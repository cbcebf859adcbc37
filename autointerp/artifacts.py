"""On-disk forms that several rooms read: the tokenised corpus and the harvested firings; atomic writes.

Both are plain ``.npy`` / ``.safetensors`` files beside a small JSON, readable without this package.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def write_atomically(path: Path, write: Any) -> None:
    """Call ``write(temporary_path)``, flush it to disk, and rename it to `path`: it is whole or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class CorpusInfo:
    source: str
    tokenizer: str
    bos_id: int | None  # prepended to every row, or None; as the model was trained
    context: int  # most tokens in a row, BOS included
    n_tokens: int  # BOS tokens included
    n_rows: int
    n_documents: int
    text_sha256: str


class Corpus:
    """Tokenised documents, cut into rows of at most `info.context` tokens; no row holds two documents.

    tokens.npy    [n_tokens] int32, all rows after each other, each with its BOS where there is one
    offsets.npy   [n_rows + 1] int64, row r is tokens[offsets[r]:offsets[r + 1]]
    documents.npy [n_rows] int32, the document of each row
    starts.npy    [n_rows] int32, position in its document of the row's first token that is not BOS
    corpus.json   CorpusInfo
    """

    def __init__(self, folder: str | Path) -> None:
        import numpy as np

        self.folder = Path(folder)
        self.info = CorpusInfo(**json.loads((self.folder / "corpus.json").read_text()))
        self.tokens: np.ndarray = np.load(self.folder / "tokens.npy", mmap_mode="r")
        self.offsets: np.ndarray = np.load(self.folder / "offsets.npy")
        self.documents: np.ndarray = np.load(self.folder / "documents.npy")
        self.starts: np.ndarray = np.load(self.folder / "starts.npy")

    @staticmethod
    def save(
        folder: str | Path,
        info: CorpusInfo,
        tokens: np.ndarray,
        offsets: np.ndarray,
        documents: np.ndarray,
        starts: np.ndarray,
    ) -> None:
        import numpy as np

        folder = Path(folder)
        np.save(folder / "tokens.npy", tokens.astype(np.int32))
        np.save(folder / "offsets.npy", offsets.astype(np.int64))
        np.save(folder / "documents.npy", documents.astype(np.int32))
        np.save(folder / "starts.npy", starts.astype(np.int32))
        (folder / "corpus.json").write_text(json.dumps(asdict(info), indent=2))

    def row(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def row_of(self, positions: np.ndarray) -> np.ndarray:
        """Rows of flat token positions, [n] -> [n]."""
        import numpy as np

        return np.searchsorted(self.offsets, positions, side="right") - 1


@dataclass(frozen=True)
class FiringsInfo:
    n_latents: int
    n_tokens: int  # tokens counted: BOS left out where the harvest leaves it out, and what is outlying
    n_shards: int
    hook: str
    skip_bos: bool
    outlier_threshold: float | None = None  # tokens whose activations have a higher norm are left out; None: none are
    outlying: int = 0  # so many were


class Firings:
    """Where every latent fires in a corpus, and how strongly.

    shard-00000.safetensors …, each of a run of whole rows and sorted by latent, then position:
      start      [1] int64, flat position of the run's first token in the corpus
      indptr     [n_latents + 1] int64, latent i has the entries indptr[i]:indptr[i + 1]
      gap        [n] uint16, how far an entry's position lies behind that of the one before of the same latent, or
                 behind `start` for a latent's first; less 65,536 · far_gap for the entries that `far` names
      far        [f] int64 and far_gap [f] uint32, rising; absent where all gaps are short
      activation [n] float16, infinite where float16 ends; large [l] float32 are then the values, in order, and
                 large_at [l] int64 their entries
      outlying   [m] int64, flat positions of the tokens left out for their norm; absent where there are none
    counts.npy [n_latents] int64 and peaks.npy [n_latents] float32: firings and highest activation
    firings.json: FiringsInfo, written last
    """

    def __init__(self, folder: str | Path) -> None:
        import numpy as np

        self.folder = Path(folder)
        self.info = FiringsInfo(**json.loads((self.folder / "firings.json").read_text()))
        self.counts: np.ndarray = np.load(self.folder / "counts.npy")
        self.peaks: np.ndarray = np.load(self.folder / "peaks.npy")

    def shards(self) -> Iterator[Path]:
        for index in range(self.info.n_shards):
            yield self.folder / f"shard-{index:05d}.safetensors"

    def of(self, latents: list[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """latent -> (positions [n] int64 rising, activations [n] float32). One pass over the shards."""
        import numpy as np
        from safetensors import safe_open

        parts: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {latent: [] for latent in latents}
        for path in self.shards():
            with safe_open(path, framework="np") as opened:
                shard = _Entries(opened)
                for latent in latents:
                    low, high = int(shard.indptr[latent]), int(shard.indptr[latent + 1])
                    if low < high:
                        parts[latent].append((shard.positions(low, high), shard.activations(low, high)))
        empty = (np.zeros(0, np.int64), np.zeros(0, np.float32))
        return {
            latent: (np.concatenate([p for p, _ in pieces]), np.concatenate([a for _, a in pieces]))
            if pieces
            else empty
            for latent, pieces in parts.items()
        }


class _Entries:
    """The entries of an open shard: its small parts read whole, the others as they are asked for."""

    def __init__(self, shard: Any) -> None:
        import numpy as np

        names = set(shard.keys())
        self.start, self.indptr = int(shard.get_tensor("start")[0]), shard.get_tensor("indptr")
        self._gap, self._activation = shard.get_slice("gap"), shard.get_slice("activation")
        none = np.zeros(0, np.int64)
        self._far, self._far_gap, self._large_at, self._large = (
            shard.get_tensor(name) if name in names else none for name in ("far", "far_gap", "large_at", "large")
        )

    def positions(self, low: int, high: int) -> np.ndarray:
        """[high - low] int64 flat positions of the entries from a latent's first one on."""
        import numpy as np

        gaps = self._gap[low:high].astype(np.int64)
        first, last = np.searchsorted(self._far, [low, high])
        gaps[self._far[first:last] - low] += self._far_gap[first:last].astype(np.int64) << 16
        return np.cumsum(gaps, out=gaps) + self.start

    def activations(self, low: int, high: int) -> np.ndarray:
        import numpy as np

        values = self._activation[low:high].astype(np.float32)
        first, last = np.searchsorted(self._large_at, [low, high])
        values[self._large_at[first:last] - low] = self._large[first:last]
        return values


def save_shard(
    path: Path,
    indptr: np.ndarray,
    position: np.ndarray,
    activation: np.ndarray,
    *,
    start: int = 0,
    large: np.ndarray | None = None,
    outlying: np.ndarray | None = None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a shard of `Firings`: position [n] from `start`, activation [n] float16, or float32 to be brought to it.

    large: the values [l] float32 of the infinite ones of float16 activations. About 4 bytes a firing: a gap of 2 and an
    activation of 2; 6 to 12 more where a latent fires more rarely than every 65,536 tokens.
    """
    import numpy as np
    from safetensors.numpy import save_file

    if activation.dtype != np.float16:
        with np.errstate(over="ignore"):
            activation, large = activation.astype(np.float16), activation
        large = large[np.isinf(activation)].astype(np.float32)
    firsts = indptr[:-1][np.diff(indptr) > 0]
    gap = np.empty_like(position)
    np.subtract(position[1:], position[:-1], out=gap[1:])
    gap[firsts] = position[firsts]
    tensors = {
        "start": np.array([start], np.int64),
        "indptr": indptr.astype(np.int64),
        "gap": gap.astype(np.uint16),  # the cast keeps the low 16 bits
        "activation": activation,
    }
    if len(gap) and int(gap.max()) >= 1 << 16:
        far = np.flatnonzero(gap >= 1 << 16)
        tensors |= {"far": far, "far_gap": (gap[far] >> 16).astype(np.uint32)}
    if large is not None and len(large):
        tensors |= {"large_at": np.flatnonzero(np.isinf(activation)), "large": large}
    if outlying is not None and len(outlying):
        tensors["outlying"] = outlying
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))
