"""Picture of a geometry report: histograms beside their nulls, hubs, and what the meta-SAEs explain."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.report.plane import drawn, members_of, title_of
from autointerp.report.text import aligned

if TYPE_CHECKING:
    from autointerp.composites.geometry_report import GeometryReport

COLOURS = {"dictionary": "#2b6cb0", "random": "#a0aec0", "covariance": "#dd6b20"}
NAMES = {"dictionary": "dictionary", "random": "random directions", "covariance": "same covariance"}
PLANES = 3  # subspaces that are drawn, the largest
RANK = {1: "highest cosine", 10: "10th highest", 100: "100th highest"}


def print_geometry(report: GeometryReport, other: str | None) -> None:
    """Mean highest cosine of the dictionary and its nulls, what meta-SAEs explain of them, and the other SAE."""
    lines = []
    for name, mean in report.mmcs.items():
        meta = report.meta_sae[name] if report.meta_sae else None
        explained = [f"{meta.explained_variance:.3f}", f"{meta.dead_fraction:.0%}"] if meta else ["–", "–"]
        lines.append([name, f"{mean:.3f}", *explained])
    print("\n".join(aligned(["directions", "mean highest cosine", "meta-SAE explains", "dead"], lines)))
    for space in report.subspaces[:PLANES]:
        print("\n".join(["", title_of(space), *drawn(members := members_of(space))]))
        print("  ".join(f"{member.mark} {member.feature}" for member in members))
    if report.other:
        print(f"\nto {other}: mean highest cosine {report.other.mmcs:.3f}, {report.other.distinct:.1%} distinct (< .2)")


def draw(report: Path, out: Path) -> None:
    """Draw ``geometry.json`` as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figures: dict[str, Any] = json.loads(report.read_text())
    planes = (figures.get("subspaces") or [])[:PLANES]
    rows = 3 if planes else 2
    figure, axes = plt.subplots(rows, 3, figsize=(13, 3.5 * rows), layout="constrained")
    for axis, space in zip_longest(axes[2] if planes else (), planes):
        _plane(axis, space)
    for axis, (rank, name) in zip(axes[0], RANK.items()):
        _histogram(axis, [row for row in figures["profile"] if row["rank"] == rank])
        axis.set_title(f"each latent's {name} with another", loc="left", fontsize=10)
    axes[0, 0].set_ylabel("latents")
    means = [f"{value:.3f}" for value in figures["mmcs"].values()]
    axes[0, 0].set_xlabel(f"means {' / '.join(means)}: dictionary / random / same covariance", fontsize=9)
    axes[0, -1].legend(frameon=False, fontsize=9)
    _hubs(axes[1, 0], axes[1, 1], figures["hubs"])
    _meta(axes[1, 2], figures["meta_sae"])
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    title = f"{figures['latents']:,} latents of width {figures['width']:,}"
    if figures["other"]:
        title += f" · to the other dictionary: mean highest cosine {figures['other']['mmcs']:.3f}, "
        title += f"{figures['other']['distinct']:.1%} of latents below .2"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(out, dpi=110, format="png")
    plt.close(figure)


def _plane(axis: Any, space: dict[str, Any] | None) -> None:
    """A subspace's members, by number, in the plane of its two principal axes."""
    axis.set_axis_off()
    if space is None:
        return
    axis.set_title(title_of(space), loc="left", fontsize=10)
    axis.set_aspect("equal")
    for member in members_of(space):
        axis.plot(member.x, member.y, "o", color=COLOURS["dictionary"], markersize=4)
        place = 1.14 * member.x, 1.14 * member.y
        axis.annotate(str(member.feature), place, ha="center", va="center", fontsize=7)
    axis.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))


def _histogram(axis: Any, rows: list[dict[str, Any]]) -> None:
    for name, colour in COLOURS.items():
        bins = [row for row in rows if row["dictionary"] == name]
        edges = [bins[0]["low"], *(row["high"] for row in bins)]
        counts = [row["latents"] for row in bins]
        own = name == "dictionary"
        axis.stairs(counts, edges, color=colour, fill=own, alpha=0.45 if own else 1, linewidth=1.4, label=NAMES[name])
    seen = [row for row in rows if row["latents"]]
    if seen:
        axis.set_xlim(min(row["low"] for row in seen), max(row["high"] for row in seen))


def _hubs(share: Any, largest: Any, rows: list[dict[str, Any]]) -> None:
    bands = [f"{row['low']:g} – {row['high']:g}" if row["low"] > -1 else f"< {row['high']:g}" for row in rows]
    at = range(len(rows))
    share.bar(at, [row["latents"] for row in rows], color=COLOURS["dictionary"], alpha=0.45, label="latents")
    share.bar(at, [row["nearest_rows"] for row in rows], width=0.4, color=COLOURS["dictionary"], label="nearest rows")
    share.set_title("latents by highest cosine, and distinct nearest rows", loc="left", fontsize=10)
    share.legend(frameon=False, fontsize=9)
    largest.bar(at, [row["largest_hub"] for row in rows], color=COLOURS["dictionary"])
    for i, row in enumerate(rows):
        if row["hub"] is not None:
            largest.annotate(str(row["hub"]), (i, row["largest_hub"]), ha="center", va="bottom", fontsize=8)
    largest.set_title("most latents that share one nearest row (its number)", loc="left", fontsize=10)
    for axis in (share, largest):
        axis.set_xticks(at, bands, fontsize=8, rotation=30)
        axis.set_xlabel("highest cosine", fontsize=9)


def _meta(axis: Any, meta: dict[str, dict[str, float]] | None) -> None:
    axis.set_title("explained by a meta-SAE of k = 4", loc="left", fontsize=10)
    if meta is None:
        axis.text(0.5, 0.5, "not trained", ha="center", transform=axis.transAxes)
        return
    for i, (name, values) in enumerate(meta.items()):
        axis.barh(i, values["explained_variance"], color=COLOURS[name], height=0.6)
        dead = f", {values['dead_fraction']:.0%} dead" if values["dead_fraction"] else ""
        axis.annotate(
            f" {values['explained_variance']:.3f}{dead}", (max(values["explained_variance"], 0), i), va="center"
        )
    axis.set_yticks(range(len(meta)), [NAMES[name] for name in meta])
    axis.set_xlim(0, 1)
    axis.invert_yaxis()
