"""``autointerp models``: the catalogue as a list; what is cached and where, and where the rest comes from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from autointerp.report.text import aligned


def model_lines() -> Iterator[str]:
    """A line for each entry, below it its sources, and the folder of one that is there."""
    from autointerp.catalog import models_table

    rows = models_table()
    names = ["name", "kind", "cached", "size", "licence"]
    first, *lines = aligned(names, [[_cell(row[name]) for name in names] for row in rows])
    yield first
    for line, row in zip(lines, rows):
        yield line
        yield from (f"    from {source}" for source in row["sources"])
        if row["cached"] and Path(row["path"]).exists():
            yield f"    in   {row['path']}"


def _cell(value: object) -> str:
    """Of the catalogue: sizes in bytes, 0 where there is nothing to download."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB" if value else "–"
    return "–" if value is None else str(value)
