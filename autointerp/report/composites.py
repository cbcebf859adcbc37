"""``autointerp composites`` as text: labels counted, flagged latents with their constituents."""

from __future__ import annotations

from typing import Any

from autointerp.report.text import aligned


def print_composites(latents: Any, limit: int) -> None:
    """Counts by label, then the flagged latents: composite before possible, then by R²."""
    counts = latents["label"].value_counts()
    rows = [[label, f"{count:,}", f"{count / len(latents):.1%}"] for label, count in counts.items()]
    print("\n".join(aligned(["label", "latents", "share"], rows)))
    flagged = latents[latents["atoms"].str.len() > 0].sort_values(
        ["label", "r2"], ascending=[True, False], kind="stable"
    )
    if not len(flagged) or not limit:
        return
    rows = []
    for row in flagged.head(limit).to_dict("records"):
        names = [*map(str, row["constituents"]), *(f"union:{part}" for part in row["union_constituents"])]
        parts = " + ".join(f"{weight:.2f}·{name}" for weight, name in zip(row["coefficients"], names))
        told = {*row["atoms"]} in ({*row["constituents"]}, {row["feature"]})  # nothing is expanded
        atoms = "" if told else " ".join(map(str, row["atoms"]))
        figures = [f"{row['r2']:.3f}", f"{row['partial_r2']:.3f}", f"{row['p_value']:.0e}"]
        rows.append([str(row["feature"]), row["label"], *figures, parts, atoms])
    print()
    print("\n".join(aligned(["feature", "label", "R²", "partial", "p", "constituents", "atoms"], rows)))
    if limit < len(flagged):
        print(f"{limit} of {len(flagged):,} shown")
