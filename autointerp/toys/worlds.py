"""Small worlds whose features and their firings are known, to train SAEs on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class World:
    """`features` [k, d] unit rows; `pairs` the features that fire together more than by chance; `seed`."""

    features: torch.Tensor
    pairs: tuple[tuple[int, int], ...]
    probability: torch.Tensor  # [k] that a feature fires on a token
    together: float  # P(both | one of the pair fires)
    varying: bool  # each strength of its own, or one for the whole pair
    seed: int

    def sample(self, tokens: int, part: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs [tokens, d] and the strengths [tokens, k] they are made of, strength uniform in .5 … 1.5.

        The same `part` gives the same tokens; other parts are independent of it.
        """
        import torch

        k = len(self.features)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + part + 1)

        def uniform(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=generator)

        on = uniform(tokens, k) < self.probability
        strength = 0.5 + uniform(tokens, k)
        for g, h in self.pairs:
            # with p the chance that one fires, the pair is on with 2p / (1 + together), so that each keeps its p
            p = float(self.probability[g])
            some = uniform(tokens) < 2 * p / (1 + self.together)
            both = uniform(tokens) < self.together
            first = uniform(tokens) < 0.5
            on[:, g] = some & (both | first)
            on[:, h] = some & (both | ~first)
            if not self.varying:
                strength[:, h] = strength[:, g]
        strengths = strength * on
        return strengths @ self.features, strengths


def three_features(seed: int, *, d: int = 32, rare: float = 0.02, varying: bool = False) -> World:
    """Till's world: features 0 and 1 are frequent and often together, in fixed or varying proportion; 2 is rare."""
    import torch

    return World(_features(3, d, seed), ((0, 1),), torch.tensor([0.3, 0.3, rare]), 0.5, varying, seed)


def correlated_pairs(
    seed: int, *, features: int = 64, d: int = 64, pairs: int = 12, together: float = 0.5, firing: float = 0.05
) -> World:
    """`features` directions in `d` dimensions, all equally frequent, of which the first 2 · `pairs` come in pairs."""
    import torch

    if 2 * pairs > features or 2 * firing > 1 + together:
        raise AutointerpError("toy world: more pairs than features allow, or they would fire more often than always")
    couples = tuple((2 * i, 2 * i + 1) for i in range(pairs))
    return World(_features(features, d, seed), couples, torch.full((features,), firing), together, True, seed)


def _features(k: int, d: int, seed: int) -> torch.Tensor:
    """Unit rows: orthonormal where d allows, else random directions."""
    import torch

    rows = torch.randn(k, d, generator=torch.Generator().manual_seed(seed))
    if k <= d:
        return torch.linalg.qr(rows.T)[0].T.contiguous()
    return rows / rows.norm(dim=1, keepdim=True)
