"""Planted dictionaries: decoder rows with known composites, and with what only looks like them.

`plant` makes rows in this order: atoms; circles and subspaces; rows that load outlier dimensions; split children and
antipodes; composites of all these; composites of composites; duplicates. What is not asked for draws no random number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["atom", "composite", "split_child", "duplicate", "subspace", "antipode"]


@dataclass(frozen=True)
class PlantedDictionary:
    """`rows` [n, d] float32 of unit norm, in random order, and what each row is.

    `parts[i]` are the rows a composite is made of (-1: a direction the dictionary does not hold), the
    parent of a split child, the original of a duplicate or an antipode, or the other members of a
    subspace; empty for an atom. `coefficients[i]` belong to a composite's parts, for unit rows, before its
    residual noise. `ranks[i]` is that of a member's subspace, 0 elsewhere.
    """

    rows: np.ndarray
    kinds: tuple[Kind, ...]
    parts: tuple[tuple[int, ...], ...]
    coefficients: tuple[tuple[float, ...], ...]
    ranks: tuple[int, ...]

    def of_kind(self, kind: Kind) -> list[int]:
        return [row for row, planted in enumerate(self.kinds) if planted == kind]

    def detectable(self, row: int) -> bool:
        """Whether all parts of the composite `row` are rows of the dictionary."""
        return -1 not in self.parts[row]

    def original(self, row: int) -> int:
        """The row that `row` is a duplicate of, or `row` itself."""
        return self.parts[row][0] if row >= 0 and self.kinds[row] == "duplicate" else row


def plant(
    n: int = 4096,
    d: int = 512,
    *,
    seed: int,
    composites: float = 0.05,
    triples: float = 0.0,
    hidden: float = 0.1,
    ratio: tuple[float, float] = (0.35, 1.0),
    noise: float = 0.4,
    children: float = 0.10,
    child_cosine: tuple[float, float] = (0.5, 0.85),
    duplicates: float = 0.02,
    power: float = 0.0,
    mean: float = 0.0,
    stretched: tuple[int, float] = (0, 1.0),
    fours: float = 0.0,
    nested: float = 0.0,
    circles: Sequence[int] = (),
    subspaces: Sequence[tuple[int, int]] = (),
    spread: float = 0.0,
    antipodes: float = 0.0,
    loaded: tuple[float, float] = (0.0, 30.0),
) -> PlantedDictionary:
    """A dictionary of `n` unit rows in `d` dimensions whose shares of each kind are given.

    A composite is a·g + b·h (or three parts, for the share `triples` of them) of rows of different
    families, b/a uniform in `ratio`, scaled to norm 1, plus isotropic noise of norm `noise`, scaled
    again. The share `hidden` of the composites has a part that the dictionary does not hold. A split
    child has a cosine in `child_cosine` with its parent, a duplicate one in .96 to 1 with its original.
    Atoms are Gaussian directions; `power` > 0 gives them the covariance spectrum i^-power and `mean`
    the norm of a direction they all share: an anisotropic cone.

    What only looks like sums, and harder sums:
        circles: of so many rows each, at equal angles in a plane of their own.
        subspaces: (rank, rows) each: random directions of a space of that rank.
        spread: norm of the noise that each row of a circle or subspace has out of its space.
        antipodes: share of the rows whose cosine with another is −.90 to −.99.
        loaded: this share of the atoms has three outlier dimensions of so many times its norm.
        stretched: so many dimensions of all atoms are so many times as large: outlier dimensions as in
            residual streams.
        fours: this share of the composites has four parts of the same size.
        nested: this share of the composites has a composite as one of its two parts.
    """
    garden = _Garden(d, seed, power, mean, stretched)
    rng = garden.rng
    n_composites, n_children, n_copies = round(n * composites), round(n * children), round(n * duplicates)
    n_antipodes, n_members = round(n * antipodes), sum(circles) + sum(rows for _, rows in subspaces)
    n_atoms = n - n_composites - n_children - n_copies - n_antipodes - n_members
    garden.add_atoms(n_atoms, *loaded)
    for members in circles:
        garden.add_subspace(2, members, spread, circular=True)
    for rank, members in subspaces:
        garden.add_subspace(rank, members, spread)
    parents = rng.integers(0, n_atoms, max(n_children // 2, 1))
    for _ in range(n_children):
        garden.add_near(int(rng.choice(parents)), "split_child", child_cosine)
    for _ in range(n_antipodes):
        garden.add_near(int(rng.integers(0, n_atoms)), "antipode", (-0.99, -0.9))
    n_features, n_nested = len(garden.rows), round(nested * n_composites)
    for _ in range(n_composites - n_nested):
        four = fours > 0 and rng.random() < fours
        size = 4 if four else 3 if rng.random() < triples else 2
        garden.add_composite(size, n_features, hidden, (1.0, 1.0) if four else ratio, noise)
    sums = [i for i in range(n_features, len(garden.rows)) if -1 not in garden.parts[i]]
    for _ in range(n_nested):
        garden.add_composite(2, n_features, 0.0, ratio, noise, first=int(rng.choice(sums)))
    for _ in range(n_copies):
        garden.add_near(int(rng.integers(0, n - n_copies)), "duplicate", (0.96, 1.0))
    return garden.shuffled(n)


class _Garden:
    """Rows as they are planted, in order, with what each is; see `plant` for the kinds."""

    def __init__(self, d: int, seed: int, power: float, mean: float, stretched: tuple[int, float]) -> None:
        import numpy as np

        self.rng = np.random.default_rng(seed)
        self.d = d
        self.rotation = np.linalg.qr(self.rng.standard_normal((d, d)))[0]
        spectrum = np.arange(1, d + 1) ** (-power / 2)
        spectrum[: stretched[0]] *= stretched[1]
        self.spectrum = spectrum / np.linalg.norm(spectrum)
        self.shared = mean * _unit(self.rng.standard_normal(d))
        self.rows: list[np.ndarray] = []
        self.kinds: list[Kind] = []
        self.parts: list[tuple[int, ...]] = []
        self.coefficients: list[tuple[float, ...]] = []
        self.family: list[int] = []  # rows of one family are never parts of one composite; -1: of none
        self.ranks: dict[int, int] = {}  # of the members of subspaces

    def directions(self, count: int) -> np.ndarray:
        """[count, d] unit rows."""
        return _unit((self.rng.standard_normal((count, self.d)) * self.spectrum) @ self.rotation.T + self.shared)

    def isotropic(self, away_from: np.ndarray) -> np.ndarray:
        """A unit vector orthogonal to the unit vector `away_from`."""
        vector = self.rng.standard_normal(self.d)
        return _unit(vector - (vector @ away_from) * away_from)

    def add(self, row: np.ndarray, kind: Kind, parts: tuple[int, ...], weights: tuple[float, ...], family: int) -> None:
        self.rows.append(row)
        self.kinds.append(kind)
        self.parts.append(parts)
        self.coefficients.append(weights)
        self.family.append(family)

    def add_atoms(self, count: int, share: float, times: float) -> None:
        """Directions, of which a share loads three outlier dimensions."""
        import numpy as np

        rows = self.directions(count)
        if loading := round(share * count):
            outliers = np.linalg.qr(self.rng.standard_normal((self.d, 3)))[0].T
            rows[:loading] += times * _unit(self.rng.standard_normal((loading, 3))) @ outliers
            rows = _unit(rows)
        for row in rows:
            self.add(row, "atom", (), (), len(self.rows))

    def add_subspace(self, rank: int, members: int, spread: float, *, circular: bool = False) -> None:
        """Rows of a space of `rank`, which `directions` span: random ones, or at equal angles of a circle."""
        import numpy as np

        basis = np.linalg.qr(self.directions(rank).T)[0].T
        angles = 2 * np.pi * (self.rng.random() + np.arange(members) / members)
        inside = np.stack([np.cos(angles), np.sin(angles)], 1) if circular else None
        inside = _unit(self.rng.standard_normal((members, rank))) if inside is None else inside
        group = range(len(self.rows), len(self.rows) + members)
        for at, row in zip(group, inside @ basis):
            self.ranks[at] = rank
            others = tuple(other for other in group if other != at)
            self.add(_unit(row + spread * self.isotropic(row)), "subspace", others, (), group[0])

    def add_near(self, near: int, kind: Kind, cosines: tuple[float, float]) -> None:
        """A row whose cosine to the row `near` is uniform in `cosines`, of its family."""
        import numpy as np

        cosine = self.rng.uniform(*cosines)
        row = cosine * self.rows[near] + np.sqrt(1 - cosine**2) * self.isotropic(self.rows[near])
        self.add(_unit(row), kind, (near,), (), self.family[near])

    def add_composite(
        self,
        size: int,
        among: int,
        hidden: float,
        ratio: tuple[float, float],
        noise: float,
        first: int | None = None,
    ) -> None:
        """A sum of `size` of the first `among` rows, of different families; of the row `first` and others if given."""
        import numpy as np

        rng = self.rng
        parts = [0] * size
        while len({self.family[i] for i in parts}) < size:
            parts = [int(i) for i in rng.choice(among, size, replace=False)]
            parts[0] = parts[0] if first is None else first
        vectors = np.stack([self.rows[i] for i in parts])
        if rng.random() < hidden:
            vectors[-1], parts[-1] = self.directions(1)[0], -1
        weights = np.concatenate([[1.0], rng.uniform(*ratio, size - 1)])
        weights /= np.linalg.norm(weights @ vectors)
        row = weights @ vectors
        row = _unit(row + noise * self.isotropic(row))
        self.add(row, "composite", tuple(parts), tuple(float(w) for w in weights), -1)

    def shuffled(self, n: int) -> PlantedDictionary:
        """The `n` rows in random order."""
        import numpy as np

        order = self.rng.permutation(n)
        place = np.argsort(order)
        return PlantedDictionary(
            rows=np.stack(self.rows)[order].astype(np.float32),
            kinds=tuple(self.kinds[i] for i in order),
            parts=tuple(tuple(-1 if p < 0 else int(place[p]) for p in self.parts[i]) for i in order),
            coefficients=tuple(self.coefficients[i] for i in order),
            ranks=tuple(self.ranks.get(int(i), 0) for i in order),
        )


def _unit(vectors: np.ndarray) -> np.ndarray:
    import numpy as np

    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
