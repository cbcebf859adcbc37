"""Windows of running text, as they come: how many of them a feature fires in, and a random sample of them.

Scored examples are half firing, running text is not. What a judge's Yes is worth there needs the share of windows
that fire, which the harvest tells of every feature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from autointerp.activations.contexts import chunks
from autointerp.activations.splits import content_starts, held_out
from autointerp.activations.words import TokenStrings, Words
from autointerp.artifacts import Corpus, Firings
from autointerp.records import RandomWindows

if TYPE_CHECKING:
    import numpy as np

SAMPLE = 1000  # random windows, the same for all features


class RunningText:
    """The windows that the rows of test documents are cut into, side by side; what is left of a row is left out."""

    def __init__(self, corpus: Corpus, firings: Firings, *, window: int, test_share: float, seed: int) -> None:
        """`window` in tokens; a row that is shorter is one window. `test_share` and `seed`: as contexts were drawn."""
        import numpy as np

        self._corpus, self._firings, self._window, self._seed = corpus, firings, window, seed
        self._low = content_starts(corpus)
        length = corpus.offsets[1:] - self._low
        test = held_out(corpus, test_share, seed)[corpus.documents]
        self._count = np.where(test & (length > 0), np.maximum(length // window, 1), 0)  # of each row
        self._first = np.cumsum(self._count) - self._count
        self.total = int(self._count.sum())

    def rates(self, features: Sequence[int]) -> dict[int, float | None]:
        """Share of the windows in which each feature fires; None where the corpus has no window."""
        return {
            feature: len(inside) / self.total if self.total else None
            for feature, inside in self._inside(features).items()
        }

    def sampler(self, strings: TokenStrings) -> Callable[[Sequence[int]], dict[int, RandomWindows]]:
        """Features -> for each `SAMPLE` of the windows at random (all where there are fewer), which are the same for
        all, and in which of them it fires."""
        import numpy as np

        rng = np.random.default_rng([self._seed % 2**64, SAMPLE])
        drawn = np.sort(rng.choice(self.total, min(SAMPLE, self.total), replace=False))
        row = self._first.searchsorted(drawn, side="right") - 1
        start = self._low[row] + (drawn - self._first[row]) * self._window
        stop = np.minimum(start + self._window, self._corpus.offsets[1:][row])
        words = Words(self._corpus, strings)
        places = (np.arange(a, b) for a, b in zip(start.tolist(), stop.tolist()))
        tokens = tuple(tuple(words.strings[words.at(place)].tolist()) for place in places)

        def sample(features: Sequence[int]) -> dict[int, RandomWindows]:
            inside = self._inside(features)
            return {f: RandomWindows(tokens, tuple(np.isin(drawn, at).tolist())) for f, at in inside.items()}

        return sample

    def _inside(self, features: Sequence[int]) -> Mapping[int, np.ndarray]:
        """The numbers of the windows in which each feature fires, rising."""
        import numpy as np

        numbers: dict[int, np.ndarray] = {}
        for chunk in chunks(list(features), self._firings.counts):
            for feature, (position, _) in self._firings.of(chunk).items():
                row = self._corpus.row_of(position)
                place = (position - self._low[row]) // self._window
                inside = (place >= 0) & (place < self._count[row])
                numbers[feature] = np.unique(self._first[row[inside]] + place[inside])
        return numbers
