"""Families of latents across SAEs: the counts as text, and the picture with the largest families as trees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from autointerp.composites.families import FATES, ORIGINS, Stability
from autointerp.report.text import aligned, interval, number

if TYPE_CHECKING:
    from autointerp.composites.families import Families

Axis: TypeAlias = Any
Latent: TypeAlias = tuple[int, int]  # which SAE, which of its latents

COLOURS = ("#2b6cb0", "#38a169", "#dd6b20", "#805ad5", "#a0aec0")  # of FATES, and of ORIGINS in the same order
MEANING = {
    "kept": "one close match",
    "split": "several closer to it than to any other",
    "apart": "a sum of wider ones",
    "absorbed": "part of a wider sum",
    "missing": "none of these",
}
TREES = 6  # families that are drawn, the largest
LEAVES = 12  # latents of one SAE in a tree, at most


def print_families(names: Sequence[str], pairs: Sequence[Families], stable: Sequence[Sequence[Stability]]) -> None:
    """For each SAE and the next: how many latents have each fate and origin, and whether their labels stay."""
    for name, after, pair, rows in zip(names, names[1:], pairs, stable):
        print(f"{name} → {after}")
        fates, origins = (table["label"].value_counts() for table in (pair.fates, pair.origins))
        n, m = int(fates.sum()), int(origins.sum())
        lines = [
            [fate, *_count(fates, fate, n), MEANING[fate], origin, *_count(origins, origin, m)]
            for fate, origin in zip(FATES, ORIGINS)
        ]
        print("\n".join(aligned(["latents", "n", "share", "", "wider latents", "n", "share"], lines)))
        print(f"\nlabels of the {(pair.match >= 0).sum():,} latents that are each other's nearest (cosine ≥ .7)")
        print("\n".join(aligned(["label", "n", "again", "share", "by chance"], [_stable(row) for row in rows])))
        print()


def _count(counts: Any, label: str, total: int) -> list[str]:
    count = int(counts.get(label, 0))
    return [f"{count:,}", number(count / total if total else None)]


def _stable(row: Stability) -> list[str]:
    chance = interval(row.chance, row.chance_low, row.chance_high)
    return [row.label, f"{row.n:,}", f"{row.again:,}", interval(row.share, row.low, row.high), chance]


def draw(names: Sequence[str], pairs: Sequence[Families], out: Path) -> None:
    """Draw the counts of each pair of SAEs as bars that are joined, and the largest families as trees."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    trees = largest(pairs)
    height = 3.6 + (3.2 if trees else 0)
    figure = plt.figure(figsize=(max(4.2 * len(pairs), 9), height), layout="constrained")
    flows, *rest = figure.subfigures(2 if trees else 1, 1, height_ratios=[3.6, 3.2] if trees else None, squeeze=False)[
        :, 0
    ]
    tallest = max(len(table) for pair in pairs for table in (pair.fates, pair.origins))
    for axis, name, after, pair in zip(flows.subplots(1, len(pairs), squeeze=False)[0], names, names[1:], pairs):
        _flow(axis, pair, tallest)
        axis.set_title(f"{name} → {after}", loc="left", fontsize=9)
    if rest:
        for axis, tree in zip(rest[0].subplots(1, TREES, squeeze=False)[0], trees + [None] * TREES):
            _tree(axis, tree, len(names))
        rest[0].suptitle("the largest families: latents of each SAE, by number", x=0.01, ha="left", fontsize=9)
    figure.savefig(out, dpi=110, format="png")
    plt.close(figure)


def _flow(axis: Axis, pair: Families, tallest: int) -> None:
    """Two stacked bars, latents on the left and wider ones on the right; what corresponds is joined."""
    at = [0, 0]
    tables = ((pair.fates, FATES), (pair.origins, ORIGINS))
    for place, colour in enumerate(COLOURS):
        ends = []
        for side, (table, labels) in enumerate(tables):
            count = int((table["label"] == labels[place]).sum())
            axis.bar(side, count, width=0.25, bottom=at[side], color=colour)
            if count > 0.03 * tallest:
                x, align = (-0.16, "right") if side == 0 else (1.16, "left")
                axis.text(x, at[side] + count / 2, f"{labels[place]} {count:,}", ha=align, va="center", fontsize=8)
            ends.append((at[side], at[side] + count))
            at[side] += count
        if place < len(COLOURS) - 1 and ends[0][1] > ends[0][0] and ends[1][1] > ends[1][0]:
            low, high = zip(*ends)
            axis.fill_between([0.125, 0.875], low, high, color=colour, alpha=0.2, linewidth=0)
    axis.set(xlim=(-0.75, 1.75), ylim=(0, 1.02 * tallest))
    axis.set_axis_off()


Tree: TypeAlias = dict[Latent, list[tuple[Latent, str]]]  # latent -> those of the next SAE that it became, and how


def largest(pairs: Sequence[Families]) -> list[Tree]:
    """The families of the first SAE's latents that are split or taken apart, those of the most latents first."""
    follow = [
        {row["feature"]: (row["label"], row["others"]) for row in pair.fates.to_dict("records") if row["others"]}
        for pair in pairs
    ]

    def grown(root: int) -> Tree:
        tree, now = {}, [root]
        for step, fates in enumerate(follow):
            after: list[int] = []
            for latent in now:
                label, others = fates.get(latent, (None, []))
                tree[step, latent] = [((step + 1, other), str(label)) for other in others]
                after += [other for other in others if other not in after]
            now = after
        return tree

    roots = [root for root, (label, _) in follow[0].items() if label in ("split", "apart")]
    trees = [grown(root) for root in roots]
    return sorted(trees, key=lambda tree: -sum(map(len, tree.values())))[:TREES]


def _tree(axis: Axis, tree: Tree | None, columns: int) -> None:
    axis.set_axis_off()
    if tree is None:
        return
    levels: list[list[Latent]] = [[next(iter(tree))]]
    for _ in range(columns - 1):
        after = [child for latent in levels[-1] for child, _ in tree.get(latent, [])]
        levels.append(list(dict.fromkeys(after))[:LEAVES])
    places = {latent: (x, -(i + 0.5) / len(level)) for x, level in enumerate(levels) for i, latent in enumerate(level)}
    for latent, branches in tree.items():
        for child, label in branches:
            if latent in places and child in places:
                colour = COLOURS[FATES.index(label)]  # type: ignore[arg-type]
                axis.plot(*zip(places[latent], places[child]), color=colour, linewidth=1.2, zorder=1)
    for latent, (x, y) in places.items():
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axis.text(x, y, str(latent[1]), ha="center", va="center", fontsize=7, bbox=box)
    axis.set(xlim=(-0.3, columns - 0.7), ylim=(-1, 0))
