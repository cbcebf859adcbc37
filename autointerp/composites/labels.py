"""Labels of the composite check (composite, possible, duplicate, subspace …), their thresholds and the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any, Literal

from autointerp.composites import nulls
from autointerp.composites.decompose import EDGE, LEVEL, PARTIAL, TERMS, Fits
from autointerp.composites.nulls import ROUNDING

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from autointerp.composites.subspaces import Subspace

Label = Literal[
    "composite",
    "possible",
    "confirmed",
    "duplicate",
    "split_child",
    "parent_of_children",
    "subspace",
    "absorption",
    "atomic",
    "dead",
]
SHARED = ("rank", "members", "circular", "places")  # columns of the label subspace
FLAGGED: tuple[Label, ...] = ("confirmed", "composite", "possible")

# .8, not the .7 that planted dictionaries allow: between them lie trained latents that chance made of two features
# (benchmarks/toys.py). A planted sum with noise of .4 of its length has .86.
COMPOSITE_R2, POSSIBLE_R2 = 0.8, 0.6
TELLS = 0.85  # where chance makes sums of a higher R², sums cannot be told from it
PARENT_R2, CHILD_R2, CHILD_PARTIAL = 0.5, 0.25, 0.2


def make_table(
    n: int,
    d: int,
    candidates: int,
    queries: torch.Tensor,
    fits: Fits,
    leader: torch.Tensor,
    twin: torch.Tensor,
    twin_cosines: torch.Tensor,
    spaces: Sequence[Subspace] = (),
    least: Callable[[np.ndarray], float] | None = None,
) -> pd.DataFrame:
    """The columns of `find_composites` for `n` latents, of which `queries` [q] are alive and were fitted.

    `d` is in how many dimensions their whitened rows lie, and `candidates` are the rows that each was searched among.
    `leader`, `twin` [q] are of `check._groups`, `twin_cosines` [q] the cosine to the twin. `spaces` are of
    `subspaces.subspaces`. `least` says of the R² of all sums up to which of them chance makes such (`decoys.least_r2`).
    """
    import numpy as np
    import pandas as pd

    f = {name: value.cpu().numpy() for name, value in vars(fits).items()}
    rows, leaders, twins, cosine = (x.cpu().numpy() for x in (queries, leader, twin, twin_cosines))
    shared = {member: space for space in reversed(spaces) for member in space.members}
    no_sums = np.isin(rows, list(shared)) | _of_one_space(f["parts"], spaces)
    label = _labels(rows, f, leaders, twins, d, candidates, np.isin(rows, list(shared)), no_sums)
    why = np.full(len(rows), None, dtype=object)
    if least is not None:
        level = least(f["r2"][np.isin(label, FLAGGED)])
        label, why = _without_chance(label, f["r2"], level)
        shared = {} if level > TELLS else shared
    chosen, weights = _terms(label, f, twins, cosine)
    r2, partial, p, null = _figures(label, f, cosine, d, candidates)
    alone = (f["nearest"] < 0) & (label != "duplicate")  # nothing to compare with
    figures = pd.DataFrame(
        {
            "label": label,
            "r2": r2,
            "partial_r2": partial,
            "max_cosine": np.where(np.isfinite(f["highest"]), f["highest"], np.nan).astype(float),
            "p_value": p,
            "p_value_null": null,
        },
        index=rows,
    )
    figures.loc[rows[alone], ["r2", "p_value", "p_value_null"]] = np.nan
    table = figures.reindex(range(n))
    table["label"] = table["label"].fillna("dead")
    failure = np.full(n, None, dtype=object)
    failure[rows] = why
    table["failure"] = failure
    table.loc[rows[alone], "failure"] = "no other latent to compare with"
    table.loc[table["label"] == "dead", "failure"] = "a zero row, or not alive"
    table = table.assign(feature=np.arange(n), **_lists(n, rows, chosen, weights), **_shared(n, shared))
    table = table.assign(reencode=np.nan, lift=np.nan, semantic=np.nan)
    order = "feature label constituents coefficients union_constituents r2 partial_r2 max_cosine p_value p_value_null"
    return table.reindex(columns=[*order.split(), *SHARED, "reencode", "lift", "semantic", "failure"])


def sums(fits: Fits) -> torch.Tensor:
    """[q] bool: the latents that are sums by their fit alone."""
    return (fits.parts[:, 0] >= 0) & (fits.partial + EDGE >= PARTIAL) & (fits.r2 + EDGE >= POSSIBLE_R2)


def _labels(
    rows: np.ndarray,
    f: Mapping[str, np.ndarray],
    leaders: np.ndarray,
    twins: np.ndarray,
    d: int,
    candidates: int,
    shared: np.ndarray,
    no_sums: np.ndarray,
) -> np.ndarray:
    """[q] the label of each row, from its fits `f`; `shared` [q]: it is a member of a subspace; `no_sums` [q]: its fit
    is none, because of a subspace."""
    import numpy as np

    sums = (f["parts"][:, 0] >= 0) & (f["partial"] + EDGE >= PARTIAL) & ~no_sums
    sums &= ~_turned(rows, f["parts"], f["r2"], sums & (f["r2"] + EDGE >= POSSIBLE_R2))
    composite = sums & (f["r2"] + EDGE >= COMPOSITE_R2)
    possible = sums & (f["r2"] + EDGE >= POSSIBLE_R2)
    parent = (f["related_r2"] + EDGE >= PARENT_R2) & (f["related_partial"] + EDGE >= CHILD_PARTIAL)
    child = np.clip(f["nearest_cosine"], 0, 1) ** 2 + EDGE >= CHILD_R2
    child &= np.maximum(f["partial"], f["related_partial"]) + EDGE < CHILD_PARTIAL
    child &= np.clip(f["nearest_white"], 0, 1) ** 2 >= nulls.threshold(LEVEL, 1, d, candidates)
    # A part of a composite lies close to it, and is neither its child nor the parent of several.
    wholes = _wholes(rows, f["parts"], possible)
    parent &= ~_points_at(rows, f["related"], wholes)
    child &= ~_points_at(rows, f["nearest"][:, None], wholes)
    return np.select(
        [shared, leaders < rows, composite, possible, twins >= 0, parent, child],
        ["subspace", "duplicate", "composite", "possible", "duplicate", "parent_of_children", "split_child"],
        "atomic",
    )


def _without_chance(label: np.ndarray, r2: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The labels [q] where chance makes sums of an R² up to `level`, and why some are atomic: sums up to it are none.
    Where chance fits nearly as well as any sum, there is none, and no relative or subspace either."""
    import numpy as np

    if level > TELLS:
        told = np.isin(label, ["duplicate", "dead"])
        why = "cannot tell: of this steep a spectrum the check flags as much by chance"
    else:
        told = ~(np.isin(label, FLAGGED) & (r2 <= level))
        why = f"chance alone makes sums of an R² up to {level:.2f} in so steep a spectrum"
    failure = np.full(len(label), why, dtype=object)
    failure[told] = None
    return np.where(told, label, "atomic"), failure


def _of_one_space(parts: np.ndarray, spaces: Sequence[Subspace]) -> np.ndarray:
    """[q] bool: all of the parts [q, TERMS] are members of one subspace. Whatever has something in it, as a child of a
    member has, is fitted by any few of its members."""
    import numpy as np

    inside = np.zeros(len(parts), dtype=bool)
    members = {member for space in spaces for member in space.members}
    asked = np.flatnonzero((parts[:, 0] >= 0) & (np.isin(parts, list(members)) | (parts < 0)).all(1))
    for space in spaces if len(asked) else ():
        inside[asked] |= (np.isin(parts[asked], space.members) | (parts[asked] < 0)).all(1)
    return inside


def _terms(
    label: np.ndarray, f: Mapping[str, np.ndarray], twins: np.ndarray, cosine: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The terms that each label rests on, [q, TERMS] rows (-1: none), and their coefficients."""
    import numpy as np

    flagged, copy = np.isin(label, FLAGGED), label == "duplicate"
    kin, near = label == "parent_of_children", label == "split_child"
    chosen, weights = np.full((len(label), TERMS), -1), np.zeros((len(label), TERMS))
    chosen[flagged], weights[flagged] = f["parts"][flagged], f["coefficients"][flagged]
    chosen[kin, :2], weights[kin, :2] = f["related"][kin], f["related_coefficients"][kin]
    chosen[near, 0], weights[near, 0] = f["nearest"][near], f["nearest_cosine"][near]
    chosen[copy, 0], weights[copy, 0] = twins[copy], cosine[copy]
    return chosen, weights


def _figures(
    label: np.ndarray, f: Mapping[str, np.ndarray], cosine: np.ndarray, d: int, candidates: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """r2, partial_r2, p_value and p_value_null, [q] each, of the terms that each label rests on."""
    import numpy as np

    flagged, kin, copy = np.isin(label, FLAGGED), label == "parent_of_children", label == "duplicate"
    single, white_single = np.clip(f["nearest_cosine"], 0, 1) ** 2, np.clip(f["nearest_white"], 0, 1) ** 2
    r2 = np.clip(np.select([flagged, kin, copy], [f["r2"], f["related_r2"], cosine**2], single), 0, 1)
    partial = np.select([flagged, kin], [f["partial"], f["related_partial"]], np.nan)
    white = np.select([flagged, kin, copy], [f["white_r2"], f["related_white_r2"], cosine**2], white_single)
    white_partial = np.select([flagged, kin], [f["white_partial"], f["related_white_partial"]], np.nan)
    count = np.select([flagged, kin], [(f["parts"] >= 0).sum(1), 2], 1)
    return r2, partial, *_p_values(r2, white, white_partial, count, d, candidates)


def _lists(n: int, rows: np.ndarray, chosen: np.ndarray, weights: np.ndarray) -> dict[str, list[list[Any]]]:
    """The list columns for all n latents: the terms in W_dec, in the union, and the coefficients of both."""
    import numpy as np

    own: list[list[int]] = [[] for _ in range(n)]
    other: list[list[int]] = [[] for _ in range(n)]
    coefficients: list[list[float]] = [[] for _ in range(n)]
    for i in np.nonzero(chosen[:, 0] >= 0)[0]:
        row, pairs = rows[i], [(int(c), float(w)) for c, w in zip(chosen[i], weights[i]) if c >= 0]
        pairs.sort(key=lambda pair: (pair[0] >= n, -pair[1]))
        own[row] = [c for c, _ in pairs if c < n]
        other[row] = [c - n for c, _ in pairs if c >= n]
        coefficients[row] = [w for _, w in pairs]
    return {"constituents": own, "coefficients": coefficients, "union_constituents": other}


def _shared(n: int, shared: Mapping[int, Subspace]) -> dict[str, Any]:
    """The columns `SHARED` for all n latents; `shared` are the members of subspaces."""
    import pandas as pd

    spaces = [shared.get(row) for row in range(n)]
    own, flat = {}, {}  # by identity: a space's hash is as long as the space
    for space in {id(space): space for space in shared.values()}.values():
        own[id(space)] = [row for row in space.members if row < n]
        flat[id(space)] = [number for place in space.places[: len(own[id(space)])] for number in place]
    return {
        "rank": pd.array([None if space is None else space.rank for space in spaces], dtype="Int64"),
        "members": [own.get(id(space), []) for space in spaces],
        "circular": pd.array([None if space is None else space.circular for space in spaces], dtype="boolean"),
        "places": [flat.get(id(space), []) for space in spaces],
    }


def _turned(rows: np.ndarray, parts: np.ndarray, r2: np.ndarray, flagged: np.ndarray) -> np.ndarray:
    """[q] bool: sums turned round. If f = g + h, g is f and what lies opposite h, but worse: with f's residual too."""
    import numpy as np

    place = {row: i for i, row in enumerate(rows.tolist()) if flagged[i]}
    turned = np.zeros(len(rows), dtype=bool)
    for row, i in place.items():
        for part in parts[i].tolist():
            j = place.get(part)
            turned[i] |= j is not None and row in parts[j] and r2[i] < r2[j] - ROUNDING
    return turned


def _wholes(rows: np.ndarray, parts: np.ndarray, flagged: np.ndarray) -> dict[int, set[int]]:
    """part -> the flagged latents it is a part of."""
    wholes: dict[int, set[int]] = {}
    for row, members in zip(rows[flagged].tolist(), parts[flagged].tolist()):
        for part in members:
            wholes.setdefault(part, set()).add(row)
    return wholes


def _points_at(rows: np.ndarray, targets: np.ndarray, wholes: dict[int, set[int]]) -> np.ndarray:
    """[q] bool: one of the row's targets [q, k] is a composite of which the row is a part."""
    import numpy as np

    hit = np.zeros(len(rows), dtype=bool)
    for i in np.nonzero(np.isin(rows, list(wholes)))[0]:
        hit[i] = bool(wholes[int(rows[i])].intersection(targets[i].tolist()))
    return hit


def _p_values(
    r2: np.ndarray, white_r2: np.ndarray, white_partial: np.ndarray, terms: np.ndarray, d: int, candidates: int
) -> tuple[np.ndarray, np.ndarray]:
    """The largest p of the nulls and its name, [q] each."""
    import numpy as np

    p = np.zeros((3, len(r2)))
    for k in range(1, TERMS + 1):
        at = terms == k
        p[0, at] = nulls.p_random(r2[at], k, d, candidates)
        p[1, at] = nulls.p_random(white_r2[at], k, d, candidates)
        if k > 1:
            p[2, at] = nulls.p_random(white_partial[at], 1, d - k + 1, candidates)
    names = np.array(["random", "covariance", "conditional"], dtype=object)
    return p.max(0), names[p.argmax(0)]


def expand(table: pd.DataFrame, features: Iterable[int]) -> dict[int, dict[int, float]]:
    """The atoms of flagged latents: their constituents, theirs in turn, with the products of the coefficients.

    2g + h, g + h and g + 2h become three composites of two atoms. A latent that is not flagged is its own atom. So is
    one with constituents in a union dictionary, and a constituent on a cycle, where each latent comes down to others
    that come down to it.
    """
    rows = zip(table["feature"], table["label"], table["constituents"], table["coefficients"])
    whole = {
        int(f): {int(part): float(weight) for part, weight in zip(parts, coefficients)}
        for f, label, parts, coefficients in rows
        if label in FLAGGED and len(parts) == len(coefficients)
    }
    open_ = whole.keys() - _on_cycles(whole)
    first = TopologicalSorter({f: [part for part in parts if part in open_] for f, parts in whole.items()})
    atoms: dict[int, dict[int, float]] = {}
    for f in first.static_order():
        own: dict[int, float] = {}
        for part, weight in whole[f].items():
            for atom, share in (atoms[part] if part in open_ else {part: 1.0}).items():
                own[atom] = own.get(atom, 0.0) + weight * share
        atoms[f] = own
    return {int(f): atoms.get(int(f), {int(f): 1.0}) for f in features}


def _on_cycles(whole: Mapping[int, Mapping[int, float]]) -> set[int]:
    """The latents on cycles of `whole` (latent -> its constituents), and those on the way from one to another."""
    left = set(whole)
    wholes: dict[int, list[int]] = {}
    for f, parts in whole.items():
        for part in parts:
            wholes.setdefault(part, []).append(f)
    # without what leads to no cycle, and then without what no cycle leads to
    for down, up in ((whole, wholes), (wholes, whole)):
        waits = {f: len(left.intersection(down.get(f, ()))) for f in left}
        free = [f for f, count in waits.items() if not count]
        while free:
            f = free.pop()
            left.discard(f)
            for other in left.intersection(up.get(f, ())):
                waits[other] -= 1
                if not waits[other]:
                    free.append(other)
    return left


def with_atoms(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with the columns atoms and atom_coefficients: what each flagged latent comes down to (`expand`); empty
    elsewhere."""
    atoms = expand(table, table.loc[table["label"].isin(FLAGGED), "feature"])
    by_row = [atoms.get(int(row), {}) for row in table["feature"]]
    return table.assign(
        atoms=[list(own) for own in by_row],
        atom_coefficients=[list(own.values()) for own in by_row],
    )
