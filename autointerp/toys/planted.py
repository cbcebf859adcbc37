"""Planted dictionaries: decoder rows with known composites, split families and duplicates."""

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

    n_composites, n_children, n_copies = round(n * composites), round(n * children), round(n * duplicates)
    n_atoms = n - n_composites - n_children - n_copies
    garden = _Garden(d, seed, power, mean)
    rng = garden.rng
    for row in garden.directions(n_atoms):
        garden.add(row, "atom", (), (), len(garden.rows))
    parents = rng.integers(0, n_atoms, max(n_children // 2, 1))
    for _ in range(n_children):
        parent = int(rng.choice(parents))
        garden.add_near(parent, "split_child", child_cosine)
    n_features = len(garden.rows)
    for _ in range(n_composites):
        garden.add_composite(3 if rng.random() < triples else 2, n_features, hidden, ratio, noise)
    for _ in range(n_copies):
        original = int(rng.integers(0, n - n_copies))
        garden.add_near(original, "duplicate", (0.96, 1.0))

    order = rng.permutation(n)
    place = np.argsort(order)
    return PlantedDictionary(
        rows=np.stack(garden.rows)[order].astype(np.float32),
        kinds=tuple(garden.kinds[i] for i in order),
        parts=tuple(tuple(-1 if p < 0 else int(place[p]) for p in garden.parts[i]) for i in order),
        coefficients=tuple(garden.coefficients[i] for i in order),
    )


class _Garden:
    """Rows as they are planted, in order, with what each is; see `plant` for the kinds."""

    def __init__(self, d: int, seed: int, power: float, mean: float) -> None:
        import numpy as np

        self.rng = np.random.default_rng(seed)
        self.d = d
        self.rotation = np.linalg.qr(self.rng.standard_normal((d, d)))[0]
        spectrum = np.arange(1, d + 1) ** (-power / 2)
        self.spectrum = spectrum / np.linalg.norm(spectrum)
        self.shared = mean * _unit(self.rng.standard_normal(d))
        self.rows: list[np.ndarray] = []
        self.kinds: list[Kind] = []
        self.parts: list[tuple[int, ...]] = []
        self.coefficients: list[tuple[float, ...]] = []
        self.family: list[int] = []  # rows of one family are never parts of one composite; -1: of none

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

    def add_near(self, near: int, kind: Kind, cosines: tuple[float, float]) -> None:
        """A row whose cosine to the row `near` is uniform in `cosines`, of its family."""
        import numpy as np

        cosine = self.rng.uniform(*cosines)
        row = cosine * self.rows[near] + np.sqrt(1 - cosine**2) * self.isotropic(self.rows[near])
        self.add(_unit(row), kind, (near,), (), self.family[near])

    def add_composite(self, size: int, among: int, hidden: float, ratio: tuple[float, float], noise: float) -> None:
        """A sum of `size` of the first `among` rows, of different families."""
        import numpy as np

        rng = self.rng
        parts = [int(i) for i in rng.choice(among, size, replace=False)]
        while len({self.family[i] for i in parts}) < size:
            parts = [int(i) for i in rng.choice(among, size, replace=False)]
        vectors = np.stack([self.rows[i] for i in parts])
        if rng.random() < hidden:
            vectors[-1], parts[-1] = self.directions(1)[0], -1
        weights = np.concatenate([[1.0], rng.uniform(*ratio, size - 1)])
        weights /= np.linalg.norm(weights @ vectors)
        row = weights @ vectors
        row = _unit(row + noise * self.isotropic(row))
        self.add(row, "composite", tuple(parts), tuple(float(w) for w in weights), -1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    import numpy as np

    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
