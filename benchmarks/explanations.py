"""The README's table, from ``autointerp run demo-sae``; run it first, then ``python benchmarks/explanations.py``.

For each explainer, over the same features: mean detection AUPRC, its control, and the difference paired by feature
with a 95 % bootstrap interval; and the default explainer against token statistics.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import autointerp as ai
from autointerp.stats import paired_difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", default="demo-sae")
    parser.add_argument("--out", type=Path, default=Path("results/reference/explanations.json"))
    options = parser.parse_args()
    run = ai.open_run(options.run)
    scores = run.scores
    scores["control"] = scores["control"].fillna("")
    wide = scores.pivot_table(index="feature", columns=["scorer", "explainer", "control"], values="value")
    found: dict[str, Any] = {
        "command": f"autointerp run {run.info['name']} && python benchmarks/explanations.py {run.info['name']}",
        "features": len(wide),
        "revision": run.info["git"],
        "packages": run.info["packages"],
        "unscored": int(scores["n_unscored"].sum()),
    }
    for scorer in sorted(scores["scorer"].unique()):
        explainers = list(dict.fromkeys(scores["explainer"]))
        for explainer in explainers:
            real, control = wide[scorer, explainer, ""], wide[scorer, explainer, "other_feature"]
            found[f"{scorer}, {explainer}"] = {
                "mean": round(float(real.mean()), 4),
                "control": round(float(control.mean()), 4),
                "difference": paired(real, control),
            }
        first, *others = explainers
        for other in others:
            found[f"{scorer}, {first} − {other}"] = paired(wide[scorer, first, ""], wide[scorer, other, ""])
    shown = run.features[
        ["feature", "detection", "detection_low", "detection_high", "detection_control", "explanation"]
    ]
    found["table"] = json.loads(shown.sort_values("detection", ascending=False).round(3).to_json(orient="records"))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps({key: value for key, value in found.items() if key != "table"}, indent=1, ensure_ascii=False))


def paired(one: Any, other: Any) -> dict[str, Any]:
    difference = paired_difference(one.tolist(), other.tolist())
    return {
        "mean": round(difference.mean, 4),
        "low": round(difference.low, 4),
        "high": round(difference.high, 4),
        "wins": difference.wins,
        "losses": difference.losses,
        "n": difference.n,
    }


if __name__ == "__main__":
    main()
