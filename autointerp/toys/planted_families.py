"""Planted families: a narrow dictionary and a wider one that is made of it, with what became of each latent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autointerp.toys.planted import plant

if TYPE_CHECKING:
    import numpy as np

CHILDREN = (0.55, 0.85)  # cosines of the latents that one was split into, with it
RATIO = (0.35, 1.0)  # of the two coefficients of a sum


@dataclass(frozen=True)
class PlantedFamilies:
    """Unit rows `narrow` [n, d] and `wide` [m, d] in random order, with the truth about each: labels of
    `composites.families`, and the latents of the other dictionary that it names."""

    narrow: np.ndarray
    wide: np.ndarray
    fates: tuple[str, ...]
    origins: tuple[str, ...]
    others: tuple[frozenset[int], ...]  # of each narrow latent, in `wide`


def plant_families(
    n: int = 1024,
    d: int = 256,
    *,
    seed: int,
    noise: float = 0.2,
    split: float = 0.1,
    apart: float = 0.05,
    absorbed: float = 0.1,
    missing: float = 0.1,
    new: float = 0.3,
    power: float = 0.0,
    mean: float = 0.0,
) -> PlantedFamilies:
    """`n` narrow latents of which these shares are split, are sums that are taken apart, are parts of a sum and are
    missing; the others are kept. `new` · n latents are in the wider dictionary alone.

    A latent that is split has two or three children, whose cosines with it are in `CHILDREN` and whose remainders are
    unrelated. Every second sum of the wider dictionary has both parts absorbed; of the others the first is kept too.
    Each row of the wider dictionary, and each sum, has isotropic noise of norm `noise`. `power` and `mean` are of
    `planted.plant`: the directions' spectrum and shared mean.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    spare = round(n * (1 + new + 3 * apart))  # directions enough
    atoms = iter(plant(spare, d, seed=seed, composites=0, children=0, duplicates=0, power=power, mean=mean).rows)
    plot = _Plot(rng, noise)
    for _ in range(round(n * split)):
        parent = next(atoms)
        cosines = rng.uniform(*CHILDREN, rng.integers(2, 4))
        plot.add([parent], ["split"], [plot.near(parent, cosine) for cosine in cosines], "child")
    for _ in range(round(n * apart)):
        parts = [next(atoms), next(atoms)]
        plot.add([plot.noisy(plot.sum(parts))], ["apart"], [plot.noisy(part) for part in parts], "part")
    for i in range(round(n * absorbed / 1.5)):
        parts = [next(atoms), next(atoms)]
        whole = plot.noisy(plot.sum(parts))
        if i % 2:
            plot.add(parts, ["absorbed", "absorbed"], [whole], "sum")
        else:
            plot.add(parts[:1], ["kept"], [plot.noisy(parts[0])], "kept")
            plot.add(parts[1:], ["absorbed"], [whole], "sum")
    for _ in range(round(n * missing)):
        plot.add([next(atoms)], ["missing"], [], "new")
    for _ in range(round(n * new)):
        plot.add([], [], [next(atoms)], "new")
    while len(plot.narrow) < n:
        atom = next(atoms)
        plot.add([atom], ["kept"], [plot.noisy(atom)], "kept")
    return plot.shuffled()


@dataclass
class _Plot:
    rng: np.random.Generator
    noise: float
    narrow: list[np.ndarray] = field(default_factory=list)
    wide: list[np.ndarray] = field(default_factory=list)
    fates: list[str] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    others: list[set[int]] = field(default_factory=list)

    def add(self, narrow: list[np.ndarray], fates: list[str], wide: list[np.ndarray], origin: str) -> None:
        """Latents of both dictionaries of which each is the other's family."""
        family = set(range(len(self.wide), len(self.wide) + len(wide)))
        self.narrow += narrow
        self.fates += fates
        self.others += [family for _ in narrow]
        self.wide += wide
        self.origins += [origin] * len(wide)

    def near(self, row: np.ndarray, cosine: float) -> np.ndarray:
        other = self.rng.standard_normal(len(row))
        return cosine * row + (1 - cosine**2) ** 0.5 * _unit(other - (other @ row) * row)

    def noisy(self, row: np.ndarray) -> np.ndarray:
        return self.near(row, (1 + self.noise**2) ** -0.5)

    def sum(self, parts: list[np.ndarray]) -> np.ndarray:
        return _unit(parts[0] + self.rng.uniform(*RATIO) * parts[1])

    def shuffled(self) -> PlantedFamilies:
        import numpy as np

        rows, columns = self.rng.permutation(len(self.narrow)), self.rng.permutation(len(self.wide))
        place = np.argsort(columns)
        return PlantedFamilies(
            np.stack(self.narrow)[rows].astype(np.float32),
            np.stack(self.wide)[columns].astype(np.float32),
            tuple(self.fates[i] for i in rows),
            tuple(self.origins[i] for i in columns),
            tuple(frozenset(int(place[j]) for j in self.others[i]) for i in rows),
        )


def _unit(vector: np.ndarray) -> np.ndarray:
    import numpy as np

    return vector / np.linalg.norm(vector)
