"""Low-dimensional subspaces: latents that share a plane or a few dimensions, and so are sums of each other.

Days of the week on a circle are the example (Engels et al., 2405.14860): each day lies between two others, and the
check for sums would flag all of them. What tells them from sums is counting. k independent directions and e true sums
of them are k + e rows of rank k, and each of the e is explained by parts that are no sums of it in turn. On a circle
every row is explained by rows that it explains.

1. `_family`: the rows near a latent, and those near these: a circle's far side is near to no one but its own.
2. `_fullest`: the latent is fitted by ever more of them; the space that holds the most rows beyond its rank counts.
3. `_core`: what only the latent itself joins to the others is no part of it: a sum of two latents joins their circles.
4. `_merged`: spaces of several latents that share their rows are one.
5. `_settled`: it grows by what is near to its rows and lies in it. Its rank is where the principal axes fall off.
6. `_unexplained`: rows beyond its rank that are no sums of others in it. From `EXCESS` on it is a subspace.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autointerp.composites.decompose import EDGE, PARTIAL, Fits, gram

if TYPE_CHECKING:
    import numpy as np
    import torch

    from autointerp.composites.neighbours import Rows

EXCESS = 3  # rows beyond the rank that are no sums: a circle of five has them
BEYOND = 2  # rows beyond the rank around a latent that make it worth looking
OUTSIDE = 0.2  # most of a member's square that lies outside of the space
LARGEST = 8  # rank
LARGE = 64  # members from which on what begins among them is not followed: it would come to the same space again
FALL = 3.0  # least ratio of the space's last principal axis to the next
PAYS = 2, 0.2  # rows beyond itself that a further dimension must bring, also as a share of those already beyond the
# rank: a sum of a member and something else is no dimension of a circle
WIDEST_GAP = 2.0  # between neighbours on a circle, in mean gaps
_STEPS = 6  # terms by which a latent is fitted
_GAIN = 0.02  # R² that a term must add
_HOPS = (24, 6, 8)  # rows near a latent; how many of these lend how many of theirs
_JOINED = 0.25  # coefficient from which on a row rests on another


@dataclass(frozen=True)
class Subspace:
    """`members` are rows, ascending; `circular` where they go round a plane without a wide gap; `places` where each
    lies in the plane of the space's first two principal axes."""

    rank: int
    members: tuple[int, ...]
    circular: bool
    places: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class _Dictionary:
    """What the search knows of the rows."""

    Z: Rows
    direct: np.ndarray  # [q, k] rows near each latent, -1: none
    place: np.ndarray  # [rows + 1] where a row stands in `direct`, -1: nowhere
    copies: Mapping[int, Sequence[int]]  # the first of a group -> its duplicates
    sums: Mapping[int, tuple[Sequence[int], float]]  # latent -> the parts and R² of a sum that it may be

    def near(self, row: int) -> list[int]:
        rows = self.direct[self.place[row]]
        return rows[rows >= 0].tolist() if self.place[row] >= 0 else []


def subspaces(
    Z: Rows, queries: torch.Tensor, lists: torch.Tensor, leader: torch.Tensor, fits: Fits, block: int
) -> list[Subspace]:
    """The subspaces among latents `queries` [q] with candidates `lists` [q, m] (-1: none), the first of each group of
    duplicates, which `leader` [n] names. `fits` are those of `decompose`: what is near, and sums."""
    import torch

    blocks = [slice(start, start + block) for start in range(0, max(len(queries), 1), block)]
    direct = torch.cat([_direct(lists[at], fits, at) for at in blocks])
    place = torch.full((len(Z) + 1,), -1, device=lists.device)
    place[queries] = torch.arange(len(queries), device=lists.device)
    sizes = torch.cat([(_family(queries[at], direct[at], direct, place) >= 0).sum(1) for at in blocks])
    asked = (sizes >= 2 + BEYOND - 1).nonzero().squeeze(1)  # and the latent itself
    asked = asked[sizes[asked].argsort(stable=True)]  # families of a size are multiplied at once, with little padding
    spaces: set[tuple[int, ...]] = set()
    for start in range(0, len(asked), block):
        part = asked[start : start + block]
        family = _family(queries[part], direct[part], direct, place)
        spaces |= _local_spaces(Z, queries[part], family[:, : int(sizes[part[-1]])])
    if not spaces:
        return []
    arrays = direct.cpu().numpy(), place.cpu().numpy()
    known = _Dictionary(Z, *arrays, _copies(queries, leader), _sums(queries, fits))
    settled: list[Subspace] = []
    large: list[set[int]] = []
    for rows in _merged(spaces):
        if any(rows <= members for members in large):
            continue
        space = _settled(known, rows)
        if space:
            settled.append(space)
            large += [{*space.members}] * (len(space.members) >= LARGE)
    kept: list[Subspace] = []
    taken: set[int] = set()
    for space in sorted(settled, key=lambda space: (-len(space.members), space.rank, space.members)):
        if 2 * len(taken.intersection(space.members)) <= len(space.members):
            kept.append(space)
            taken.update(space.members)
    return kept


# --- steps 1 to 3: around each latent


def _direct(lists: torch.Tensor, fits: Fits, at: slice) -> torch.Tensor:
    """[b, k] the rows near each of the latents `at` with candidates `lists` [b, m], in the order of these; -1: none."""
    import torch

    terms = torch.cat([fits.parts[at], fits.related[at]], 1)  # a term may be nearer than chance only beside the other
    near = fits.near[at] | ((lists[:, :, None] == terms[:, None]).any(2) & (lists >= 0))
    order = near.logical_not().sort(dim=1, stable=True).indices[:, : _HOPS[0]]
    return torch.where(near.gather(1, order), lists.gather(1, order), -1)


def _family(latents: torch.Tensor, near: torch.Tensor, direct: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """[b, u] the rows `near` [b, k] each of the `latents` [b] and the rows near those, of `direct` [q, k] of all; -1:
    none, which come last. `place` [rows + 1] is where a row stands in `direct`."""
    import torch

    _, lenders, lent = _HOPS
    through = place[near[:, :lenders]]  # row -1 is the last place, which is -1
    second = torch.where(through[..., None] >= 0, direct[through.clamp_min(0), :lent], -1).flatten(1)
    family = torch.cat([near, second], 1).sort(1, descending=True).values
    again = torch.zeros_like(family, dtype=torch.bool)
    again[:, 1:] = family[:, 1:] == family[:, :-1]
    family = family.masked_fill(again | (family == latents[:, None]), -1)
    return family.sort(1, descending=True).values


def _local_spaces(Z: Rows, latents: torch.Tensor, family: torch.Tensor) -> set[tuple[int, ...]]:
    """The rows of the space of each of `latents` [b] that has one, among the rows `family` [b, u]."""
    import torch

    present = torch.nn.functional.pad(family >= 0, (0, 1), value=True)
    G = gram(Z, latents, family.clamp_min(0)) * (present[:, :, None] & present[:, None, :])
    excess, inside, ranks = _fullest(G, present)
    spaces = set()
    for i in (excess >= BEYOND).nonzero().squeeze(1).tolist():
        rows = torch.cat([family[i], latents[i : i + 1]])[inside[i]].tolist()  # the latent comes last
        mine = inside[i]
        core = _core(G[i][mine][:, mine].double().cpu().numpy(), int(ranks[i]))
        if core:
            spaces.add(tuple(sorted(rows[j] for j in core)))
    return spaces


def _fullest(G: torch.Tensor, present: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the spaces that the last of rows with products `G` [b, u, u] is fitted in, term by term, the one with the most
    rows beyond its rank: how many [b], [b, u] bool the rows, and the rank [b]."""
    import torch

    R, last = G.clone(), G.shape[1] - 1
    excess, inside = torch.zeros(len(G), device=G.device), torch.zeros_like(present)
    ranks, going = torch.zeros(len(G), dtype=torch.long, device=G.device), torch.ones_like(present[:, 0])
    for rank in range(1, _STEPS + 1):
        outside = R.diagonal(dim1=1, dim2=2)
        gains = torch.where(outside > OUTSIDE, R[:, last] ** 2 / outside.clamp_min(OUTSIDE), 0)
        gains[:, last] = 0
        gain, term = gains.max(1)
        going = going & (gain >= _GAIN)
        column = R.gather(2, term[:, None, None].expand(-1, last + 1, 1))[..., 0]
        pivot = column.gather(1, term[:, None]).clamp_min(OUTSIDE).sqrt()
        column = torch.where(going[:, None], column / pivot, 0)
        R -= column[:, :, None] * column[:, None, :]
        within = present & (R.diagonal(dim1=1, dim2=2) <= OUTSIDE)
        beyond = within.sum(1) - float(rank)
        pays = excess + (rank - ranks) * (PAYS[1] * excess).clamp_min(PAYS[0])
        pays = torch.where(excess >= BEYOND, pays, excess + 1)
        better = going & within[:, last] & (beyond >= pays)
        excess, inside = torch.where(better, beyond, excess), torch.where(better[:, None], within, inside)
        ranks = torch.where(better, rank, ranks)
    return excess, inside, ranks


def _core(G: np.ndarray, rank: int) -> list[int]:
    """Which of m rows with products `G` [m, m] hold together without the last one, and span it: none, or with it."""
    import numpy as np

    values, vectors = np.linalg.eigh(G)
    places = vectors[:, -rank:] * np.sqrt(values[-rank:].clip(0))
    blocks = _blocks(places[:-1])
    lines = [rows for rows, independent in blocks if independent == 1 and len(rows) > 1]
    blocks.append((sorted(itertools.chain(*lines)), len(lines)))  # without one of six, a circle is opposite pairs
    for block, independent in blocks:
        if len(block) + 1 < max(independent, 2) + BEYOND:
            continue
        basis = np.linalg.svd(places[block], full_matrices=False)[2][:independent]
        spans = np.square(basis @ places[-1]).sum() >= (1 - OUTSIDE) * np.square(places[-1]).sum()
        if spans:
            return [*block, len(G) - 1]
    return []


def _blocks(places: np.ndarray) -> list[tuple[list[int], int]]:
    """Rows [m, k] in blocks that share no dimension, each with its rank: by what each is of k independent ones."""
    import numpy as np

    left, chosen = places.copy(), []
    for _ in range(places.shape[1]):
        sizes = np.square(left).sum(1)
        at = int(sizes.argmax())
        if sizes[at] < 0.05:
            break
        chosen.append(at)
        left = left - np.outer(left @ left[at], left[at]) / sizes[at]
    weights = np.linalg.lstsq(places[chosen].T, places.T, rcond=None)[0].T  # [m, chosen]
    block = np.arange(len(chosen))  # of each chosen row: the lowest of those it is joined with
    for _ in chosen:
        for joined in np.abs(weights) >= _JOINED:
            if joined.any():
                block[joined] = block[joined].min()
    owner = block[np.abs(weights).argmax(1)]
    return [(np.flatnonzero(owner == name).tolist(), int((block == name).sum())) for name in np.unique(block)]


# --- steps 4 to 6: whole spaces


def _copies(queries: torch.Tensor, leader: torch.Tensor) -> dict[int, list[int]]:
    copies: dict[int, list[int]] = {}
    rest = queries[leader[queries] != queries]
    for row, first in zip(rest.tolist(), leader[rest].tolist()):
        copies.setdefault(first, []).append(row)
    return copies


def _sums(queries: torch.Tensor, fits: Fits) -> dict[int, tuple[list[int], float]]:
    sound = (fits.parts[:, 0] >= 0) & (fits.partial + EDGE >= PARTIAL)
    rows, parts, r2 = queries[sound].tolist(), fits.parts[sound].tolist(), fits.r2[sound].tolist()
    return {row: ([part for part in own if part >= 0], fit) for row, own, fit in zip(rows, parts, r2)}


def _merged(spaces: set[tuple[int, ...]]) -> list[set[int]]:
    """Spaces that share half of the rows of the smaller are one; the larger come first."""
    groups: list[set[int]] = []
    holding: dict[int, set[int]] = {}  # row -> groups
    for rows in sorted(spaces, key=lambda rows: (-len(rows), rows)):
        near = sorted({group for row in rows for group in holding.get(row, ())})
        at = next((g for g in near if 2 * len(groups[g].intersection(rows)) >= len(rows)), len(groups))
        if at == len(groups):
            groups.append(set())
        groups[at].update(rows)
        for row in rows:
            holding.setdefault(row, set()).add(at)
    return groups


def _settled(known: _Dictionary, rows: set[int]) -> Subspace | None:
    """The subspace that begins with `rows`, or None where these span nothing that holds `EXCESS` unexplained ones."""
    import numpy as np

    members, rank, inside = sorted(rows), 0, np.zeros(0)
    for _ in range(4):
        pool = {*members, *(other for row in members for other in known.near(row))}
        pool |= {copy for row in pool for copy in known.copies.get(row, ())}
        everyone = sorted(pool)
        X, at = _rows(known.Z, everyone), np.searchsorted(everyone, members)
        axes = principal_axes(X, X[at])
        if axes is None:
            return None
        rank, inside = len(axes), np.square(X @ axes.T).sum(1)
        kept = _belongs(X, at, inside, known, everyone)
        before, members, inside = members, [everyone[i] for i in kept], inside[kept]
        if members == before:
            break
    unexplained = _unexplained(rank, dict(zip(members, inside.tolist())), known.sums)
    if unexplained < max(EXCESS, (len(members) - rank) / 2):
        return None
    places = plane(_rows(known.Z, members))
    circular = rank == 2 and _circular(places)
    return Subspace(rank, tuple(members), circular, tuple((float(x), float(y)) for x, y in places))


def _rows(Z: Rows, rows: Sequence[int]) -> np.ndarray:
    import torch

    return Z[torch.tensor(rows, device=Z.device)].double().cpu().numpy()


def principal_axes(X: np.ndarray, members: np.ndarray) -> np.ndarray | None:
    """[rank, d] the axes that unit rows `members` [m, d] share. Of ranks after which the axes fall off, the one whose
    space holds the most of the rows `X` [p, d] beyond its rank; None where there is none from 2 to `LARGEST`."""
    import numpy as np

    _, sizes, axes = np.linalg.svd(members, full_matrices=False)
    values = np.append(sizes**2, 0.0)
    best, most = None, 0.0
    for rank in range(1, min(LARGEST, len(members) - BEYOND) + 1):
        if values[rank - 1] < FALL * (values[rank] + 0.003 * len(members)):
            continue
        beyond = float((np.square(X @ axes[:rank].T).sum(1) >= 1 - OUTSIDE).sum() - rank)
        if best is None or beyond >= most + max(PAYS[0], PAYS[1] * most) * (rank - len(best)):
            best, most = axes[:rank], beyond
    if best is None or len(best) == 1:
        return None
    # many rows near one direction share no more than that: what lies beside it must lie in the space too
    first = np.square(members @ best[0])
    beside = np.square(members @ best.T).sum(1) - first
    return best if beside.sum() >= 0.7 * (1 - first).sum() else None


def _belongs(
    X: np.ndarray, members: np.ndarray, inside: np.ndarray, known: _Dictionary, everyone: Sequence[int]
) -> list[int]:
    """Places in `everyone`, rows X [p, d], of what lies in the space by `inside` [p], and not only near a member."""
    import numpy as np

    nearest = np.full(len(X), -np.inf)
    for start in range(0, len(members), 512):  # never all members beside all rows
        some = members[start : start + 512]
        cosines = X @ X[some].T
        cosines[some, np.arange(len(some))] = 0
        nearest = np.maximum(nearest, cosines.max(1))
    beside = 1 - np.square(nearest)
    first = {copy: leader for leader, copies in known.copies.items() for copy in copies}
    place = {row: i for i, row in enumerate(everyone)}
    kept = []
    for i, row in enumerate(everyone):
        most = max(OUTSIDE, beside[i]) / 2
        if row in first:
            most = (1 - float(X[i] @ X[place[first[row]]]) ** 2) / 2 if first[row] in place else 0.0
        if 1 - inside[i] <= min(most, OUTSIDE):
            kept.append(i)
    return kept


def _unexplained(rank: int, inside: Mapping[int, float], sums: Mapping[int, tuple[Sequence[int], float]]) -> int:
    """How many of the rows `inside` a space, each with its share, are beyond its rank and no sums of the others.

    A sum counts if its parts lie in the space and say as much of it as the whole space does, and if they come down to
    rows that are no sums.
    """
    open_ = {}
    for row, share in inside.items():
        parts, r2 = sums.get(row, ((), 0.0))
        if parts and set(parts) <= inside.keys() and 1 - r2 <= 1.5 * (1 - share) + 0.05:
            open_[row] = parts
    plain = inside.keys() - open_.keys()
    while more := {row for row, parts in open_.items() if row not in plain and plain.issuperset(parts)}:
        plain |= more
    return len(inside) - rank - sum(row in plain for row in open_)


def plane(rows: np.ndarray) -> np.ndarray:
    """[m, 2] the places of `rows` [m, d] in the plane of their two principal axes."""
    import numpy as np

    return rows @ np.linalg.svd(rows, full_matrices=False)[2][:2].T


def _circular(places: np.ndarray) -> bool:
    import numpy as np

    x, y = places.T
    angles = np.sort(np.arctan2(y, x))
    gaps = np.diff(np.append(angles, angles[0] + 2 * np.pi))
    return bool(gaps.max() <= WIDEST_GAP * 2 * np.pi / len(angles))
