"""Which documents are held out, and which tokens stand in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autointerp.artifacts import Corpus

if TYPE_CHECKING:
    import numpy as np


def held_out(corpus: Corpus, test_share: float, seed: int) -> np.ndarray:
    """True for the documents of the test split, [documents] bool: a splitmix64 hash of their tokens and the seed.

    Documents of the same tokens are in the same split, wherever they stand. A row holds no two documents.
    """
    import numpy as np

    def mix(x: np.ndarray) -> np.ndarray:
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    golden = np.uint64(0x9E3779B97F4A7C15)
    state = mix(np.array([seed % 2**64], np.uint64))
    content: np.ndarray = np.zeros(int(corpus.documents.max(initial=-1)) + 1, np.uint64)  # Σ hash of (place, token)
    step = 1 << 11  # rows at a time bound the memory
    for first in range(0, len(corpus.documents), step):
        offsets = corpus.offsets[first : first + step + 1]
        starts, documents = corpus.starts[first : first + step], corpus.documents[first : first + step]
        words = np.asarray(corpus.tokens[offsets[0] : offsets[-1]]).astype(np.uint64)
        place = np.arange(offsets[0], offsets[-1]) + np.repeat(starts - offsets[:-1], np.diff(offsets))
        sums = np.cumsum(mix(words + mix(place.astype(np.uint64) * golden)))  # modulo 2^64, as their differences are
        of_rows = np.diff(np.r_[np.zeros(1, np.uint64), sums][offsets - offsets[0]])
        np.add.at(content, documents, of_rows)
    hashed = mix(state + content * golden)
    return (hashed >> np.uint64(11)) * 2.0**-53 < test_share


def content_starts(corpus: Corpus) -> np.ndarray:
    """Flat position of each row's first token that is not BOS, [n_rows]."""
    import numpy as np

    return np.minimum(corpus.offsets[:-1] + (corpus.info.bos_id is not None), corpus.offsets[1:])


def token_counts(corpus: Corpus, documents: np.ndarray | None = None) -> np.ndarray:
    """Occurrences of each token id in the documents of a mask [n_documents] bool (None: all), BOS left out."""
    import numpy as np

    counts = np.zeros(int(corpus.tokens.max()) + 1 if len(corpus.tokens) else 1, np.int64)
    wanted = np.ones(len(corpus.documents), bool) if documents is None else documents[corpus.documents]
    starts = content_starts(corpus)
    step = 1 << 16  # rows at a time bound the memory
    for first in range(0, len(wanted), step):
        rows = slice(first, first + step)
        ends = corpus.offsets[1:][rows]
        low, high = int(corpus.offsets[first]), int(ends[-1])
        keep = np.repeat(wanted[rows], np.diff(corpus.offsets[first : first + len(ends) + 1]))
        keep[corpus.offsets[:-1][rows][starts[rows] > corpus.offsets[:-1][rows]] - low] = False
        counts += np.bincount(corpus.tokens[low:high][keep], minlength=len(counts))
    return counts
