"""``autointerp families``: latents followed through SAEs of one hook, as a table, figures and a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.artifacts import write_atomically
from autointerp.errors import ConfigError

if TYPE_CHECKING:
    from autointerp.composites.families import Families, Stability


def follow(
    specs: Sequence[str], out: Path, *, transpose: bool, device: str, memory: int
) -> tuple[list[str], list[Families], list[list[Stability]]]:
    """Follow the latents of each SAE into the next; write ``families.parquet``, ``families.json`` and ``families.png``
    into the folder `out`. Returns the SAEs' names, and for each with its next the families and whether labels stay.

    Raises ConfigError for fewer than two SAEs.
    """
    from autointerp.composites.check import find_composites
    from autointerp.composites.families import families, stability
    from autointerp.report.families import draw
    from autointerp.sae.decoders import load_decoders

    if len(specs) < 2:
        raise ConfigError("families needs two SAEs or more: the narrow one first, then wider ones or other seeds")
    decoders = load_decoders(specs, transpose=transpose)
    place: dict[str, Any] = {"device": device, "memory": memory}
    pairs = [families(a, b, **place) for a, b in pairwise(decoders)]
    tables = [find_composites(rows, **place) for rows in decoders]
    stable = [stability(a, b, pair.match) for a, b, pair in zip(tables, tables[1:], pairs)]
    names = _names(specs)
    out.mkdir(parents=True, exist_ok=True)
    _write_table(names, pairs, out / "families.parquet")
    text = json.dumps(_figures(names, pairs, stable), indent=1) + "\n"
    write_atomically(out / "families.json", lambda path: path.write_text(text))
    write_atomically(out / "families.png", lambda path: draw(names, pairs, path))
    return names, pairs, stable


def _names(specs: Sequence[str]) -> list[str]:
    """As much of each path's end as tells them apart; with its place where an SAE is given twice."""
    paths = [Path(spec).parts for spec in specs]
    for depth in range(1, max(map(len, paths))):
        names = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(names)) == len(names):
            return names
    ends = [Path(spec).name for spec in specs]
    return [name if ends.count(name) == 1 else f"{i + 1}: {name}" for i, name in enumerate(ends)]


def _write_table(names: Sequence[str], pairs: Sequence[Families], path: Path) -> None:
    """A row for each latent of an SAE and each SAE beside it; `side` says whether its own is the narrow or the wide."""
    import pandas as pd

    from autointerp.composites.io import save_composites

    parts = []
    for narrow, wide, pair in zip(names, names[1:], pairs):
        parts.append(pair.fates.assign(sae=narrow, other_sae=wide, side="narrow"))
        parts.append(pair.origins.assign(sae=wide, other_sae=narrow, side="wide"))
    table = pd.concat(parts, ignore_index=True)
    first = ["sae", "feature", "side", "other_sae"]
    table = table[[*first, *(column for column in table.columns if column not in first)]]
    write_atomically(path, lambda to: save_composites(table, to))


def _figures(
    names: Sequence[str], pairs: Sequence[Families], stable: Sequence[Sequence[Stability]]
) -> list[dict[str, Any]]:
    return [
        {
            "narrow": narrow,
            "wide": wide,
            "fates": {name: int(n) for name, n in pair.fates["label"].value_counts().items()},
            "origins": {name: int(n) for name, n in pair.origins["label"].value_counts().items()},
            "matched": int((pair.match >= 0).sum()),
            "stability": [asdict(row) for row in rows],
        }
        for narrow, wide, pair, rows in zip(names, names[1:], pairs, stable)
    ]
