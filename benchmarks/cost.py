"""What a feature costs in calls and prompt tokens, with the default 100 judged examples of 32 tokens.

    python benchmarks/cost.py [--features 20] [--out results/reference/cost.json]

Prompts are rendered for real features of the demo's SAE and counted with the default judge's tokenizer; nothing is
sent. Bar: explain + detection in list mode ≤ 6 calls and ≤ 8,000 prompt tokens. (delphi, measured: 41 calls and 38,000
tokens for detection and fuzzing.) Exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from autointerp.pipeline.stages import build_stages, evidence_of, held_out, selected

from autointerp.commands.prompts import record_explain, record_score, token_counter
from autointerp.commands.run import store
from autointerp.config import PluginConfig, load_config
from autointerp.engine.dag import Dag
from autointerp.engine.session import Session

CALLS, TOKENS = 6, 8000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("results/reference/cost.json"))
    options = parser.parse_args()
    whole = load_config("demo", {"features.count": options.features, "contexts": {}})
    # The same run without a language model makes the contexts.
    config = whole.model_copy(update={"explainers": [PluginConfig(name="token_stats")], "scorers": [], "controls": []})
    with tempfile.TemporaryDirectory() as folder, Session(config, Path(folder) / "usage.jsonl") as session:
        dag = Dag(build_stages(config, session), store())
        inputs = {name: dag.store.folder(name, manifest.key) for name, manifest in dag.run().items()}
        features = [row["feature"] for row in selected(inputs["select"]) if row["status"] == "ok"]
        evidence = evidence_of(session, inputs)(features)
        examples = held_out(inputs["contexts"] / "contexts.parquet")(features)
    assert whole.llm is not None
    count = token_counter(whole.llm)
    judge = PluginConfig.model_validate({"name": "detection", "mode": "list"})
    explanation = "the words that name animals, above all dogs and cats"
    calls, tokens, judged = [], [], []
    for feature in features:
        asked = record_explain(whole, PluginConfig(name="default"), evidence[feature])
        asked += record_score(whole, judge, explanation, examples[feature])
        calls.append(len(asked))
        tokens.append(sum(count(messages) for _, messages, _ in asked))
        judged.append(len(examples[feature]))
    found = {
        "command": f"python benchmarks/cost.py --features {options.features}",
        "features": len(features),
        "judged_examples_mean": sum(judged) / len(judged),
        "calls_most": max(calls),
        "prompt_tokens_mean": round(sum(tokens) / len(tokens)),
        "prompt_tokens_most": max(tokens),
        "limits": {"calls": CALLS, "prompt_tokens": TOKENS},
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    sys.exit(max(calls) > CALLS or max(tokens) > TOKENS)


if __name__ == "__main__":
    main()
