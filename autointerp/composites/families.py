"""Families: what becomes of the latents of an SAE in another one of the same hook, wider or trained anew.

By the two decoders alone:
1. Sums: the check on each dictionary with the other as its union. A latent counts as a sum of the other's latents where
   it is flagged, each part is one of theirs or nearly one, and no single one of theirs does as well.
2. Relatives: of what is left, the nearest latent of the other dictionary from a cosine of `RELATED` on, if it is also
   nearer than chance in the whitened geometry, where a shared mean makes nothing near.
3. Fates and origins, the same seen from both sides.

A split into latents whose remainders cancel is a sum too, and is called `apart`: only firings tell "either" from
"both".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from autointerp import stats
from autointerp.composites import nulls
from autointerp.composites.check import find_composites
from autointerp.composites.decompose import EDGE, LEVEL, PARTIAL
from autointerp.composites.labels import FLAGGED
from autointerp.composites.maps import Geometries
from autointerp.composites.neighbours import BLOCK, MEMORY, Rows, as_matrix, full_precision, not_zero, search
from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    import numpy as np
    import torch

Frame: TypeAlias = Any  # a pandas.DataFrame
Fate = Literal["kept", "split", "apart", "absorbed", "missing"]
Origin = Literal["kept", "child", "part", "sum", "new"]
FATES: tuple[Fate, ...] = ("kept", "split", "apart", "absorbed", "missing")
ORIGINS: tuple[Origin, ...] = ("kept", "child", "part", "sum", "new")  # each beside its fate

RELATED = 0.5  # cosine from which on two latents are of one family
ALIKE = 0.7  # and are one latent, if nothing else is: 2502.04878 calls a wider latent below it new
SURE = 0.9  # and are one latent, whatever else is near
_NEAR = 8  # rows of the other dictionary that are looked at
COMPARED = {"flagged": FLAGGED, "subspace": ("subspace",), "split_child": ("split_child",)}  # labels over retrainings
PERMUTATIONS = 10_000


@dataclass(frozen=True)
class Families:
    """`fates`: a row for each narrow latent; `origins`: one for each wide latent. Both have the columns feature, label
    (of `FATES`, `ORIGINS`; null for a zero row), others (latents of the other dictionary: the match, the family, the
    parts or the sums), cosines (with these; null where it is no more than chance), r2 (of a sum, else null), max_cosine
    (with any of the other's latents; null where none is beyond chance) and failure (why there is no label).
    `match` [n] is each narrow latent's counterpart: both are the nearest of the other, with `ALIKE` at least; else -1.
    """

    fates: Frame
    origins: Frame
    match: np.ndarray


def families(
    narrow: np.ndarray | torch.Tensor,
    wide: np.ndarray | torch.Tensor,
    *,
    device: str | torch.device = "cpu",
    block: int = BLOCK,
    memory: int = MEMORY,
) -> Families:
    """Follow each latent of `narrow` [n, d] into `wide` [m, d], decoder rows of SAEs of the same activations.

    Raises AutointerpError for what is no finite matrix, or matrices of two widths.
    """
    a, b = as_matrix(narrow, "narrow"), as_matrix(wide, "wide")
    if a.shape[1] != b.shape[1]:
        raise AutointerpError(f"wide has rows of width {b.shape[1]}, narrow of {a.shape[1]}: other activations")
    place: dict[str, Any] = {"device": device, "block": block, "memory": memory}
    there, back = _near_each_other(a, b, **place)
    apart = _sums(find_composites(a, b, **place), there)
    sums = _sums(find_composites(b, a, **place), back)
    down, up = there.without(set(sums)), back.without(set(apart))  # a sum is no relative of its parts
    children = _children(up, sums)
    fates = _fates(down, children, apart, sums)
    origins = _origins(up, fates, children, apart, sums)
    return Families(_table(fates, there, apart), _table(origins, back, sums), _mutual(there, back))


# --- nearest rows


@dataclass(frozen=True)
class _Near:
    """For each of n latents: the rows of the other dictionary that are nearer than chance (-1: none), by cosine."""

    rows: np.ndarray  # [n, _NEAR]
    cosines: np.ndarray  # [n, _NEAR], -inf where there is none
    alive: np.ndarray  # [n] bool: no zero row

    def without(self, out: set[int]) -> _Near:
        """Without the rows `out`."""
        import numpy as np

        gone = np.isin(self.rows, list(out))
        cosines = np.where(gone, -np.inf, self.cosines)
        order = (-cosines).argsort(1, kind="stable")
        rows = np.where(gone, -1, self.rows)
        return _Near(np.take_along_axis(rows, order, 1), np.take_along_axis(cosines, order, 1), self.alive)

    def nearest(self, i: int) -> tuple[int, float]:
        return int(self.rows[i, 0]), float(self.cosines[i, 0])


def _near_each_other(a: Any, b: Any, device: Any, block: int, memory: int) -> tuple[_Near, _Near]:
    """The rows of `b` near to those of `a`, and the other way round."""
    import numpy as np
    import torch

    n, both = len(a), Rows([a, b], device, memory)
    with full_precision(), torch.inference_mode():
        living = not_zero(both)
        maps = Geometries.of(both, living)
        first = torch.arange(len(both), device=both.device) < n
        down = _near(maps, living & first, living & ~first, block)
        up = _near(maps, living & ~first, living & first, block)
    shifted = np.where(down.rows < 0, -1, down.rows - n)
    return _Near(shifted[:n], down.cosines[:n], down.alive[:n]), _Near(up.rows[n:], up.cosines[n:], up.alive[n:])


def _near(maps: Geometries, asked: torch.Tensor, among: torch.Tensor, block: int) -> _Near:
    """For the latents `asked` [rows] bool, the rows `among` [rows] bool; nothing for the others."""
    import torch

    queries = asked.nonzero().squeeze(1)
    lists, white = search(maps.white, among, queries, _NEAR, block)
    chance = nulls.threshold(LEVEL, 1, maps.dimensions, int(among.sum()))
    near = (lists >= 0) & (white > 0) & (white**2 >= chance)
    cosines = _cosines(maps.plain, queries, lists.clamp_min(0), block).masked_fill(~near, -torch.inf)
    cosines, order = cosines.sort(dim=1, descending=True, stable=True)
    rows = torch.full((len(asked), _NEAR), -1, device=asked.device)
    values = torch.full((len(asked), _NEAR), -torch.inf, device=asked.device)
    rows[queries], values[queries] = torch.where(near, lists, -1).gather(1, order), cosines
    return _Near(rows.cpu().numpy(), values.cpu().numpy(), asked.cpu().numpy())


def _cosines(Z: Rows, queries: torch.Tensor, lists: torch.Tensor, block: int) -> torch.Tensor:
    """[q, m] of the rows `queries` [q] with those of their lists [q, m]."""
    import torch

    parts = [torch.zeros(0, lists.shape[1], device=Z.device)]
    for start in range(0, len(queries), block):
        asked = lists[start : start + block]
        theirs = Z[asked.flatten()].view(*asked.shape, Z.shape[1])
        parts.append(torch.einsum("qmd,qd->qm", theirs, Z[queries[start : start + block]]))
    return torch.cat(parts)


# --- who is whose


Sums: TypeAlias = dict[int, tuple[list[int], float]]  # latent -> its parts in the other dictionary, and R²
Labelled: TypeAlias = list[tuple[str | None, list[int]]]  # of each latent: its label, and latents of the other


def _sums(table: Frame, near: _Near) -> Sums:
    """The latents of `table` (of `find_composites`, the other dictionary as union) that are sums of the other's, which
    `near` are. An own constituent stands for its nearest row there, if that is alike."""
    sums: Sums = {}
    for row in table[table["label"].isin(FLAGGED)].to_dict("records"):
        own = [near.nearest(part) for part in row["constituents"]]
        parts = {part for part, cosine in own if cosine >= ALIKE}.union(row["union_constituents"])
        nearest, cosine = near.nearest(row["feature"])
        alone = max(cosine, 0.0) ** 2
        better = row["r2"] - alone + EDGE >= PARTIAL * (1 - alone)
        whole = len(parts) == len(own) + len(row["union_constituents"])
        if whole and (nearest in parts or (cosine < SURE and better)):
            sums[row["feature"]] = (sorted(map(int, parts)), float(row["r2"]))
    return sums


def _mutual(down: _Near, up: _Near) -> np.ndarray:
    """[n] the wide latent that is the nearest of each narrow one, which is its nearest too; -1: none is."""
    import numpy as np

    match = np.full(len(down.rows), -1)
    for i in range(len(match)):
        other, cosine = down.nearest(i)
        if cosine >= ALIKE and up.nearest(other)[0] == i:
            match[i] = other
    return match


def _children(up: _Near, sums: Sums) -> dict[int, list[int]]:
    """narrow latent -> the wide ones, no sums, that are nearer to it than to any other, nearest first."""
    children: dict[int, list[tuple[float, int]]] = {}
    for child in range(len(up.rows)):
        parent, cosine = up.nearest(child)
        if child not in sums and cosine + EDGE >= RELATED:
            children.setdefault(parent, []).append((-cosine, child))
    return {parent: [child for _, child in sorted(family)] for parent, family in children.items()}


def _wholes(sums: Sums) -> dict[int, list[int]]:
    wholes: dict[int, list[int]] = {}
    for whole, (parts, _) in sums.items():
        for part in parts:
            wholes.setdefault(part, []).append(whole)
    return wholes


def _fates(down: _Near, children: dict[int, list[int]], apart: Sums, sums: Sums) -> Labelled:
    wholes = _wholes(sums)
    fates: Labelled = []
    for i, alive in enumerate(down.alive):
        nearest, cosine = down.nearest(i)
        family = children.get(i, [])
        if not alive:
            fates.append((None, []))
        elif i in apart:
            fates.append(("apart", apart[i][0]))
        elif cosine >= SURE or (cosine >= ALIKE and len(family) < 2):
            fates.append(("kept", [nearest]))
        elif len(family) > 1:
            fates.append(("split", family))
        else:
            fates.append(("absorbed", wholes[i]) if i in wholes else ("missing", []))
    return fates


def _origins(up: _Near, fates: Labelled, children: dict[int, list[int]], apart: Sums, sums: Sums) -> Labelled:
    wholes = _wholes(apart)
    matches = {others[0] for label, others in fates if label == "kept"}
    parent = {child: parent for parent, family in children.items() if len(family) > 1 for child in family}
    origins: Labelled = []
    for i, alive in enumerate(up.alive):
        nearest, cosine = up.nearest(i)
        if not alive:
            origins.append((None, []))
        elif i in sums:
            origins.append(("sum", sums[i][0]))
        elif cosine >= SURE or (i in matches and cosine >= ALIKE):
            origins.append(("kept", [nearest]))
        elif i in parent:
            origins.append(("child", [parent[i]]))
        else:
            origins.append(("part", wholes[i]) if i in wholes else ("new", []))
    return origins


def _table(labelled: Labelled, near: _Near, sums: Sums) -> Frame:
    import numpy as np
    import pandas as pd

    rows = []
    for i, (label, others) in enumerate(labelled):
        known = {row: cosine for row, cosine in zip(near.rows[i].tolist(), near.cosines[i].tolist()) if row >= 0}
        cosines = [known.get(other) for other in others]
        r2, highest = sums[i][1] if i in sums else np.nan, float(max(known.values(), default=np.nan))
        rows.append((i, label, others, cosines, r2, highest, "a zero row" if label is None else None))
    return pd.DataFrame(rows, columns=["feature", "label", "others", "cosines", "r2", "max_cosine", "failure"])


# --- labels over retrainings


@dataclass(frozen=True)
class Stability:
    """Of the matched latents with a label in one SAE, how many have it in the other: `share` and its 95 % interval.
    `chance` is what random permutations of the matching give, with the range of 95 % of them, and `p` the share of
    these that give as many. All are null where no matched latent has the label."""

    label: str
    n: int  # matched latents that have the label in the first
    again: int  # of these: in the second too
    share: float | None = None
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    chance_low: float | None = None
    chance_high: float | None = None
    p: float | None = None


def stability(first: Frame, second: Frame, match: np.ndarray, *, seed: int = 0) -> list[Stability]:
    """Whether the labels of `find_composites` stay: `first` and `second` are its tables, `match` of `Families`."""
    import numpy as np

    pairs = match >= 0
    before, after = first["label"].to_numpy()[pairs], second["label"].to_numpy()[match[pairs]]
    rng = np.random.default_rng(seed)
    rows = []
    for name, labels in COMPARED.items():
        has, has_again = np.isin(before.astype(str), labels), np.isin(after.astype(str), labels)
        n, again = int(has.sum()), int((has & has_again).sum())
        interval = stats.share_interval(again, n)
        if interval is None:
            rows.append(Stability(name, n, again))
            continue
        total = int(has_again.sum())
        drawn = rng.hypergeometric(total, len(before) - total, n, PERMUTATIONS)  # of a permutation: how many agree
        low, high = (float(bound) / n for bound in np.quantile(drawn, [0.025, 0.975]))
        p = float((1 + (drawn >= again).sum()) / (1 + PERMUTATIONS))
        rows.append(Stability(name, n, again, again / n, *interval, total / len(before), low, high, p))
    return rows
