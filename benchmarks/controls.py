"""How far explanations score above the same pipeline on what has learned nothing, from ``autointerp run controls``.

    python benchmarks/controls.py [--run results/controls] [--out results/reference/controls.json]

Writes the figures of run.json: each scorer's mean on the run's features less its mean on the features of a redrawn
subject and of a random SAE, with Welch's interval; and how well each SAE does, since a control whose SAE is worse
says less.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("results/controls"))
    parser.add_argument("--command", default="autointerp run controls", help="that made the run")
    parser.add_argument("--out", type=Path, default=Path("results/reference/controls.json"))
    arguments = parser.parse_args()
    info = json.loads((arguments.run / "run.json").read_text())
    figures = {"command": arguments.command, "controls": info["controls"], "saes": saes(info["stages"])}
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    for row in info["controls"]:
        value = row["value"]
        limits = "" if value["low"] is None else f" [{value['low']:+.3f}, {value['high']:+.3f}]"
        print(
            f"{row['scorer']}: run {value['run']:.3f} less {row['control']} {value['control']:.3f}:"
            f" {value['difference']:+.3f}{limits}"
        )


def saes(stages: dict[str, Any]) -> dict[str, Any]:
    """L0 and explained variance of each SAE, and how many of its latents fire often enough to be explained."""
    names = [name.removesuffix("sae") for name in stages if name == "sae" or name.endswith(":sae")]
    kept = ("l0", "explained_variance")
    return {
        name.removesuffix(":") or "run": {key: stages[f"{name}sae"]["facts"].get(key) for key in kept}
        | {"latents": stages[f"{name}select"]["facts"]["latents"]}
        for name in names
    }


if __name__ == "__main__":
    main()
