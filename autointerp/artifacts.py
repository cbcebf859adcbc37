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

    shard-00000.safetensors …, each of a run of whole rows and sorted by latent:
      indptr     [n_latents + 1] int64, latent i has the entries indptr[i]:indptr[i + 1]
      position   [n] int64 or int32, flat token position in the corpus, rising within a latent
      activation [n] float16, or float32 where float16 would overflow
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
            with safe_open(path, framework="np") as shard:
                indptr = shard.get_tensor("indptr")
                position, activation = shard.get_slice("position"), shard.get_slice("activation")
                for latent in latents:
                    low, high = int(indptr[latent]), int(indptr[latent + 1])
                    if low < high:
                        parts[latent].append(
                            (position[low:high].astype(np.int64), activation[low:high].astype(np.float32))
                        )
        empty = (np.zeros(0, np.int64), np.zeros(0, np.float32))
        return {
            latent: (np.concatenate([p for p, _ in pieces]), np.concatenate([a for _, a in pieces]))
            if pieces
            else empty
            for latent, pieces in parts.items()
        }
