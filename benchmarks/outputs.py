"""Generation, output tokens, steering and ablation on a planted subject, whose features' effects are known.

    python benchmarks/outputs.py [--features 64] [--out results/reference/outputs.json]

The whole pipeline is run on `toys.planted_subject`, with the true explanations and a judge that goes by their words.
Half of the features act through a later layer, which the decoder row's product with the unembedding cannot show. Bars:
each scorer's mean is .95 or more (of `output_tokens` over the features that act directly), each control's is at its
chance. The exit code is 1 where one is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BAR, CHANCE = 0.95, 0.05
SCORERS = ("generation", "output_tokens", "steering", "ablation")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("results/reference/outputs.json"))
    arguments = parser.parse_args()
    command = f"python benchmarks/outputs.py --features {arguments.features}"
    figures: dict[str, Any] = {"command": command} | measure(arguments.features)
    figures["bars"] = {f"{row['scorer']}, {row['path']}": row["met"] for row in figures["scorers"]}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    for row in figures["scorers"]:
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    sys.exit(not all(figures["bars"].values()))


def measure(features: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AUTOINTERP_CACHE"] = str(Path(folder) / "cache")
        from autointerp.toys.planted_subject import plant_subject

        subject = plant_subject(Path(folder), features, documents=25 * features)
        add_oracle(subject.neutral)
        import autointerp as ai
        from autointerp.config import parse_config

        run = ai.run(parse_config(planted_config(subject)), out=Path(folder) / "run")
        scores = run.scores
        paths = {each.feature: each.path for each in subject.features}
        rows = [_row(scores, scorer, paths, path) for scorer in SCORERS for path in ("direct", "later")]
        return {"features": features, "scorers": rows}


def planted_config(subject: Any) -> dict[str, Any]:
    """A run over all features of a planted subject, their true explanations given."""
    explanations = subject.model.parent / "explanations.jsonl"
    lines = ({"feature": each.feature, "explanation": each.explanation} for each in subject.features)
    explanations.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "name": "outputs",
        "subject": {"model": str(subject.model)},
        "corpus": {"source": str(subject.text), "context": 64},
        "sae": {"load": str(subject.sae)},
        "features": {"select": "all", "min_firings": 10},
        "contexts": {"window": 16, "train": 5, "test_activating": 10, "test_random": 5, "test_near": 5},
        "composites": {"enabled": False},
        "llm": {"model": "planted:oracle", "concurrency": 16},
        "explainers": [{"name": "given", "path": str(explanations)}],
        "scorers": list(SCORERS),
        "controls": ["other_feature"],
    }


def _row(scores: Any, scorer: str, paths: dict[int, str], path: str) -> dict[str, Any]:
    """One scorer over the features of one path. A later feature's output tokens cannot be seen: at chance is right."""
    mine = scores[(scores["scorer"] == scorer) & (scores["feature"].map(paths) == path)]
    own, control = mine[mine["control"].isna()], mine[mine["control"].notna()]
    mean, other, chance = own["value"].mean(), control["value"].mean(), mine["chance"].mean()
    seen = scorer != "output_tokens" or path == "direct"
    met = (mean >= BAR if seen else abs(mean - chance) <= 2 * CHANCE) and abs(other - chance) <= CHANCE
    figures = {"mean": mean, "worst": own["value"].min(), "control": other, "chance": chance}
    counts = {"features": int(own["value"].notna().sum()), "of": sum(each == path for each in paths.values())}
    rounded = {name: round(float(value), 4) for name, value in figures.items()}
    return {"scorer": scorer, "path": path, **rounded, **counts, "met": bool(met)}


def add_oracle(neutral: Sequence[str]) -> None:
    """Register the backend ``planted:NAME``."""
    from autointerp.llm.backend import Reply
    from autointerp.llm.prices import Prices
    from autointerp.llm.registry import backend
    from autointerp.toys.planted_subject import oracle

    @backend("planted")
    class Planted:
        model, identity, capabilities = "oracle", "planted oracle", frozenset()

        @classmethod
        def open(cls, config: Any, resolve_model: Any) -> Any:
            return cls()

        @classmethod
        def identify(cls, config: Any, identify_model: Any) -> dict[str, Any]:
            return {}

        @classmethod
        def expected(cls, config: Any) -> frozenset[Any]:
            return frozenset()

        @classmethod
        def prices(cls, config: Any) -> Any:
            return Prices(0.0, 0.0)

        @classmethod
        def check(cls, config: Any, catalogue: Any) -> None: ...

        async def start(self) -> None: ...

        async def close(self) -> None: ...

        async def probe(self) -> None: ...

        async def ask(self, request: Any) -> dict[str, Any]:
            return {"text": oracle(request.messages[-1].content, neutral, request.seed)}

        def read(self, raw: Any, request: Any) -> Reply:
            return Reply(text=raw["text"], prompt_tokens=1, completion_tokens=1)


if __name__ == "__main__":
    main()
