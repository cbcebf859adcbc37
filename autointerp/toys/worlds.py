"""Toy worlds: features and firings that are known, to train SAEs on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class World:
    """`features` [k, d] unit rows, how often each fires, and which belong together."""

    features: torch.Tensor
    probability: torch.Tensor  # [k] that a feature fires on a token
    firing: Callable[[int, torch.Generator], torch.Tensor]  # tokens, generator -> strengths [tokens, k]
    seed: int
    pairs: tuple[tuple[int, int], ...] = ()  # features that fire together more than by chance
    parents: tuple[int, ...] = ()  # [k], -1: none; a feature fires only with its parent, and with no other child of it
    privileged: bool = True  # False: other features would make the same inputs, so recovery of these means nothing

    def sample(self, tokens: int, part: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs [tokens, d] and the strengths [tokens, k] they are made of, 0 where a feature is off.

        The same `part` gives the same tokens; other parts are independent of it.
        """
        import torch

        strengths = self.firing(tokens, torch.Generator().manual_seed(self.seed * 1_000_003 + part + 1))
        return strengths @ self.features, strengths


def three_features(seed: int, *, d: int = 32, rare: float = 0.02, varying: bool = False) -> World:
    """Till's world: features 0 and 1 are frequent and often together, in fixed or varying proportion; 2 is rare."""
    import torch

    return _paired(_features(3, d, seed), ((0, 1),), torch.tensor([0.3, 0.3, rare]), 0.5, varying, seed)


def correlated_pairs(
    seed: int, *, features: int = 64, d: int = 64, pairs: int = 12, together: float = 0.5, firing: float = 0.05
) -> World:
    """`features` directions in `d` dimensions, all equally frequent, of which the first 2 · `pairs` come in pairs.

    `together` is P(both | one of the pair fires).
    """
    import torch

    if 2 * pairs > features or 2 * firing > 1 + together:
        raise AutointerpError("toy world: more pairs than features allow, or they would fire more often than always")
    couples = tuple((2 * i, 2 * i + 1) for i in range(pairs))
    return _paired(_features(features, d, seed), couples, torch.full((features,), firing), together, True, seed)


def two_one_hot_sets(seed: int, *, size: int = 4, d: int = 32, together: float = 0.6) -> World:
    """Anders's world: each token has one feature of each of two sets of `size`, of equal strength 1.

    With the chance `together` they are of the same number, else of any two others. A vector added to all
    features of one set and taken from all of the other changes no input: no basis is privileged.
    """
    import torch

    def firing(tokens: int, generator: torch.Generator) -> torch.Tensor:
        first = torch.randint(size, (tokens,), generator=generator)
        step = torch.randint(1, size, (tokens,), generator=generator)
        same = torch.rand(tokens, generator=generator) < together
        second = torch.where(same, first, (first + step) % size)
        strengths = torch.zeros(tokens, 2 * size)
        return strengths.scatter_(1, torch.stack([first, size + second], 1), 1.0)

    if size < 2:
        raise AutointerpError("toy world: a one-hot set needs two features or more")
    probability = torch.full((2 * size,), 1 / size)
    pairs = tuple((i, size + i) for i in range(size))
    return World(_features(2 * size, d, seed), probability, firing, seed, pairs, privileged=False)


def forest(
    seed: int,
    *,
    features: int = 16_384,
    d: int = 768,
    highest: float = 0.4,
    exponent: float = 0.5,
    trees: int = 128,
    branching: int = 4,
    depth: int = 3,
    exhaustive: float = 0.8,
    rank: int = 25,
    correlation: float = 0.1,
) -> World:
    """A large world with what 2602.14687 (SynthSAEBench) asks of one: Zipf, trees of exclusive children, correlation.

    The i-th most frequent feature fires with the chance `highest` · i^-`exponent`. The most frequent ones are the
    roots of `trees` trees, the next their children, `branching` each, and so on for `depth` levels; the rest stand
    alone. A child fires only with its parent and with no other child of it, all children together on at most the
    share `exhaustive` of the parent's tokens: where Zipf's law asks for more, theirs are scaled down. Roots and
    features that stand alone fire by a Gaussian copula of `rank` shared factors, which carry the share `correlation`
    of the variance, so that `probability` holds exactly.
    """
    import torch

    levels = [trees * branching**level for level in range(depth + 1)]
    if trees < 1 or sum(levels) > features or not 0 <= correlation < 1 or not 0 < highest < 1:
        raise AutointerpError(f"toy world: {sum(levels)} features of trees do not fit {features}, or no chance is one")
    generator = torch.Generator().manual_seed(seed)
    probability = highest * torch.arange(1, features + 1).double() ** -exponent
    parents = torch.full((features,), -1)
    low, high = torch.zeros(features).double(), torch.ones(features).double()  # each child's part of its parent's draws
    start = 0
    for level in levels[:-1]:
        children = torch.arange(start + level, start + level * (1 + branching))
        parent = start + torch.arange(len(children)) % level
        asked = (probability[children] / probability[parent]).view(branching, level)
        share = asked * (exhaustive / asked.sum(0)).clamp_max(1)
        high[children] = share.cumsum(0).flatten()
        low[children] = high[children] - share.flatten()
        probability[children] = share.flatten() * probability[parent]
        parents[children] = parent
        start += level
    factors = torch.nn.functional.normalize(torch.randn(features, rank, generator=generator)) * correlation**0.5
    bar = torch.special.ndtri(1 - probability).float()
    family = parents.clamp_min(0)
    ends = [sum(levels[: level + 1]) for level in range(depth + 1)]

    def firing(tokens: int, generator: torch.Generator) -> torch.Tensor:
        normal = torch.randn(tokens, features, generator=generator) * (1 - correlation) ** 0.5
        normal += torch.randn(tokens, rank, generator=generator) @ factors.T
        on = normal > bar
        draw = torch.rand(tokens, ends[-1], generator=generator)
        for first, last in pairwise(ends):  # parents before children
            mine, parent = slice(first, last), family[first:last]
            on[:, mine] = on[:, parent] & (draw[:, parent] >= low[mine]) & (draw[:, parent] < high[mine])
        return _strengths(on, generator)

    directions = _features(features, d, seed)
    return World(directions, probability.float(), firing, seed, parents=tuple(parents.tolist()))


def _paired(
    features: torch.Tensor,
    pairs: tuple[tuple[int, int], ...],
    probability: torch.Tensor,
    together: float,
    varying: bool,
    seed: int,
) -> World:
    """Features that fire by themselves, but for `pairs`, whose strengths are one draw unless `varying`."""
    firing = partial(_pairs_fire, pairs=pairs, probability=probability, together=together, varying=varying)
    return World(features, probability, firing, seed, pairs)


def _pairs_fire(
    tokens: int,
    generator: torch.Generator,
    pairs: tuple[tuple[int, int], ...],
    probability: torch.Tensor,
    together: float,
    varying: bool,
) -> torch.Tensor:
    import torch

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    on = uniform(tokens, len(probability)) < probability
    for g, h in pairs:
        # with p the chance that one fires, the pair is on with 2p / (1 + together), so that each keeps its p
        fires = uniform(tokens) < 2 * float(probability[g]) / (1 + together)
        both = uniform(tokens) < together
        first = uniform(tokens) < 0.5
        on[:, g] = fires & (both | first)
        on[:, h] = fires & (both | ~first)
    strengths = _strengths(torch.ones_like(on), generator)
    if not varying:
        for g, h in pairs:
            strengths[:, h] = strengths[:, g]
    return strengths * on


def _strengths(on: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Uniform in .5 … 1.5 where `on` [tokens, k], else 0."""
    import torch

    return (0.5 + torch.rand(*on.shape, generator=generator)) * on


def _features(k: int, d: int, seed: int) -> torch.Tensor:
    """Unit rows: orthonormal where d allows, else random directions."""
    import torch

    rows = torch.randn(k, d, generator=torch.Generator().manual_seed(seed))
    if k <= d:
        return torch.linalg.qr(rows.T)[0].T.contiguous()
    return rows / rows.norm(dim=1, keepdim=True)
