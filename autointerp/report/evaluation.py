"""An evaluation for reading: its table on the terminal, and its plots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autointerp.artifacts import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUPS: dict[str, tuple[str, ...]] = {
    "sparsity": ("l0", "l0_with_outliers", "outlying_tokens", "l0_on_bos", "l1"),
    "reconstruction": (
        "explained_variance",
        "explained_variance_with_outliers",
        "mse",
        "cosine",
        "l2_ratio",
        "relative_reconstruction_bias",
    ),
    "the patched model, cross-entropy": (
        *("ce_clean", "ce_sae", "ce_zero", "ce_mean", "ce_loss_recovered", "ce_loss_recovered_from_mean"),
    ),
    "the patched model, KL(clean ‖ patched)": (
        *("kl_sae", "kl_zero", "kl_mean", "kl_loss_recovered", "kl_loss_recovered_from_mean"),
    ),
    "latents": (
        *("dead_fraction", "dense_fraction", "frequent_fraction", "dense_firings", "frequent_firings"),
        *("firings_on_punctuation", "punctuation_tokens", "firings_on_newline", "newline_tokens"),
    ),
    "directions": (
        *("mmcs", "mmcs_random", "mmcs_covariance"),
        *("interference_rms", "interference_random", "interference_capacity"),
    ),
}
BANDS = {
    **{"l0": "L0", "explained_variance": "EV", "cosine": "cosine", "ce_clean": "CE", "ce_sae": "CE SAE"},
    **{"ce_loss_recovered": "CE rec.", "kl_sae": "KL SAE", "kl_loss_recovered": "KL rec."},
}
INK, POINT, OTHER, FAINT = "#222222", "#1f6fb4", "#c2571a", "#9aa0a6"
NULLS = {
    "dictionary": ("this SAE", POINT),
    "random": ("random directions", FAINT),
    "covariance": ("its covariance", OTHER),
}


def print_evaluation(folder: Path) -> None:
    """Every figure with its 95 % interval, then the main ones by position in the context."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    rows = {row["metric"]: row for row in _read(folder, "evaluation")}
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("", "value", "95 % interval", "n"):
        table.add_column(heading, no_wrap=True)
    notes: list[str] = []
    for title, names in GROUPS.items():
        table.add_row(f"[bold]{title}[/bold]")
        for name in names:
            if name in rows:
                row = rows[name]
                interval = "" if row["low"] is None else f"{_number(row['low'])} … {_number(row['high'])}"
                count = "" if row["n"] is None else f"{row['n']:,}"
                table.add_row(f"  {name}", _number(row["value"]), interval, count)
                notes += [f"{name}: {row['note']}"] if row["note"] else []
    console.print(table)
    bands = Table("position", "n", *BANDS.values(), box=None, header_style="bold", pad_edge=False)
    pooled = _read(folder, "evaluation_bands")
    for row in pooled:
        where = f"{row['position']}" if row["position"] == row["last"] else f"{row['position']}–{row['last']}"
        values = ("–" if row[name] is None else f"{row[name]:.3g}" for name in BANDS)
        bands.add_row(where + " *" * bool(row["beyond"]), f"{row['n']:,}", *values)
    console.print(bands)
    if any(row["beyond"] for row in pooled):
        console.print("* beyond the context that the SAE was trained on")
    for note in notes:
        console.print(note)


def draw(folder: Path) -> None:
    """``evaluation.png`` and ``.svg`` in `folder`, from the tables there."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    positions, bands = _read(folder, "evaluation_positions"), _read(folder, "evaluation_bands")
    lines = (
        ("loss recovered", {"ce_loss_recovered": "cross-entropy", "kl_loss_recovered": "KL"}),
        ("reconstruction", {"explained_variance": "explained variance", "cosine": "cosine"}),
        ("latents that fire (L0)", {"l0": "L0"}),
    )
    for axis, (title, names) in zip(axes[0], lines):
        _by_position(axis, positions, bands, names)
        _finish(axis, title, "position in the context", None)
    _frequencies(axes[1][0], [row["frequency"] for row in _read(folder, "evaluation_features")])
    _tokens(axes[1][1], _read(folder, "evaluation_features"))
    _cosines(axes[1][2], _read(folder, "evaluation_cosines"))
    for suffix in ("png", "svg"):
        write_atomically(
            folder / f"evaluation.{suffix}",
            lambda path, suffix=suffix: figure.savefig(
                path, format=suffix, dpi=130, metadata={"Creator": "autointerp"} if suffix == "svg" else None
            ),
        )
    plt.close(figure)


def _by_position(axis: Axes, positions: list[Any], bands: list[Any], names: Mapping[str, str]) -> None:
    """Points are single positions, lines are bands; what lies beyond the SAE's training is shaded."""
    low = 1.0
    for color, (name, label) in zip((POINT, OTHER), names.items()):
        shown = [row for row in positions if row[name] is not None]
        axis.plot(
            [_place(r["position"]) for r in shown], [r[name] for r in shown], ".", color=color, alpha=0.18, markersize=4
        )
        pooled = [row for row in bands if row[name] is not None]
        middle = [(_place(row["position"]) * _place(row["last"])) ** 0.5 for row in pooled]
        axis.plot(middle, [row[name] for row in pooled], "o-", color=color, markersize=4, linewidth=1.4, label=label)
        low = min([low, *(row[name] for row in pooled)])
    beyond = [row["position"] for row in positions if row["beyond"]]
    if beyond:
        axis.axvspan(min(beyond) - 0.5, max(beyond) + 0.5, color=FAINT, alpha=0.2, linewidth=0)
        axis.annotate(
            "beyond training",
            (max(beyond), 0.02),
            xycoords=("data", "axes fraction"),
            fontsize=8,
            color=INK,
            ha="right",
        )
    if len(names) > 1:
        axis.set_ylim(max(low - 0.15, -0.5), 1.02)
    else:
        axis.set_ylim(bottom=0)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _place(position: int) -> float:
    """On a logarithmic axis, which has no 0."""
    return max(position, 0.5)


def _frequencies(axis: Axes, frequency: list[float]) -> None:
    import numpy as np

    alive = np.array([f for f in frequency if f > 0])
    dead = len(frequency) - len(alive)
    if len(alive):
        axis.hist(np.log10(alive), bins=50, color=POINT)
    axis.axvline(-1, color=OTHER, linewidth=1)
    axis.annotate("dense", (-1, 0.95), xycoords=("data", "axes fraction"), fontsize=8, color=OTHER, ha="right")
    _finish(
        axis, f"how often latents fire; {dead:,} of {len(frequency):,} dead", "log10 of the share of tokens", "latents"
    )


def _tokens(axis: Axes, features: list[Any]) -> None:
    """Shares of the latents' firings, as the share of latents that have at least so much."""
    import numpy as np

    kinds = {"punctuation_share": POINT, "newline_share": OTHER, "word_start_share": "#3a8f5c", "bos_share": FAINT}
    for name, color in kinds.items():
        shares = np.sort([row[name] for row in features if row[name] is not None and row[name] == row[name]])
        if len(shares):
            label = name.removesuffix("_share").replace("_", " ").replace("bos", "BOS")
            above = 1 - np.arange(len(shares)) / len(shares)
            axis.step(
                [0, *shares, 1], [1, *above, above[-1] if shares[-1] >= 1 else 0], where="pre", color=color, label=label
            )
    _finish(axis, "on which tokens latents fire", "share of a latent's firings, at least", "share of latents")


def _cosines(axis: Axes, profile: list[Any]) -> None:
    axis.set_visible(bool(profile))
    for name, (label, color) in NULLS.items():
        rows = [row for row in profile if row["dictionary"] == name and row["rank"] == 1]
        if rows:
            edges = [row["low"] for row in rows] + [rows[-1]["high"]]
            axis.stairs(
                [row["latents"] for row in rows],
                edges,
                color=color,
                label=label,
                linewidth=1.4,
                fill=name == "dictionary",
                alpha=0.8,
            )
    axis.set_xlim(-0.1, 1.02)
    _finish(axis, "each latent's highest cosine to another", "cosine of decoder directions", "latents")


def _finish(axis: Axes, title: str, x: str, y: str | None) -> None:
    axis.set_title(title, fontsize=10, loc="left", color=INK)
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y or "", fontsize=9)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(length=0, labelsize=8)
    if len(axis.get_legend_handles_labels()[1]) > 1:
        axis.legend(fontsize=8, frameon=False)


def _read(folder: Path, table: str) -> list[dict[str, Any]]:
    """Rows of a table, none where this evaluation has no such table."""
    import pyarrow.parquet as pq

    file = folder / f"{table}.parquet"
    return pq.read_table(file).to_pylist() if file.exists() else []


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
