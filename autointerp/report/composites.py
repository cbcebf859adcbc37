"""``autointerp composites`` as text: labels counted, subspaces, flagged latents with their constituents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autointerp.report.text import aligned

if TYPE_CHECKING:
    from autointerp.composites.injection import Injected


def print_composites(latents: Any, limit: int, injected: Injected | None = None) -> None:
    """Counts by label, the subspaces, then the flagged latents: composite before possible, then by R²."""
    counts = latents["label"].value_counts()
    rows = [[label, f"{count:,}", f"{count / len(latents):.1%}"] for label, count in counts.items()]
    print("\n".join(aligned(["label", "latents", "share"], rows)))
    if latents["failure"].str.startswith("cannot tell").any():
        print(
            "\nThe spectrum of this dictionary is too steep: opposites of its latents are flagged as often by chance."
        )
    if injected is not None:
        print()
        print("\n".join(control(injected)))
    _print_subspaces(latents, limit)
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


def control(injected: Injected) -> list[str]:
    """What the check sees in this dictionary, as sentences, from sums and circles that were added to it."""
    each = injected.sums // len(injected.recovered_by_noise)
    by_noise = ", ".join(f"{count} of {each} at {noise:g}" for noise, count in injected.recovered_by_noise.items())
    precision = "nothing else" if injected.precision is None else f"precision {injected.precision:.2f}"
    return [
        f"Positive control: {injected.recovered} of {injected.sums} sums of two of its own latents are flagged "
        f"(recall {injected.recall:.2f}), {injected.exact} with the exact constituents.",
        f"By the norm of their residual: {by_noise}.",
        f"Of what was added and is no sum, and of its own rows, {injected.false_flags} more are flagged ({precision}).",
        f"On two circles {injected.labelled_subspace} of {injected.on_circles} rows are labelled subspace.",
    ]


def _print_subspaces(latents: Any, limit: int) -> None:
    """A line for each subspace, the largest first."""
    shared = latents[latents["label"] == "subspace"]
    spaces = {tuple(row["members"]): row for row in shared.to_dict("records")}
    if not spaces or not limit:
        return
    largest = sorted(spaces, key=lambda members: (-len(members), members))
    rows = []
    for members in largest[:limit]:
        row = spaces[members]
        shown = " ".join(map(str, members[:12])) + (" …" if len(members) > 12 else "")
        rows.append([str(row["rank"]), "circle" if row["circular"] else "", str(len(members)), shown])
    print()
    print("\n".join(aligned(["rank", "", "members", "of the subspace"], rows)))
    if limit < len(spaces):
        print(f"{limit} of {len(spaces):,} subspaces shown")
