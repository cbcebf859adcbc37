"""Dictionaries with planted composites, split families and duplicates: the truth is known row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

Kind = Literal["atom", "composite", "split_child", "duplicate"]


@dataclass(frozen=True)
class PlantedDictionary:
    """`rows` [n, d] float32 of unit norm, in random order, and what each row is.

    `parts[i]` are the rows a composite is made of (-1: a direction the dictionary does not hold), the
    parent of a split child, or the original of a duplicate; empty for an atom. `coefficients[i]` belong
    to a composite's parts, for unit rows, before its residual noise.
    """

    rows: np.ndarray
    kinds: tuple[Kind, ...]
    parts: tuple[tuple[int, ...], ...]
    coefficients: tuple[tuple[float, ...], ...]

    def of_kind(self, kind: Kind) -> list[int]:
        return [row for row, found in enumerate(self.kinds) if found == kind]

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
) -> PlantedDictionary:
    """A dictionary of `n` unit rows in `d` dimensions whose shares of each kind are given.

    A composite is a·g + b·h (or three parts, for the share `triples` of them) of rows of different
    families, b/a uniform in `ratio`, scaled to norm 1, plus isotropic noise of norm `noise`, scaled
    again. The share `hidden` of the composites has a part that the dictionary does not hold. A split
    child has a cosine in `child_cosine` with its parent, a duplicate one in .96 to 1 with its original.
    Atoms are Gaussian directions; `power` > 0 gives them the covariance spectrum i^-power and `mean`
    the norm of a direction they all share: an anisotropic cone.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    spectrum = np.arange(1, d + 1) ** (-power / 2)
    spectrum /= np.linalg.norm(spectrum)
    shared = mean * _unit(rng.standard_normal(d))

    def directions(count: int) -> np.ndarray:
        return _unit((rng.standard_normal((count, d)) * spectrum) @ rotation.T + shared)

    def isotropic(away_from: np.ndarray) -> np.ndarray:
        """A unit vector orthogonal to the unit vector `away_from`."""
        vector = rng.standard_normal(d)
        return _unit(vector - (vector @ away_from) * away_from)

    n_composites, n_children, n_copies = round(n * composites), round(n * children), round(n * duplicates)
    n_atoms = n - n_composites - n_children - n_copies
    rows = list(directions(n_atoms))
    kinds: list[Kind] = ["atom"] * n_atoms
    parts: list[tuple[int, ...]] = [()] * n_atoms
    coefficients: list[tuple[float, ...]] = [()] * n_atoms
    family = list(range(n_atoms))

    def add(row: np.ndarray, kind: Kind, of: tuple[int, ...], weights: tuple[float, ...], home: int) -> None:
        rows.append(_unit(row))
        kinds.append(kind)
        parts.append(of)
        coefficients.append(weights)
        family.append(home)

    parents = rng.integers(0, n_atoms, max(n_children // 2, 1))
    for _ in range(n_children):
        parent = int(rng.choice(parents))
        cosine = rng.uniform(*child_cosine)
        row = cosine * rows[parent] + np.sqrt(1 - cosine**2) * isotropic(rows[parent])
        add(row, "split_child", (parent,), (), family[parent])
    n_features = len(rows)
    for _ in range(n_composites):
        size = 3 if rng.random() < triples else 2
        of = [int(i) for i in rng.choice(n_features, size, replace=False)]
        while len({family[i] for i in of}) < size:
            of = [int(i) for i in rng.choice(n_features, size, replace=False)]
        vectors = np.stack([rows[i] for i in of])
        if rng.random() < hidden:
            vectors[-1], of[-1] = directions(1)[0], -1
        weights = np.concatenate([[1.0], rng.uniform(*ratio, size - 1)])
        weights /= np.linalg.norm(weights @ vectors)
        row = weights @ vectors
        add(row + noise * isotropic(row), "composite", tuple(of), tuple(float(w) for w in weights), -1)
    for _ in range(n_copies):
        original = int(rng.integers(0, n - n_copies))
        cosine = rng.uniform(0.96, 1.0)
        row = cosine * rows[original] + np.sqrt(1 - cosine**2) * isotropic(rows[original])
        add(row, "duplicate", (original,), (), family[original])

    order = rng.permutation(n)
    place = np.argsort(order)
    return PlantedDictionary(
        rows=np.stack(rows)[order].astype(np.float32),
        kinds=tuple(kinds[i] for i in order),
        parts=tuple(tuple(-1 if p < 0 else int(place[p]) for p in parts[i]) for i in order),
        coefficients=tuple(coefficients[i] for i in order),
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    import numpy as np

    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
