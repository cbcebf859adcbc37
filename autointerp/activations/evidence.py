"""What an explainer may see of a feature: contexts, token statistics; which features are dead, too rare, selected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from autointerp.activations.contexts import chunks
from autointerp.activations.splits import content_starts, held_out
from autointerp.activations.words import TokenStrings, Words
from autointerp.artifacts import Corpus, Firings
from autointerp.errors import AutointerpError, ConfigError
from autointerp.records import Context, FeatureEvidence, TokenStat

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from autointerp.config import FeaturesConfig

Logits = Sequence[tuple[str, float]]

_TOKEN_STATS = 30


class EvidenceReader:
    """Reads the evidence on features; what is counted over the whole corpus is counted once."""

    def __init__(
        self, firings: Firings, corpus: Corpus, token_strings: TokenStrings, *, test_share: float, seed: int
    ) -> None:
        """`test_share` and `seed` are those the contexts were drawn with: token statistics count train documents."""
        train = ~held_out(corpus, test_share, seed)
        self._firings, self._corpus = firings, corpus
        self._words = Words(corpus, token_strings)
        self._seen = self._words.counts(train)
        self._starts, self._train_row = content_starts(corpus), train[corpus.documents]

    def token_tables(self, features: Sequence[int]) -> dict[int, tuple[TokenStat, ...]]:
        """Every token on which each feature fires in train documents."""
        tables = {}
        for chunk in chunks(list(features), self._firings.counts):
            for feature, (position, activation) in self._firings.of(chunk).items():
                counted = self._counted(position)
                tables[feature] = self._token_stats(position[counted], activation[counted], None)
        return tables

    def _counted(self, position: np.ndarray) -> np.ndarray:
        """Which firings count: those in train documents that are not at a BOS."""
        row = self._corpus.row_of(position)
        return self._train_row[row] & (position >= self._starts[row])

    def read(
        self,
        contexts: Mapping[int, Sequence[Context]],
        *,
        logits_up: Mapping[int, Logits] | None = None,
        logits_down: Mapping[int, Logits] | None = None,
    ) -> Iterator[FeatureEvidence]:
        """The evidence on each feature of `contexts`, in that order; contexts of the test split are left out."""
        firings = self._firings
        for chunk in chunks(list(contexts), firings.counts):
            for feature, (position, activation) in firings.of(chunk).items():
                counted = self._counted(position)
                shown = [context for context in contexts[feature] if context.split == "train"]
                yield FeatureEvidence(
                    feature=feature,
                    firings=int(firings.counts[feature]),
                    frequency=int(firings.counts[feature]) / max(firings.info.n_tokens, 1),
                    max_activation=float(firings.peaks[feature]),
                    activating=tuple(sorted((c for c in shown if c.kind == "activating"), key=lambda c: -c.peak)),
                    random=tuple(c for c in shown if c.kind == "random"),
                    near=tuple(c for c in shown if c.kind == "near"),
                    train_firings=int(counted.sum()),
                    token_stats=self._token_stats(position[counted], activation[counted]),
                    logits_up=tuple((logits_up or {}).get(feature, ())),
                    logits_down=tuple((logits_down or {}).get(feature, ())),
                )

    def _token_stats(
        self, position: np.ndarray, activation: np.ndarray, most: int | None = _TOKEN_STATS
    ) -> tuple[TokenStat, ...]:
        """The `most` tokens with most firings (None: all), of all firings' positions [n] and activations [n]."""
        import numpy as np

        word, which, fired = np.unique(self._words.at(position), return_inverse=True, return_counts=True)
        total = np.bincount(which, weights=activation, minlength=len(word))
        top = np.lexsort((-total, -fired))[:most]
        strings, seen, mean = self._words.strings[word[top]], self._seen[word[top]], total[top] / fired[top]
        return tuple(map(TokenStat, map(str, strings), fired[top].tolist(), seen.tolist(), mean.tolist()))


def firing_table(firings: Firings, min_firings: int) -> pd.DataFrame:
    """A row a latent: feature, firings, frequency, max_activation, status (ok, dead, too_rare)."""
    import numpy as np
    import pandas as pd

    counts = firings.counts
    rare = np.where(counts == 0, 0, np.where(counts < min_firings, 1, 2))
    return pd.DataFrame(
        {
            "feature": np.arange(len(counts)),
            "firings": counts,
            "frequency": counts / max(firings.info.n_tokens, 1),
            "max_activation": firings.peaks,
            "status": np.array(["dead", "too_rare", "ok"], object)[rare],  # three texts, not one for each latent
        }
    )


def select_features(table: pd.DataFrame, config: FeaturesConfig, seed: int) -> list[int]:
    """The features to explain, of a `firing_table`.

    `config.ids` as given, dead ones too; else of those with status ok, rising: `count` at random (a larger
    count with the same seed holds the smaller's), the `first`, those with most firings (`top`), or `all`. The seed
    alone orders the random draw, and the firings only say who is passed over: another machine's last bits, or a few
    more tokens, exchange single features.
    Raises ConfigError on an id the SAE lacks, AutointerpError where no feature fires often enough.
    """
    import numpy as np

    if config.ids is not None:
        unknown = [i for i in config.ids if not 0 <= i < len(table)]
        if unknown:
            raise ConfigError(f"features.ids: the SAE has latents 0 to {len(table) - 1}, not {unknown[0]}")
        return list(dict.fromkeys(config.ids))
    ok = table.loc[table["status"] == "ok"]
    features = ok["feature"].to_numpy()
    if not len(features):
        raise AutointerpError(
            f"no feature fires {config.min_firings} times: lower features.min_firings or raise corpus.tokens"
        )
    if config.select == "random":
        drawn = np.random.default_rng(seed % 2**64).permutation(len(table))
        features = drawn[np.isin(drawn, features)][: config.count]
    elif config.select == "top":
        features = features[np.argsort(-ok["firings"].to_numpy(), kind="stable")[: config.count]]
    elif config.select == "first":
        features = features[: config.count]
    return sorted(features.tolist())
