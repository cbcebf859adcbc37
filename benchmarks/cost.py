"""What a feature costs in calls and prompt tokens: explain, detection and fuzzing of 100 examples each, in lists.

    python benchmarks/cost.py [--features 20] [--out results/reference/cost.json]

The demo's stages run up to the contexts, which asks no language model. The requests for real features of its SAE are
then made to a recorder and counted with the default judge's tokenizer; nothing is sent. Bars, without controls: explain
+ detection ≤ 6 calls and ≤ 8,000 prompt tokens; with fuzzing ≤ 9 calls and ≤ 14,000. (delphi, measured: 41 calls and
38,000 tokens for detection and fuzzing.) The control's three donors and the calibration, which a run pays once, are
counted beside them. Exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from autointerp.commands import rehearsal
from autointerp.commands.known import Known
from autointerp.commands.run import run_targets
from autointerp.config import PluginConfig, load_config
from autointerp.engine.dag import Dag
from autointerp.engine.mirrored import open_store
from autointerp.engine.session import Session
from autointerp.scorers.fuzzing import marks
from autointerp.scorers.judging import rng_of
from autointerp.stages import nodes, uses
from autointerp.stages.select import ready

# What a feature may cost: uses -> calls and prompt tokens.
LIMITS = {"explain + detection": (6, 8000), "explain + detection + fuzzing": (9, 14000)}
EXPLANATION = "the words that name animals, above all dogs and cats"
SIZES = {"test_activating": 100, "test_random": 25, "test_near": 25}  # fuzzing reads the firing windows alone


def measure(features: int) -> tuple[dict[str, list[tuple[int, float]]], list[tuple[int, int]]]:
    """Of each use (calls, prompt tokens) of every feature, and how many examples detection and fuzzing judge of it."""
    config = load_config("demo", {"features.count": features, "contexts": SIZES})
    assert config.llm is not None
    scorers = [PluginConfig.model_validate({"name": name, "mode": "list"}) for name in ("detection", "fuzzing")]
    config = config.model_copy(
        update={
            "explainers": [PluginConfig(name="default")],
            "scorers": scorers,
            "controls": [PluginConfig(name="other_feature")],
        }
    )
    costs: dict[str, list[tuple[int, float]]] = {}
    judged: list[tuple[int, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        run_targets(config, ["contexts"], out=folder)
        with Session(config, Path(folder) / "usage.jsonl") as session:
            dag = Dag(nodes(config, session), open_store())
            inputs = {name: dag.folder(s) for name, s in dag.standings().items() if s.manifest is not None}
            known = Known(config, session, uses(config), inputs, EXPLANATION)
            count = rehearsal.counter(config.llm)
            for sample in known.real(ready(inputs["select"])):
                firing = [c for c in sample.examples if c.fires]
                half = [*firing[::2], *(c for c in sample.examples if not c.fires)]  # detection: 50 firing, 50 silent
                judged.append((len(half), len(marks(firing, rng_of(firing, config.seed)))))
                for name, use in known.uses.items():
                    if name.startswith(("explain/", "score/", "calibrate/")):
                        shown = replace(sample, examples=half) if "/detection/" in name else sample
                        asked = rehearsal.rehearse(session, use, shown, config.llm)
                        costs.setdefault(name, []).append((len(asked), sum(count(r.messages) for r in asked)))
    return costs, judged


def summed(costs: dict[str, list[tuple[int, float]]], names: list[str]) -> dict[str, int]:
    calls = [sum(costs[name][i][0] for name in names) for i in range(len(costs[names[0]]))]
    tokens = [sum(costs[name][i][1] for name in names) for i in range(len(calls))]
    return {
        "calls_most": max(calls),
        "prompt_tokens_mean": round(sum(tokens) / len(tokens)),
        "prompt_tokens_most": round(max(tokens)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("results/reference/cost.json"))
    options = parser.parse_args()
    costs, judged = measure(options.features)
    detection, fuzzing = ["explain/default", "score/detection/default"], "score/fuzzing/default"
    parts = {"explain + detection": detection, "explain + detection + fuzzing": [*detection, fuzzing]}
    controls = [name for name in costs if name.endswith("/other_feature")]
    report = {
        "command": f"python benchmarks/cost.py --features {options.features}",
        "features": len(judged),
        "judged_examples_mean": {
            name: round(sum(each[i] for each in judged) / len(judged), 1)
            for i, name in enumerate(("detection", "fuzzing"))
        },
        **{
            name: summed(costs, uses_of) | dict(zip(("calls_limit", "prompt_tokens_limit"), LIMITS[name]))
            for name, uses_of in parts.items()
        },
        "the same with the control of three donors": summed(
            costs, [*parts["explain + detection + fuzzing"], *controls]
        ),
        "calibration, once a run and scorer (8 features)": {
            name.split("/")[1]: {
                "calls": sum(calls for calls, _ in costs[name][:8]),
                "prompt_tokens": round(sum(tokens for _, tokens in costs[name][:8])),
            }
            for name in costs
            if name.startswith("calibrate/")
        },
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    sys.exit(
        any(
            report[name]["calls_most"] > calls or report[name]["prompt_tokens_most"] > tokens
            for name, (calls, tokens) in LIMITS.items()
        )
    )


if __name__ == "__main__":
    main()
