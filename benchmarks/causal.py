"""Is a composite used as a sum? The stage `causal` on planted subjects, where that is known.

    python benchmarks/causal.py [--seeds 5] [--sums 48] [--out results/reference/causal.json]

Half of the composites of `toys.planted_subject` are used as the sums that they lie like; of the others a later layer
reads direction and parts apart. The run's own stages find them and try them. Bars: the column `causal` tells the two
with an AUROC of .95 or more; with another composite's constituents in place of its own (`swapped`) it is .5 ± .05. The
exit code is 1 where one is missed. Beside the JSON goes a picture of each composite's column and its controls'.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

BARS = {"causal": (0.95, 1.0), "causal_swapped": (0.45, 0.55)}
SHOWN = ("causal", "causal_together", "causal_swapped", "causal_turned")
COLOURS = {"sum": "#1f77b4", "own": "#d62728"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sums", type=int, default=48, help="composites of each subject")
    parser.add_argument("--out", type=Path, default=Path("results/reference/causal.json"))
    arguments = parser.parse_args()
    rows = [row for seed in range(arguments.seeds) for row in measure(seed, arguments.sums)]
    figures = {"command": " ".join(["python", *sys.argv]), **conclude(rows), "composites": rows}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    draw(rows, arguments.out.with_suffix(".png"))
    for name, value in figures["auroc"].items():
        bar = f"  bar {BARS[name][0]} to {BARS[name][1]}" if name in BARS else ""
        print(f"AUROC of {name:16} {value['all']:.3f}  worst seed {value['worst']:.3f}{bar}")
    for path, means in figures["means"].items():
        print(f"{path:4} {means}")
    sys.exit(not figures["bars_met"])


def measure(seed: int, sums: int) -> list[dict[str, Any]]:
    """A row for each composite of one subject, with what it is and the columns of composites.parquet."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AUTOINTERP_CACHE"] = str(Path(folder) / "cache")
        from autointerp.commands.run import run_targets
        from autointerp.composites.causes import columns_of
        from autointerp.config import parse_config
        from autointerp.toys.planted_subject import plant_subject

        subject = plant_subject(Path(folder), 2 * sums + 16, sums=sums, documents=25 * sums, seed=seed)
        config = {
            "name": "causal",
            "seed": seed,
            "subject": {"model": str(subject.model)},
            "corpus": {"source": str(subject.text), "context": 64},
            "sae": {"load": str(subject.sae)},
            "composites": {"causal": {"count": sums}},
        }
        made = run_targets(parse_config(config), ["causal"], out=Path(folder) / "run")
        import pyarrow.parquet as pq

        tried = columns_of(pq.read_table(made["causal"] / "causal.parquet").to_pylist())
    planted = [each for each in subject.features if each.parts]
    missing = dict.fromkeys(SHOWN)
    return [
        {"seed": seed, "feature": each.feature, "path": each.path}
        | {name: tried.get(each.feature, missing)[name] for name in SHOWN}
        for each in planted
    ]


def conclude(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """AUROC of each column, over all composites and of the worst seed; means; which bars are met. What was not found
    or not tried counts as 0 in the column."""
    from autointerp.stats import auroc

    seeds = sorted({row["seed"] for row in rows})

    def area(name: str, of: list[dict[str, Any]]) -> float:
        value = auroc([row["path"] == "sum" for row in of], [row[name] or 0.0 for row in of])
        assert value is not None
        return value

    areas = {}
    for name in SHOWN:
        by_seed = [area(name, [row for row in rows if row["seed"] == seed]) for seed in seeds]
        worst = max(by_seed, key=lambda value: abs(value - 0.5)) if name == "causal_swapped" else min(by_seed)
        areas[name] = {"all": area(name, rows), "worst": worst, "by_seed": by_seed}
    means = {
        path: {name: float(np.mean([row[name] or 0.0 for row in rows if row["path"] == path])) for name in SHOWN}
        for path in COLOURS
    }
    met = all(low <= areas[name]["all"] <= high for name, (low, high) in BARS.items())
    return {
        "n": len(rows),
        "untried": sum(row["causal"] is None for row in rows),
        "auroc": areas,
        "means": means,
        "bars": BARS,
        "bars_met": met,
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(SHOWN), figsize=(3 * len(SHOWN), 3), sharey=True, layout="constrained")
    for axis, name in zip(axes, SHOWN):
        for kind, colour in COLOURS.items():
            values = [row[name] for row in rows if row["path"] == kind and row[name] is not None]
            axis.hist(
                values,
                np.linspace(-1, 1, 41),
                color=colour,
                alpha=0.6,
                label=f"used as {'a sum' if kind == 'sum' else 'none'}",
            )
        axis.set_title(name.replace("_", ", "), fontsize=9)
        axis.set_xlabel("agreement of effects")
    axes[0].set_ylabel("composites")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
