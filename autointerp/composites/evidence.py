"""Formulas of the composite evidence: the re-encode test, lift, co-firing, absorption, and controls; arrays only.

Arrays only; the pipeline gathers them from a harvest. A vector x here is what f and its parts have to
explain on a token: the hook's activation less b_dec and less what all *other* active latents decode to.
It enters by its projections x·g on the raw decoder rows g of the parts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    import numpy as np

REACH = 0.4  # of the 95th percentile for the latent itself, of the typical value for its parts
CONFIRM_SHARE, CONFIRM_TOKENS = 0.6, 100
PLAIN_QUANTILE, PLAIN_LEAST = 0.9, 20  # and beyond nine of ten latents that are no sums, of so many or more
SELDOM = 0.1  # a part fires on less than this share of the latent's tokens: it is as good as off
Pair = Literal["own", "swapped", "random"]  # a latent's own parts, another composite's, any that fire as often
PAIRS: tuple[Pair, ...] = ("own", "swapped", "random")
PER_ROW = 4  # tokens of one row that are tested before those of another are


@dataclass(frozen=True)
class Reencoding:
    """The re-encode test: on what share of the tokens all parts come out at a fair strength."""

    share: float | None  # None: no token to test on
    tokens: int
    coefficients: np.ndarray  # [tokens, k]

    @property
    def passes(self) -> bool:
        return self.share is not None and self.share >= CONFIRM_SHARE and self.tokens >= CONFIRM_TOKENS

    def confirms(self, plain: float | None) -> bool:
        """Passes, and with more than nine of ten latents that are no sums; `plain` is their `plain_level`."""
        return self.passes and plain is not None and self.share is not None and self.share > plain


def plain_level(results: Sequence[Reencoding]) -> float | None:
    """What nine of ten latents that are no sums stay within, each refitted by its two nearest neighbours; None where
    fewer than 20 such latents had tokens enough."""
    import numpy as np

    shares = [result.share for result in results if result.share is not None and result.tokens >= CONFIRM_TOKENS]
    return float(np.quantile(shares, PLAIN_QUANTILE)) if len(shares) >= PLAIN_LEAST else None


def strong_tokens(activations: np.ndarray) -> np.ndarray:
    """Which firings [t] of a latent reach .4 of their 95th percentile, [t] bool."""
    import numpy as np

    if not len(activations):
        return np.zeros(0, dtype=bool)
    return activations >= REACH * np.quantile(activations, 0.95)


def draw(rows: np.ndarray, turn: np.ndarray, count: int) -> np.ndarray:
    """Which `count` of a latent's strong tokens are tested, as places in `rows` [t], their rows of the corpus, rising.

    `turn` [n_rows] says in which order rows are looked at. It is the same for all latents, so that they share rows
    and the subject runs on few; from a row comes a handful of tokens before others have given theirs.
    """
    import numpy as np

    place = np.arange(len(rows)) - np.searchsorted(rows, rows)  # among the tokens of its row
    return np.sort(np.lexsort((turn[rows], place // PER_ROW))[:count])


def reencode(projections: np.ndarray, gram: np.ndarray, typical: np.ndarray) -> Reencoding:
    """Drop f and refit the vectors x of its strong tokens by its parts alone, none negative.

    `projections` [t, k] are x·g on the parts' raw decoder rows, `gram` [k, k] the rows' own products and
    `typical` [k] the activation each part usually has where it fires (its median), in the same scale. A
    token counts when every coefficient reaches .4 of that.
    """
    import numpy as np

    k = len(typical)
    if projections.ndim != 2 or projections.shape[1] != k or gram.shape != (k, k):
        raise AutointerpError(
            f"re-encode: shapes {projections.shape}, {gram.shape} and {typical.shape} do not fit together"
        )
    coefficients = nonnegative_fit(projections, gram)
    reached = (coefficients >= REACH * typical).all(1) & (typical > 0).all()
    return Reencoding(float(np.mean(reached)) if len(projections) else None, len(projections), coefficients)


def nonnegative_fit(projections: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Non-negative least squares by a few rows of known products `gram` [k, k], exactly: [t, k] -> [t, k].

    The solution is the unconstrained one of some subset of the rows, so every subset is tried.
    """
    import numpy as np

    projections, gram = np.asarray(projections, dtype=np.float64), np.asarray(gram, dtype=np.float64)
    best = np.zeros_like(projections)
    gained = np.zeros(len(projections))
    for size in range(1, len(gram) + 1):
        for subset in map(list, combinations(range(len(gram)), size)):
            fitted = projections[:, subset] @ np.linalg.pinv(gram[np.ix_(subset, subset)])
            gain = (fitted * projections[:, subset]).sum(1)
            better = (fitted >= 0).all(1) & (gain > gained)
            gained[better] = gain[better]
            best[better] = 0
            best[np.ix_(better, subset)] = fitted[better]
    return best


def share_within(positions: np.ndarray, of: np.ndarray) -> float | None:
    """P(g | f): the share of f's tokens `of` [t] that are among g's `positions` [s]; None without any."""
    import numpy as np

    return float(np.isin(of, positions).mean()) if len(of) else None


def lift(f: np.ndarray, g: np.ndarray, tokens: int) -> float | None:
    """P(g | f) / P(g), from the token positions at which each fires and the `tokens` harvested.

    1: they fire together as often as by chance. None if either is silent.
    """
    given = share_within(g, f)
    return None if given is None or not len(g) else given / (len(g) / tokens)


def mode(f: np.ndarray, parts: Sequence[np.ndarray]) -> Literal["replacing", "additive"] | None:
    """Whether f fires in place of its parts, each seldom on with it, or on top of them; None if f is silent.

    A sub-type to record, no criterion: the parts of most composites do not fall silent.
    """
    import numpy as np

    if not len(f):
        return None
    together = np.mean([np.isin(f, part).mean() for part in parts])
    return "replacing" if together < SELDOM else "additive"


def absorbs(together: float | None, strengths: np.ndarray, typical: float) -> bool | None:
    """Whether f has absorbed g: g is seldom on with f, though most of f's tokens project on g's direction.

    `together` is P(g | f), `strengths` [t] are x·g / ‖g‖² on f's strong tokens, with g's raw decoder row,
    and `typical` is g's usual activation. None without tokens.
    """
    import numpy as np

    if together is None or not len(strengths):
        return None
    return bool(together < SELDOM and np.mean(strengths >= REACH * typical) >= CONFIRM_SHARE)


# --- controls ---------------------------------------------------------------------------------

NO_SUMS = 100  # latents that are no composites, put to the same tests
ALIKE = 32  # latents of the nearest frequency, of which one stands in


def swapped_parts(flagged: Mapping[int, Sequence[int]], seed: int, d_sae: int | None = None) -> dict[int, list[int]]:
    """For each flagged latent the parts of another one, drawn among those of as many that share none with it; as many
    of them are latents from `d_sae` on, those of the union dictionary.

    Latents for which there is no such other are left out.
    """
    import numpy as np

    alike: dict[tuple[int, int], list[int]] = {}  # how many parts, and of the union -> latents with such
    # latent -> places in `alike` of those that it would share
    holding: dict[tuple[int, int], dict[int, list[int]]] = {}
    makeup = {
        f: (len(parts), sum(d_sae is not None and part >= d_sae for part in parts)) for f, parts in flagged.items()
    }
    for f, parts in flagged.items():
        group = alike.setdefault(makeup[f], [])
        for latent in {f, *parts}:
            holding.setdefault(makeup[f], {}).setdefault(latent, []).append(len(group))
        group.append(f)
    swapped = {}
    for f, parts in flagged.items():
        group, held = alike[makeup[f]], holding[makeup[f]]
        shared = {place for latent in (f, *parts) for place in held.get(latent, ())}
        if len(shared) < len(group):
            chosen = int(np.random.default_rng([seed, f]).integers(len(group) - len(shared)))
            for place in sorted(shared):  # the one drawn among the others
                chosen += place <= chosen
            swapped[f] = list(flagged[group[chosen]])
    return swapped


def some_atomic(labels: Sequence[str], counts: np.ndarray, seed: int, most: int = NO_SUMS) -> np.ndarray:
    """Up to `most` atomic latents that fire often enough for a test, at random, in order."""
    import numpy as np

    atomic = np.flatnonzero((np.asarray(labels) == "atomic") & (counts >= CONFIRM_TOKENS))
    return np.sort(np.random.default_rng([seed, 2]).permutation(atomic)[:most])


class StandIns:
    """Latents of `pool` [n], in its order, by how often they fire: `counts` are the firings of all latents. Where there
    is a union dictionary, from latent `d_sae` on, those of either stand in for their own alone."""

    def __init__(self, pool: np.ndarray, counts: np.ndarray, d_sae: int | None = None) -> None:
        import numpy as np

        self.counts, self.d_sae = counts, d_sae
        union = np.zeros(len(pool), bool) if d_sae is None else pool >= d_sae
        self._sorted = {lent: self._by_count(pool[union == lent]) for lent in (False, True)}

    def _by_count(self, pool: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places in `pool` by firings, equal ones in its order; there log(1 + firings), and the latents."""
        import numpy as np

        order = np.argsort(self.counts[pool], kind="stable")
        return order, np.log1p(self.counts[pool])[order], pool[order]

    def nearest(self, part: int, without: Collection[int]) -> np.ndarray:
        """Up to `ALIKE` latents, none of them `without`, whose log(1 + firings) is nearest to the part's; of equally
        near ones the first of the pool."""
        import numpy as np

        order, sizes, latents = self._sorted[self.d_sae is not None and part >= self.d_sae]
        wanted, most = np.log1p(self.counts[part]), ALIKE + len(without)
        near: list[np.ndarray] = []  # the first `most` of each number of firings, until there are enough on either side
        low = high = int(np.searchsorted(sizes, wanted))
        found = 0
        while low > 0 and found < most:
            stop, low = low, int(np.searchsorted(sizes, sizes[low - 1]))
            near.append(np.arange(low, min(stop, low + most)))
            found += stop - low
        found = 0
        while high < len(sizes) and found < most:
            start, high = high, int(np.searchsorted(sizes, sizes[high], side="right"))
            near.append(np.arange(start, min(high, start + most)))
            found += high - start
        at = np.concatenate([np.zeros(0, int), *near])
        at = at[~np.isin(latents[at], list(without))]
        return latents[at[np.lexsort((order[at], np.abs(sizes[at] - wanted)))][:ALIKE]]


def random_parts(f: int, parts: Sequence[int], pool: StandIns, seed: int, same: Iterable[int] = ()) -> list[int] | None:
    """For each part of f a latent of `pool` that fires about as often, none twice and none of those that say the
    `same`; None where too few are left."""
    import numpy as np

    rng = np.random.default_rng([seed, f, 1])
    without = {f, *parts, *same}
    chosen: list[int] = []
    for part in parts:
        near = pool.nearest(part, without)
        if not len(near):
            return None
        chosen.append(int(rng.choice(near)))
        without.add(chosen[-1])
    return chosen
