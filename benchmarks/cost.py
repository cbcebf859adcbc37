"""What a feature costs in calls and prompt tokens, with the default 100 judged examples of 32 tokens.

    python benchmarks/cost.py [--features 20] [--out results/reference/cost.json]

The demo's stages run up to the contexts, which asks no language model. The requests for real features of its SAE are
then made to a recorder and counted with the default judge's tokenizer; nothing is sent. Bar: explain + detection in
list mode ≤ 6 calls and ≤ 8,000 prompt tokens. (delphi, measured: 41 calls and 38,000 tokens for detection and
fuzzing.) Exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from autointerp.commands import rehearsal
from autointerp.commands.folder import store
from autointerp.commands.known import Known
from autointerp.commands.run import run_targets
from autointerp.config import PluginConfig, load_config
from autointerp.engine.dag import Dag
from autointerp.engine.session import Session
from autointerp.stages import nodes, uses
from autointerp.stages.select import ready

CALLS, TOKENS = 6, 8000
EXPLANATION = "the words that name animals, above all dogs and cats"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("results/reference/cost.json"))
    options = parser.parse_args()
    config = load_config("demo", {"features.count": options.features, "contexts": {}})
    assert config.llm is not None
    detection = PluginConfig.model_validate({"name": "detection", "mode": "list"})
    config = config.model_copy(
        update={"explainers": [PluginConfig(name="default")], "scorers": [detection], "controls": []}
    )
    calls, tokens, judged = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        run_targets(config, ["contexts"], out=folder)
        with Session(config, Path(folder) / "usage.jsonl") as session:
            dag = Dag(nodes(config, session), store())
            inputs = {name: dag.folder(s) for name, s in dag.standings().items() if s.manifest is not None}
            known = Known(config, session, uses(config), inputs, EXPLANATION)
            count = rehearsal.counter(config.llm)
            for sample in known.real(ready(inputs["select"])):
                asked = [
                    request
                    for name in ("explain/default", "score/detection/default")
                    for request in rehearsal.rehearse(session, known.uses[name], sample, config.llm)
                ]
                calls.append(len(asked))
                tokens.append(sum(count(request.messages) for request in asked))
                judged.append(len(sample.examples))
    costs = {
        "command": f"python benchmarks/cost.py --features {options.features}",
        "features": len(calls),
        "judged_examples_mean": sum(judged) / len(judged),
        "calls_most": max(calls),
        "prompt_tokens_mean": round(sum(tokens) / len(tokens)),
        "prompt_tokens_most": round(max(tokens)),
        "limits": {"calls": CALLS, "prompt_tokens": TOKENS},
    }
    options.out.write_text(json.dumps(costs, indent=1) + "\n")
    print(json.dumps(costs, indent=1))
    sys.exit(max(calls) > CALLS or max(tokens) > TOKENS)


if __name__ == "__main__":
    main()
