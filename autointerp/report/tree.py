"""What a composite is the sum of, and what its constituents are the sums of in turn: a tree, a few levels deep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from autointerp.report.folder import RunFolder

DEPTH = 3  # levels of constituents
Latent: TypeAlias = int | str  # a feature, or "union 12" of the union dictionary


@dataclass
class Part:
    """A constituent with its coefficient. `parts` are its own constituents, none where it is no composite."""

    weight: float
    latent: Latent
    label: str | None = None  # of the composite check, where the run has it
    parts: list[Part] = field(default_factory=list)

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Part]]:
        """It and all below it, each with how deep it stands."""
        yield depth, self
        for part in self.parts:
            yield from part.walk(depth + 1)

    def all(self) -> Iterator[Part]:
        return (part for _, part in self.walk())


def summands(row: Mapping[str, Any]) -> list[tuple[float, Latent]]:
    """Coefficient and name of each latent that a row of composites.parquet names."""
    lent = [f"union {part}" for part in row.get("union_constituents") or []]
    return list(zip(row.get("coefficients") or [], [*(row.get("constituents") or []), *lent]))


def trees(run: RunFolder, rows: Mapping[int, Mapping[str, Any]]) -> dict[int, list[Part]]:
    """The constituents of the composites `rows`, by number. Each level is read at once for all of them; a latent that
    already stands above itself is not opened again."""
    roots = {feature: [Part(*pair) for pair in summands(row)] for feature, row in rows.items()}
    open_parts: list[tuple[Part, set[Latent]]] = [
        (part, {feature}) for feature, parts in roots.items() for part in parts
    ]
    for level in range(DEPTH):
        wanted = {part.latent for part, _ in open_parts if isinstance(part.latent, int)}
        if not wanted:
            break
        known: dict[Latent, dict[str, Any]] = {row["feature"]: row for row in run.rows("composites", wanted)}
        deeper: list[tuple[Part, set[Latent]]] = []
        for part, above in open_parts:
            row = known.get(part.latent)
            if row is None:
                continue
            part.label = row["label"]
            if level + 1 < DEPTH and part.latent not in above:
                part.parts = [Part(*pair) for pair in summands(row)]
                deeper += [(below, above | {part.latent}) for below in part.parts]
        open_parts = deeper
    return roots
