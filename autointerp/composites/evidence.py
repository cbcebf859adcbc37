"""What activations say of a decomposition: is the latent still needed once its parts may fire instead?

Arrays only; the pipeline gathers them from a harvest. A vector x here is what f and its parts have to
explain on a token: the hook's activation less b_dec and less what all *other* active latents decode to.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    import numpy as np

REACH = 0.4  # of the 95th percentile for the latent itself, of the typical value for its parts
CONFIRM_SHARE, CONFIRM_TOKENS = 0.6, 100
SELDOM = 0.1  # a part fires on less than this share of the latent's tokens: it is as good as off


@dataclass(frozen=True)
class Reencoding:
    """The re-encode test: on what share of the tokens both parts come out at a fair strength."""

    share: float | None  # None: no token to test on
    tokens: int
    coefficients: np.ndarray  # [tokens, k]

    @property
    def confirms(self) -> bool:
        return self.share is not None and self.share >= CONFIRM_SHARE and self.tokens >= CONFIRM_TOKENS


def strong_tokens(activations: np.ndarray) -> np.ndarray:
    """Which firings [t] of a latent reach .4 of their 95th percentile, [t] bool."""
    import numpy as np

    if not len(activations):
        return np.zeros(0, dtype=bool)
    return activations >= REACH * np.quantile(activations, 0.95)


def reencode(vectors: np.ndarray, parts: np.ndarray, typical: np.ndarray) -> Reencoding:
    """Drop f and refit `vectors` [t, d], those of its strong tokens, by its parts alone, none negative.

    `parts` [k, d] are the raw decoder rows and `typical` [k] the activation each usually has where it
    fires (its median), in the same scale. A token counts when every coefficient reaches .4 of that.
    """
    import numpy as np

    if vectors.ndim != 2 or parts.ndim != 2 or vectors.shape[1] != parts.shape[1] or typical.shape != (len(parts),):
        raise AutointerpError(
            f"re-encode: shapes {vectors.shape}, {parts.shape} and {typical.shape} do not fit together"
        )
    coefficients = nonnegative_fit(vectors, parts)
    reached = (coefficients >= REACH * typical).all(1) & (typical > 0).all()
    return Reencoding(float(np.mean(reached)) if len(vectors) else None, len(vectors), coefficients)


def nonnegative_fit(vectors: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Non-negative least squares of `vectors` [t, d] by the few rows of `parts` [k, d], exactly: [t, k].

    The solution is the unconstrained one of some subset of the parts, so every subset is tried.
    """
    import numpy as np

    x, rows = np.asarray(vectors, dtype=np.float64), np.asarray(parts, dtype=np.float64)
    gram, projections = rows @ rows.T, x @ rows.T
    best = np.zeros((len(x), len(rows)))
    gained = np.zeros(len(x))
    for size in range(1, len(rows) + 1):
        for subset in map(list, combinations(range(len(rows)), size)):
            some = projections[:, subset] @ np.linalg.pinv(gram[np.ix_(subset, subset)])
            gain = (some * projections[:, subset]).sum(1)
            better = (some >= 0).all(1) & (gain > gained)
            gained[better] = gain[better]
            best[better] = 0
            best[np.ix_(better, subset)] = some[better]
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


def mode(f: np.ndarray, parts: list[np.ndarray]) -> Literal["replacing", "additive"] | None:
    """Whether f fires in place of its parts, each seldom on with it, or on top of them; None if f is silent.

    A sub-type to record, no criterion: the parts of most composites do not fall silent.
    """
    import numpy as np

    if not len(f):
        return None
    together = np.mean([np.isin(f, part).mean() for part in parts])
    return "replacing" if together < SELDOM else "additive"


def absorbs(f: np.ndarray, g: np.ndarray, vectors: np.ndarray, direction: np.ndarray, typical: float) -> bool | None:
    """Whether f has absorbed g: g is seldom on with f, though most of f's tokens project on g's direction.

    `vectors` [t, d] of f's strong tokens, `direction` [d] the raw decoder row of g and `typical` its
    usual activation. None without tokens.
    """
    import numpy as np

    if not len(f) or not len(vectors):
        return None
    strength = vectors @ direction / float(direction @ direction)
    seldom = np.isin(f, g).mean() < SELDOM
    return bool(seldom and np.mean(strength >= REACH * typical) >= CONFIRM_SHARE)
