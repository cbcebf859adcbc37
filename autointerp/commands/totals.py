"""What failed altogether in a run: an explainer that explained no feature, a scorer that scored none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def total_failures(folder: Path) -> list[str]:
    """A line each, with the most frequent reason. A scorer of explanations that are not there is not told apart."""
    explained = _rows(folder / "explanations.parquet", ["explainer", "status", "failure"])
    explained = [row for row in explained if row["status"] != "not_composite"]
    lines, lost = [], set()
    for explainer, rows in _by(explained, "explainer"):
        if all(row["status"] == "failed" for row in rows):
            lost.add(explainer)
            lines.append(f"explainer {explainer} explained none of {len(rows)} features: {_reason(rows)}")
    scored = _rows(folder / "scores.parquet", ["explainer", "scorer", "control", "value", "failure"])
    scored = [row for row in scored if row["control"] is None and row["explainer"] not in lost]
    for scorer, rows in _by(scored, "scorer"):
        if all(row["value"] is None for row in rows):
            lines.append(f"scorer {scorer} scored none of {len(rows)} explanations: {_reason(rows)}")
    return lines


def _rows(file: Path, columns: list[str]) -> list[dict[str, Any]]:
    return pq.read_table(file, columns=columns).to_pylist() if file.exists() else []


def _by(rows: list[dict[str, Any]], column: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for name in dict.fromkeys(row[column] for row in rows):
        yield name, [row for row in rows if row[column] == name]


def _reason(rows: list[dict[str, Any]]) -> str:
    ((reason, count),) = Counter(row["failure"] or "no reason given" for row in rows).most_common(1)
    return reason if count == len(rows) else f"{reason} ({count} of {len(rows)})"
