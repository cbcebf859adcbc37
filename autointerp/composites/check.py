"""The composite check on a decoder alone: neighbours, decompositions, labels and the nulls beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from autointerp.composites import nulls
from autointerp.composites.decompose import (
    _EDGE,
    CHILD_PARTIAL,
    CHILD_R2,
    PARENT_R2,
    POSSIBLE_PARTIAL,
    POSSIBLE_R2,
    Fits,
    decompose,
)
from autointerp.composites.neighbours import BLOCK, as_tensor, search, unit
from autointerp.errors import AutointerpError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

Label = Literal[
    "composite", "possible", "confirmed", "duplicate", "split_child", "parent_of_children", "absorption", "atomic", "dead"
]
FLAGGED: tuple[Label, ...] = ("confirmed", "composite", "possible")

COMPOSITE_R2, COMPOSITE_PARTIAL = 0.7, 0.3
DUPLICATE = 0.95  # cosine of unit rows
DUPLICATE_WHITE = 0.25  # and of whitened ones: in a strong cone a cosine of .95 may be the shared mean


def find_composites(
    W_dec: np.ndarray | torch.Tensor,
    union: np.ndarray | torch.Tensor | None = None,
    *,
    neighbours: int = 32,
    alive: np.ndarray | torch.Tensor | None = None,
    device: str | torch.device = "cpu",
    block: int = BLOCK,
) -> pd.DataFrame:
    """Which latents are two or three others in one, and which are duplicates, split children or parents.

    `W_dec` [n, d] and `union` [u, d] are decoder rows, floats of any width; the rows of `union` (another
    SAE of the same activations) are further candidates. `alive` [n] bool leaves out latents known to be
    dead; zero rows are dead anyway. `neighbours` candidates are tried for each latent, in all pairs.
    `device` and `block` (rows at a time) change time and memory, not labels.

    Returns a row for each latent:
      feature, label
        composite, possible: a positive sum of unrelated latents, each more than chance would give.
        duplicate: the same direction as the row in `constituents`, or, for the first of its group, as
        the next one. split_child: close to one row and to nothing else; of a family of two, parent and
        child look alike. parent_of_children: a sum of latents that are related to each other.
        atomic: none of these. dead. (confirmed and absorption need activations: see `evidence`.)
      constituents, coefficients
        rows of W_dec, largest coefficient first, and f/‖f‖ ≈ Σ coefficient · W_dec[c]/‖W_dec[c]‖: raw
        rows scaled to norm 1, not centred. Constituents in `union` are listed in `union_constituents`
        and their coefficients come after those of W_dec's own.
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
      reencode, lift, semantic
        null: they need activations and explanations.
      failure
        why a row has no figures, or null.

    Raises AutointerpError for what is no finite matrix, or a union of another width.
    """
    import torch

    own = as_tensor(W_dec)
    n, d = own.shape
    if neighbours < 2 or block < 1:
        raise AutointerpError("a pair needs neighbours ≥ 2 and block ≥ 1")
    if not d:
        raise AutointerpError("W_dec has no columns")
    with torch.inference_mode():
        Z = unit(own.to(device))
        if union is not None:
            other = as_tensor(union, "union")
            if other.shape[1] != d:
                raise AutointerpError(f"union has rows of width {other.shape[1]}, W_dec of {d}: not the same activations")
            Z = torch.cat([Z, unit(other.to(device))])
        living = (Z != 0).any(1)
        if alive is not None:
            mask = torch.as_tensor(alive, device=Z.device)
            if mask.shape != (n,) or mask.dtype != torch.bool:
                raise AutointerpError(f"alive must be {n} booleans, one a latent, this is {mask.dtype} {list(mask.shape)}")
            living[:n] &= mask
        queries = living[:n].nonzero().squeeze(1)
        white = nulls.whiten(Z, nulls.whitener(Z[living] if not living.all() else Z))
        lists, _ = search(white, living, queries, neighbours, block)
        cosines = _row_cosines(Z, queries, lists, block)
        copies = (cosines >= DUPLICATE - _EDGE) & (_row_cosines(white, queries, lists, block) >= DUPLICATE_WHITE)
        leader, twin = _groups(len(Z), n, queries, lists, copies)
        first = torch.arange(len(Z), device=Z.device) == leader
        lists = _without_copies(white, living & first, queries, lists, leader, neighbours, block)
        candidates = max(int((living & first).sum()) - 1, 0)
        fits = decompose(Z, white, queries, lists, candidates, block)
        highest = cosines.amax(1)
        twin_cosine = (Z[queries] * Z[twin[queries].clamp_min(0)]).sum(1)
    return _table(n, d, candidates, queries, fits, highest, leader[queries], twin[queries], twin_cosine)


def _row_cosines(rows: torch.Tensor, queries: torch.Tensor, lists: torch.Tensor, block: int) -> torch.Tensor:
    """Cosines [q, m] of each query with its list; -inf where the list has ended."""
    import torch

    step = max(1, min(block, 25_000_000 // max(lists.shape[1] * rows.shape[1], 1)))
    parts = [
        (rows[lists[s : s + step].clamp_min(0)] @ rows[queries[s : s + step], :, None]).squeeze(2)
        for s in range(0, len(queries), step)
    ]
    found = torch.cat(parts) if parts else torch.zeros(lists.shape, device=rows.device)
    return torch.where(lists >= 0, found, -torch.inf)


def _groups(
    total: int, n: int, queries: torch.Tensor, lists: torch.Tensor, copies: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Duplicates: the first row of each row's group, and the row each is said to be a duplicate of (-1: none).

    Groups are of `W_dec`'s own rows, 0 … n - 1; a row of the union belongs to the group of its first copy there.
    """
    import torch

    at, place = copies.nonzero(as_tuple=True)
    left, right = queries[at], lists[at, place]
    leader = torch.arange(total, device=lists.device)
    inside = right < n
    ends = torch.cat([left[inside], right[inside]]), torch.cat([right[inside], left[inside]])
    while len(ends[0]):  # the lowest row number spreads through each group
        spread = leader.scatter_reduce(0, ends[0], leader[ends[1]], "amin")
        spread = spread[spread]
        if torch.equal(spread, leader):
            break
        leader = spread
    twin = torch.full((total,), total, device=lists.device)
    if len(ends[0]):
        twin = twin.scatter_reduce(0, ends[0], ends[1], "amin")
    twin = torch.where(twin == total, -1, twin)
    own = torch.arange(total, device=lists.device)
    twin = torch.where(leader < own, leader, twin)
    if not inside.all():
        leader = leader.scatter_reduce(0, right[~inside], leader[left[~inside]], "amin")
    return leader, twin


def _without_copies(
    white: torch.Tensor,
    allowed: torch.Tensor,
    queries: torch.Tensor,
    lists: torch.Tensor,
    leader: torch.Tensor,
    m: int,
    block: int,
) -> torch.Tensor:
    """Candidate lists of `allowed` rows only and without each latent's own group; refilled where that took half."""
    import torch

    safe = lists.clamp_min(0)
    good = (lists >= 0) & allowed[safe] & (leader[safe] != leader[queries][:, None])
    taken = ((lists >= 0) & ~good).sum(1)
    again = (taken * 2 >= m).nonzero().squeeze(1)
    lists = torch.where(good, lists, -1)
    if len(again):
        fresh, _ = search(white, allowed, queries[again], m, block)
        fresh = torch.where(leader[fresh.clamp_min(0)] != leader[queries[again]][:, None], fresh, -1)
        lists[again] = fresh
    return lists


def _table(
    n: int,
    d: int,
    candidates: int,
    queries: torch.Tensor,
    fits: Fits,
    highest: torch.Tensor,
    leader: torch.Tensor,
    twin: torch.Tensor,
    twin_cosine: torch.Tensor,
) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    f = {name: value.cpu().numpy() for name, value in vars(fits).items()}
    rows = queries.cpu().numpy()
    leader_, twin_ = leader.cpu().numpy(), twin.cpu().numpy()
    terms = (f["parts"] >= 0).sum(1)
    r2, partial = f["r2"] + _EDGE, f["partial"] + _EDGE
    single = np.clip(f["nearest_cosine"], 0, 1) ** 2
    white_single = np.clip(f["nearest_white"], 0, 1) ** 2

    composite = (terms > 0) & (r2 >= COMPOSITE_R2) & (partial >= COMPOSITE_PARTIAL)
    possible = (terms > 0) & (r2 >= POSSIBLE_R2) & (partial >= POSSIBLE_PARTIAL) & ~composite
    parent = (f["related_r2"] + _EDGE >= PARENT_R2) & (f["related_partial"] + _EDGE >= CHILD_PARTIAL)
    beyond = np.maximum(np.where(terms > 0, f["partial"], 0), f["related_partial"])
    by_chance = nulls.threshold(nulls_level(), 1, d, candidates) if candidates else 1.0
    child = (single + _EDGE >= CHILD_R2) & (white_single >= by_chance) & (beyond < CHILD_PARTIAL)
    # A part of a composite lies close to it, and is neither its child nor the parent of several.
    wholes = _wholes(rows, f["parts"], composite | possible)
    parent &= ~_points_at(rows, f["related"], wholes)
    child &= ~_points_at(rows, f["nearest"][:, None], wholes)

    copy = leader_ < rows
    twinned = twin_ >= 0
    label = np.select(
        [copy, composite, possible, twinned, parent, child],
        ["duplicate", "composite", "possible", "duplicate", "parent_of_children", "split_child"],
        "atomic",
    )
    flagged = np.isin(label, ["composite", "possible"])
    is_copy, is_parent, is_child = label == "duplicate", label == "parent_of_children", label == "split_child"

    # the terms of the label, their figures in both geometries, and the nulls of these
    chosen = np.full((len(rows), 3), -1)
    weights = np.zeros((len(rows), 3))
    chosen[flagged], weights[flagged] = f["parts"][flagged], f["coefficients"][flagged]
    chosen[is_parent, :2] = f["related"][is_parent]
    weights[is_parent, :2] = f["related_coefficients"][is_parent]
    chosen[is_child, 0], weights[is_child, 0] = f["nearest"][is_child], f["nearest_cosine"][is_child]
    cosine = twin_cosine.cpu().numpy()
    chosen[is_copy, 0], weights[is_copy, 0] = twin_[is_copy], cosine[is_copy]
    shown = np.select([flagged, is_parent, is_copy], [f["r2"], f["related_r2"], cosine**2], single)
    shown = np.clip(shown, 0, 1)
    shown_partial = np.select([flagged, is_parent], [f["partial"], f["related_partial"]], np.nan)
    white = np.select([flagged, is_parent, is_copy], [f["white_r2"], f["related_white_r2"], cosine**2], white_single)
    white_partial = np.select([flagged, is_parent], [f["white_partial"], f["related_white_partial"]], np.nan)
    k = np.where(flagged, terms, np.where(is_parent, 2, 1))
    p, which = _p_values(shown, white, white_partial, k, d, candidates)
    alone = f["nearest"] < 0

    def spread(values: np.ndarray, missing: object) -> list[object]:
        out: list[object] = [missing] * n
        for row, value in zip(rows.tolist(), values.tolist()):
            out[row] = value
        return out

    constituents: list[list[int]] = [[] for _ in range(n)]
    union_constituents: list[list[int]] = [[] for _ in range(n)]
    coefficients: list[list[float]] = [[] for _ in range(n)]
    for i in np.nonzero((chosen >= 0).any(1))[0]:
        pairs = [(int(c), float(w)) for c, w in zip(chosen[i], weights[i]) if c >= 0]
        pairs.sort(key=lambda pair: (pair[0] >= n, -pair[1]))
        row = int(rows[i])
        constituents[row] = [c for c, _ in pairs if c < n]
        union_constituents[row] = [c - n for c, _ in pairs if c >= n]
        coefficients[row] = [w for _, w in pairs]
    blank = np.where(alone & ~is_copy, np.nan, 1.0)
    highest_ = highest.cpu().numpy()
    failure = np.where(alone & ~is_copy, "no other latent to compare with", None)
    return pd.DataFrame(
        {
            "feature": np.arange(n),
            "label": spread(label, "dead"),
            "constituents": constituents,
            "coefficients": coefficients,
            "union_constituents": union_constituents,
            "r2": np.array(spread(shown * blank, np.nan), dtype=float),
            "partial_r2": np.array(spread(shown_partial, np.nan), dtype=float),
            "max_cosine": np.array(spread(np.where(np.isfinite(highest_), highest_, np.nan), np.nan), dtype=float),
            "p_value": np.array(spread(p * blank, np.nan), dtype=float),
            "p_value_null": spread(np.where(np.isnan(blank), None, which), None),
            "reencode": np.full(n, np.nan),
            "lift": np.full(n, np.nan),
            "semantic": np.full(n, np.nan),
            "failure": spread(failure, "a zero row, or not alive"),
        }
    )


def nulls_level() -> float:
    from autointerp.composites.decompose import LEVEL

    return LEVEL


def _wholes(rows: np.ndarray, parts: np.ndarray, flagged: np.ndarray) -> dict[int, set[int]]:
    """part -> the flagged latents it is a part of."""
    found: dict[int, set[int]] = {}
    for row, of in zip(rows[flagged].tolist(), parts[flagged].tolist()):
        for part in of:
            if part >= 0:
                found.setdefault(part, set()).add(row)
    return found


def _points_at(rows: np.ndarray, targets: np.ndarray, wholes: dict[int, set[int]]) -> np.ndarray:
    """[q] bool: one of the row's targets [q, k] is a composite of which the row is a part."""
    import numpy as np

    return np.array(
        [bool(wholes.get(row, set()).intersection(of)) for row, of in zip(rows.tolist(), targets.tolist())], dtype=bool
    )


def _p_values(
    r2: np.ndarray, white_r2: np.ndarray, white_partial: np.ndarray, k: np.ndarray, d: int, candidates: int
) -> tuple[np.ndarray, np.ndarray]:
    """The largest p of the nulls and its name, [q] each."""
    import numpy as np

    three = np.zeros((3, len(r2)))
    for terms in (1, 2, 3):
        at = k == terms
        if candidates < terms or not at.any():
            continue
        three[0, at] = nulls.p_random(r2[at], terms, d, candidates)
        three[1, at] = nulls.p_random(white_r2[at], terms, d, candidates)
        if terms > 1:
            three[2, at] = nulls.p_random(white_partial[at], 1, d - terms + 1, candidates)
    names = np.array(["random", "covariance", "conditional"])
    return three.max(0), names[three.argmax(0)]


def expand(table: pd.DataFrame, feature: int) -> dict[int, float]:
    """The atoms of a flagged latent: its constituents, theirs in turn, and the product of the coefficients.

    2g + h, g + h and g + 2h become three composites of two atoms. Constituents in a union dictionary are
    left out. A latent that is not flagged is its own atom.
    """
    label = dict(zip(table["feature"], table["label"]))
    constituents = dict(zip(table["feature"], table["constituents"]))
    coefficients = dict(zip(table["feature"], table["coefficients"]))
    atoms: dict[int, float] = {}

    def walk(at: int, weight: float, above: frozenset[int]) -> None:
        parts = cast("list[int]", constituents[at])
        if label[at] not in FLAGGED or not len(parts) or above.intersection(int(p) for p in parts):
            atoms[at] = atoms.get(at, 0.0) + weight
            return
        for part, coefficient in zip(parts, coefficients[at]):
            walk(int(part), weight * float(coefficient), above | {at})

    walk(feature, 1.0, frozenset())
    return atoms
