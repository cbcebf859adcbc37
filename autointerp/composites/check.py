"""`find_composites`: the check on a decoder alone, from neighbours over duplicates and decompositions to labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from autointerp.composites.decompose import EDGE, decompose, gram
from autointerp.composites.decoys import least_r2, sums_by_chance
from autointerp.composites.labels import make_table
from autointerp.composites.maps import Geometries
from autointerp.composites.neighbours import BLOCK, MEMORY, Rows, as_matrix, full_precision, not_zero, search
from autointerp.composites.subspaces import subspaces
from autointerp.errors import AutointerpError
from autointerp.progress import Progress, progress

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

DUPLICATE = 0.95  # cosine of unit rows
DUPLICATE_WHITE = 0.25  # and of whitened ones: in a strong cone a cosine of .95 may be the shared mean
MERGED = 8  # times at most that copies within the union are merged and the lists that they filled are searched anew


def find_composites(
    W_dec: np.ndarray | torch.Tensor,
    union: np.ndarray | torch.Tensor | None = None,
    *,
    neighbours: int = 32,
    alive: np.ndarray | torch.Tensor | None = None,
    union_alive: np.ndarray | torch.Tensor | None = None,
    device: str | torch.device = "cpu",
    block: int = BLOCK,
    memory: int = MEMORY,
) -> pd.DataFrame:
    """Which latents are sums of two to four others, and which are duplicates, children, parents or in a subspace.

    `W_dec` [n, d] and `union` [u, d] are decoder rows, floats of any width; the rows of `union` (another
    SAE of the same activations) are further candidates. `alive` [n] and `union_alive` [u] bool leave out
    latents known to be dead; zero rows are dead anyway. `neighbours` candidates are tried for each latent,
    in all pairs.
    `device`, `block` (rows at a time) and `memory` (bytes) change time and memory, not labels: rows that
    do not fit in `memory` are read as they are needed, from disk where `W_dec` is a map of a file.

    Returns a row for each latent:
      feature, label
        composite, possible: a positive sum of unrelated latents, each more than chance would give.
        duplicate: the same direction as the row in `constituents`; the first of a group is called so
        too unless it is a composite. split_child: close to one row and to nothing else; of a family of
        two, parent and child look alike. parent_of_children: a sum of latents that are related to each
        other. subspace: it shares a few dimensions with others, so that each is a sum of the rest, as the
        days of a week on a circle. atomic: none of these. dead. (confirmed and absorption need
        activations: see `evidence`.)
      constituents, coefficients
        rows of W_dec, largest coefficient first, and f/‖f‖ ≈ Σ coefficient · W_dec[c]/‖W_dec[c]‖: raw
        rows scaled to norm 1, not centred. Constituents in `union` are listed in `union_constituents`
        and their coefficients come after those of W_dec's own. Where a few outlier dimensions hold nearly
        all of the rows (`maps.flattener`), these are scaled down first, and all figures are of such rows.
      r2, partial_r2
        of that sum on raw unit rows, and of its weakest term given the others. For an atomic latent, of
        its nearest row alone.
      max_cosine
        the highest cosine of raw rows with any neighbour found.
      p_value, p_value_null
        chance of so good a fit, the largest of three nulls, and which it is: "random" directions, a
        dictionary of the same second moment ("covariance"), or the last term given the others
        ("conditional"). One latent's, corrected for the search over candidates but not for the number
        of latents; structure that is no composite also makes it small, so the labels ask for more.
      rank, members, circular, places
        of the subspace that the latent shares: the rows of W_dec in it, whether they go round a plane
        without a wide gap, and where each lies in the plane of its two principal axes, x and y of the
        first member, then of the next. Else null and [].
      reencode, lift, semantic
        null: they need activations and explanations.
      failure
        why a row has no figures, or null. In a dictionary of so steep a spectrum that chance flags as much
        every row that is not dead or a duplicate is called atomic, and `failure` says "cannot tell".

    Raises AutointerpError for what is no finite matrix, or a union of another width.
    """
    import torch

    if neighbours < 2 or block < 1:
        raise AutointerpError("the composite check needs neighbours ≥ 2 and block ≥ 1")
    sources = _sources(W_dec, union)
    with full_precision(), torch.inference_mode():
        Z = Rows(sources, device, memory)
        return table_of(Z, _living(Z, len(sources[0]), alive, union_alive), len(sources[0]), neighbours, block)


def table_of(Z: Rows, living: torch.Tensor, n: int, m: int, block: int) -> pd.DataFrame:
    """The table of `find_composites` for the first `n` rows of Z, with `m` candidates for each among the `living`."""
    import torch

    queries = living[:n].nonzero().squeeze(1)
    rows = Geometries.of(Z, living)
    with _progress("neighbours", queries, Z) as bar:
        lists, white_cosines = search(rows.white, living, queries, m, block, bar)
    copies = _copies(rows, queries, lists, white_cosines)
    leader, twin = _groups(len(Z), n, *copies[:2], partial(_alike, rows))
    own = torch.arange(len(Z), device=Z.device)
    lists = _without_copies(rows.white, living & (leader == own), queries, lists, leader, block)
    for _ in range(MERGED if len(Z) > n else 0):
        copied, first = _lent_copies(rows, queries, lists, n, block)
        if not len(copied):
            break
        leader[copied] = first
        lists = _without_copies(rows.white, living & (leader == own), queries, lists, leader, block)
    firsts = living & (leader == own)
    candidates = max(int(firsts.sum()) - 1, 0)
    with _progress("decompositions", queries, Z) as bar:
        along = rows.along_mean()
        fits = decompose(rows.plain, rows.white, along, queries, lists, candidates, rows.dimensions, block, bar)
    spaces = subspaces(rows.plain, queries, lists, leader, fits, block)
    of_copies = torch.full((len(Z),), -torch.inf, device=Z.device).scatter_reduce(0, copies[0], copies[2], "amax")
    fits.highest = torch.maximum(fits.highest, of_copies[queries])
    groups = leader[queries], twin[queries], _pair_cosines(rows.plain, queries, twin[queries].clamp_min(0))
    least = None if rows.flat is None else partial(least_r2, *sums_by_chance(rows, firsts, m, block))
    return make_table(n, rows.dimensions, candidates, queries, fits, *groups, spaces, least)


def _sources(W_dec: np.ndarray | torch.Tensor, union: np.ndarray | torch.Tensor | None) -> list[Any]:
    """The matrices that `Rows` reads, W_dec's first; AutointerpError where they are none of one width."""
    sources = [as_matrix(W_dec)]
    if union is not None:
        sources.append(as_matrix(union, "union"))
        d, width = sources[0].shape[1], sources[1].shape[1]
        if width != d:
            raise AutointerpError(f"union has rows of width {width}, W_dec of {d}: other activations")
    return sources


def _living(
    Z: Rows, n: int, alive: np.ndarray | torch.Tensor | None, union_alive: np.ndarray | torch.Tensor | None
) -> torch.Tensor:
    """[rows] bool: no zero row, and none that `alive` [n] of the first n leaves out, or `union_alive` of the rest."""
    import torch

    living = not_zero(Z)
    for name, given, part in (("alive", alive, living[:n]), ("union_alive", union_alive, living[n:])):
        if given is not None:
            mask = torch.as_tensor(given, device=Z.device)
            if mask.shape != part.shape or mask.dtype != torch.bool:
                raise AutointerpError(f"{name} must be {len(part)} booleans, this is {mask.dtype} {list(mask.shape)}")
            part &= mask
    return living


@contextmanager
def _progress(what: str, queries: torch.Tensor, Z: Rows) -> Iterator[Progress | None]:
    """A bar where the search takes more than a second or so: 2 q n d operations at 100 GFLOP/s."""
    if 2 * len(queries) * len(Z) * Z.shape[1] < 1e11:
        yield None
        return
    with progress(what, len(queries), "latents") as bar:
        yield bar


def _copies(
    rows: Geometries, queries: torch.Tensor, lists: torch.Tensor, white_cosines: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pairs (query row, row of its list) that are duplicates, and their cosines."""
    at, place = (white_cosines >= DUPLICATE_WHITE).nonzero(as_tuple=True)
    left, right = queries[at], lists[at, place]
    same, cosines = _same(rows, left, right)
    return left[same], right[same], cosines[same]


def _same(rows: Geometries, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether pairs of rows are one direction, with outlier dimensions and without; and their cosines."""
    import torch

    cosines = _pair_cosines(rows.plain, left, right)
    if rows.flat is not None:
        cosines = torch.minimum(cosines, _pair_cosines(rows.raw, left, right))
    return cosines >= DUPLICATE - EDGE, cosines


def _alike(rows: Geometries, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (_pair_cosines(rows.white, left, right) >= DUPLICATE_WHITE) & _same(rows, left, right)[0]


def _pair_cosines(Z: Rows, left: torch.Tensor, right: torch.Tensor, block: int = 8192) -> torch.Tensor:
    import torch

    parts = [(Z[left[s : s + block]] * Z[right[s : s + block]]).sum(1) for s in range(0, len(left), block)]
    return torch.cat(parts) if parts else torch.zeros(0, device=Z.device)


def _groups(
    total: int, n: int, left: torch.Tensor, right: torch.Tensor, alike: Callable[[torch.Tensor, torch.Tensor], Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of pairs of duplicates: the first row of each row's group, and the row each is a duplicate of (-1: none).

    Groups are of `W_dec`'s own rows, 0 … n - 1; a row of the union belongs to the group of its first copy there. A
    member is a copy of its group's first row itself, `alike` tells: the ends of a chain of near rows are far apart.
    """
    import torch

    own = torch.arange(total, device=left.device)
    chain = own
    inside = right < n
    ends = torch.cat([left[inside], right[inside]]), torch.cat([right[inside], left[inside]])
    while True:  # the lowest row number spreads through each chain: a list holds some copies, not all
        spread = chain.scatter_reduce(0, ends[0], chain[ends[1]], "amin")
        spread = spread[spread]
        if torch.equal(spread, chain):
            break
        chain = spread
    leader = chain.clone()
    rest = (leader != own).nonzero().squeeze(1)
    while len(rest):  # who is far from the first: the lowest such row of the chain leads them
        rest = rest[~alike(rest, leader[rest])]
        lowest = torch.full_like(own, total).scatter_reduce(0, chain[rest], rest, "amin")
        leader[rest] = lowest[chain[rest]]
        rest = rest[leader[rest] != rest]
    member = (leader != own).nonzero().squeeze(1)
    twin = torch.full_like(own, total).scatter_reduce(0, leader[member], member, "amin")
    twin = torch.where(leader < own, leader, torch.where(twin == total, -1, twin))
    leader = leader.scatter_reduce(0, right[~inside], leader[left[~inside]], "amin")
    return leader, twin


def _lent_copies(
    rows: Geometries, queries: torch.Tensor, lists: torch.Tensor, n: int, block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the union, `n` on, that are in one list with a copy of a lower number; and that one, itself no copy."""
    import torch

    m, pairs = lists.shape[1], [torch.zeros(0, 2, dtype=torch.long, device=lists.device)]
    later = torch.ones(m, m, dtype=torch.bool, device=lists.device).triu(1)
    for start in range(0, len(queries), block):
        index = lists[start : start + block].sort(1).values  # -1 first
        cosines = gram(rows.white, queries[start : start + block], index.clamp_min(0))[:, :m, :m]
        at, low, high = ((cosines >= DUPLICATE_WHITE) & later & (index >= n)[:, :, None]).nonzero(as_tuple=True)
        pairs.append(torch.stack([index[at, low], index[at, high]], 1).unique(dim=0))
    both = torch.cat(pairs).unique(dim=0)
    both = both[_same(rows, both[:, 0], both[:, 1])[0]]
    first: dict[int, int] = {}
    for high, low in sorted(both.flip(1).tolist()):
        if low not in first:  # the lowest of them that is no copy itself: the ends of a chain are far apart
            first.setdefault(high, low)
    ends = torch.tensor([list(first), list(first.values())], dtype=torch.long, device=lists.device)
    return ends[0], ends[1]


def _without_copies(
    white: Rows,
    firsts: torch.Tensor,
    queries: torch.Tensor,
    lists: torch.Tensor,
    leader: torch.Tensor,
    block: int,
) -> torch.Tensor:
    """The lists with only the first of each group, and none of a latent's own; searched anew where half is lost."""
    import torch

    def keep(members: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        safe = members.clamp_min(0)
        return torch.where((members >= 0) & firsts[safe] & (leader[safe] != leader[rows][:, None]), members, -1)

    kept = keep(lists, queries)
    lost = ((lists >= 0) & (kept < 0)).sum(1)
    again = (2 * lost >= lists.shape[1]).nonzero().squeeze(1)
    if len(again):
        fresh, _ = search(white, firsts, queries[again], lists.shape[1], block)
        kept[again] = keep(fresh, queries[again])
    return kept
