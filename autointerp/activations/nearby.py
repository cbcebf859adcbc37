"""A feature's neighbours, seen as an explainer or a judge needs them: windows in which they fire and it is silent.

1. Windows are drawn around the neighbours' firings as a feature's own are (`contexts`), whether or not the neighbours
   are themselves explained: of each about twice its equal share of what a feature has of its own, at least `LEAST`.
2. Those in which the feature itself fires are left out.
3. So are windows of train that share 16 tokens in a row with one of the feature's own of test, on which it is scored;
   and those of test that share them with what an explainer may have been shown: its own and the neighbours' of train.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from autointerp.activations.contexts import apart, context_sampler
from autointerp.activations.splits import content_starts
from autointerp.activations.words import TokenStrings
from autointerp.artifacts import Corpus, Firings
from autointerp.config import ContextsConfig
from autointerp.records import Context, Neighbour, Split

LEAST = 4  # windows drawn of a neighbour


class NearbyWindows:
    """Draws the windows of neighbours; what it holds does not grow with the features asked for."""

    def __init__(
        self,
        corpus: Corpus,
        firings: Firings,
        token_strings: TokenStrings,
        config: ContextsConfig,
        seed: int,
        own: Callable[[Sequence[int]], Mapping[int, Sequence[Context]]],
    ) -> None:
        """`own`: the windows of some features themselves, of both splits."""
        self._corpus, self._firings, self._strings, self._seed = corpus, firings, token_strings, seed
        self._config, self._own = config, own
        self._starts = content_starts(corpus)
        self._samplers: dict[Split, Callable[[Sequence[int]], Iterator[Context]]] = {}

    def of(
        self,
        nearest: Mapping[int, Sequence[tuple[int, float]]],
        split: Split,
        explanations: Mapping[int, str | None] | None = None,
    ) -> dict[int, tuple[Neighbour, ...]]:
        """feature -> its neighbours with windows of `split`, in the order of `nearest` (neighbour, cosine)."""
        wanted = sorted({neighbour for near in nearest.values() for neighbour, _ in near})
        windows, own = self._drawn(wanted, split), self._own(list(nearest))
        shown = self._drawn(wanted, "train") if split == "test" else {}

        def of(feature: int, neighbours: Sequence[int]) -> list[tuple[Context, ...]]:
            other = [context for context in own[feature] if context.split != split]
            other += [context for neighbour in neighbours for context in shown.get(neighbour, ())]
            return [apart(each, other) for each in self._silent(feature, [windows[n] for n in neighbours])]

        return {
            feature: tuple(
                Neighbour(neighbour, cosine, (explanations or {}).get(neighbour), contexts)
                for (neighbour, cosine), contexts in zip(near, of(feature, [n for n, _ in near]))
            )
            for feature, near in nearest.items()
        }

    def _drawn(self, latents: Sequence[int], split: Split) -> dict[int, list[Context]]:
        """Windows in which each latent fires, strongest first."""
        if split not in self._samplers:
            self._samplers[split] = self._sampler(split)
        drawn: dict[int, list[Context]] = {latent: [] for latent in latents}
        for context in self._samplers[split](latents):
            if context.split == split and context.fires:
                drawn[context.feature].append(context)
        return drawn

    def _sampler(self, split: Split) -> Callable[[Sequence[int]], Iterator[Context]]:
        share = 2 / self._config.neighbours
        own = {"train": self._config.train, "test": self._config.test_activating}
        sizes = {kind: max(LEAST, round(share * count)) if kind == split else 0 for kind, count in own.items()}
        config = self._config.model_copy(
            update={"train": sizes["train"], "test_activating": sizes["test"], "test_random": 0, "test_near": 0}
        )
        return context_sampler(self._corpus, self._firings, {}, self._strings, config, self._seed)

    def _silent(self, feature: int, windows: Sequence[Sequence[Context]]) -> list[tuple[Context, ...]]:
        """Of each list those windows in which `feature` fires on no token."""
        position, _ = self._firings.of([feature])[feature]

        def fires(window: Context) -> bool:
            low = self._flat(window)
            first, last = position.searchsorted([low, low + len(window.tokens)])
            return bool(last > first)

        return [tuple(window for window in each if not fires(window)) for each in windows]

    def _flat(self, window: Context) -> int:
        """Position of its first token in the corpus."""
        corpus = self._corpus
        first, last = corpus.documents.searchsorted([window.document, window.document + 1])
        row = first + corpus.starts[first:last].searchsorted(window.position, side="right") - 1
        return int(self._starts[row]) + window.position - int(corpus.starts[row])
