"""What each token of a corpus reads as, where it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from autointerp.activations.splits import content_starts, token_counts
from autointerp.artifacts import Corpus

if TYPE_CHECKING:
    import numpy as np

TokenStrings = Callable[[Sequence[int]], list[str]]

_PART = "\ufffd"  # is in what a token reads as by itself, where it holds but a part of a character
_STEP = 1 << 22  # tokens at a time bound the memory


class Words:
    """A number and a string for each token of a corpus.

    A token reads as its id does by itself, whatever other tokens the corpus has, and its number is the id. Only parts
    of characters are read as their neighbours in the row make them: the character stands at the last of its tokens,
    the others are empty, and each other reading of an id has a number of its own. GPT-2 and its kin write ’ and much
    of Chinese in two or three tokens.
    """

    def __init__(self, corpus: Corpus, token_strings: TokenStrings) -> None:
        """`token_strings` reads ids that follow each other as text. An id that the corpus has as BOS alone has none."""
        import numpy as np

        self._corpus, self._tokens = corpus, np.asarray(corpus.tokens)  # a plain view: slicing a memmap costs more
        seen = np.flatnonzero(token_counts(corpus))
        strings = np.full(int(seen.max(initial=-1)) + 1, None, object)
        strings[seen] = [token_strings([i])[0] for i in seen.tolist()]
        parts = seen[[_PART in string for string in strings[seen]]]
        self._places = _places(corpus, parts)
        others: dict[tuple[int, str], int] = {}  # readings of parts -> their numbers
        known: dict[tuple[int, ...], list[int]] = {}
        read: list[int] = []
        for run in _runs(corpus, self._places):
            if run not in known:
                known[run] = [
                    i if string == strings[i] else others.setdefault((i, string), len(strings) + len(others))
                    for i, string in zip(run, token_strings(run))
                ]
            read += known[run]
        self._read = np.array(read, np.int64)
        self.strings: np.ndarray = np.concatenate([strings, np.array([string for _, string in others], object)])

    def at(self, position: np.ndarray) -> np.ndarray:
        """Flat positions of tokens -> their numbers, of the same shape. `strings` of these, joined, are the text."""
        import numpy as np

        numbers = self._tokens[position].astype(np.int64)
        if len(self._places):
            place = np.minimum(self._places.searchsorted(position), len(self._places) - 1)
            numbers = np.where(self._places[place] == position, self._read[place], numbers)
        return numbers

    def counts(self, documents: np.ndarray) -> np.ndarray:
        """Occurrences of each number in the documents of a mask [n_documents] bool, BOS left out."""
        import numpy as np

        by_id = token_counts(self._corpus, documents)[: len(self.strings)]  # a BOS may have the highest id
        counts = np.zeros(len(self.strings), np.int64)
        counts[: len(by_id)] = by_id
        wanted = documents[self._corpus.documents[self._corpus.row_of(self._places)]]
        np.subtract.at(counts, self._tokens[self._places[wanted]], 1)
        np.add.at(counts, self._read[wanted], 1)
        return counts


def _places(corpus: Corpus, parts: np.ndarray) -> np.ndarray:
    """Flat positions of the tokens whose id is one of `parts`, rising, BOS left out."""
    import numpy as np

    found = [np.zeros(0, np.int64)]
    for low in range(0, len(corpus.tokens) if len(parts) else 0, _STEP):
        found.append(low + np.flatnonzero(np.isin(corpus.tokens[low : low + _STEP], parts)))
    places = np.concatenate(found)
    return places[places >= content_starts(corpus)[corpus.row_of(places)]]


def _runs(corpus: Corpus, places: np.ndarray) -> Iterator[tuple[int, ...]]:
    """The ids at neighbouring `places` of one row; all runs, in order."""
    import numpy as np

    cuts = np.flatnonzero((np.diff(places) != 1) | (np.diff(corpus.row_of(places)) != 0)) + 1
    ids = np.asarray(corpus.tokens)[places].tolist()
    low = 0
    for high in [*cuts.tolist(), *([len(ids)] if ids else [])]:
        yield tuple(ids[low:high])
        low = high
