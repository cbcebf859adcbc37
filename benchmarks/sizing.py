"""How large a run gets, on paper: hours, disk and memory from what was measured, up to 10^10 tokens and 10^6 latents.

    python benchmarks/sizing.py [--out results/reference/sizing.json]

Nothing is measured here. Each figure is one of results/reference, named beside it, times the size of the run. The
subject is the one of forward.json (SmolLM2-135M to block 9, one core, vectors of 576): a model of P parameters up to
its hook costs P / `PARAMETERS` times that. The product with the encoder is 2 d n operations a token at the rate of
composites-speed.json; a step of its training grows with d n from training.json. GPU hours are these operations at
`--flops` a second, which no file here has measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from autointerp.activations.harvest import SHARD_TOKENS
from autointerp.stages.harvest import FIRING_BYTES

REFERENCE = Path(__file__).parents[1] / "results" / "reference"
SIZES = {
    "laptop": (2e6, 16_384),
    "one GPU": (1e8, 65_536),
    "8 GPUs": (1e9, 131_072),
    "cluster": (1e10, 1_000_000),
}
D, TRAINED = 576, 288 * 4096  # width of the vectors; d n of the SAE of training.json
K = 32  # latents that fire on a token
SORTING = 24  # bytes of memory a firing of a shard, as `activations.harvest.harvest` says
TOKEN_BYTES = 4  # of the tokenised text
FORWARD_TOKENS = 1024  # of one pass of forward.py
PARAMETERS = 10 * 3.54e6  # of SmolLM2-135M's first ten blocks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=REFERENCE / "sizing.json")
    parser.add_argument("--flops", type=float, default=4e14, help="of a GPU in bfloat16, as it is used")
    options = parser.parse_args()
    measured = speeds()
    rows = {name: sized(tokens, latents, measured, options.flops) for name, (tokens, latents) in SIZES.items()}
    made = {
        "command": f"python benchmarks/sizing.py --flops {options.flops:g}",
        "measured": measured,
        "k": K,
        "flops": options.flops,
        "sizes": rows,
    }
    options.out.write_text(json.dumps(made, indent=1) + "\n")
    names = list(next(iter(rows.values())))
    print("| " + " | ".join(["", *rows]) + " |")
    print("| --- |" + " ---: |" * len(rows))
    for name in names:
        print("| " + " | ".join([name, *(f"{row[name]:,}" for row in rows.values())]) + " |")


def speeds() -> dict[str, float]:
    forward = _read("forward")["results"]["hook, rows of 256, float32"]["cpu_s"]
    training = _read("training")["trainers"]["runs"]["autointerp"]["tokens_per_cpu_s"]
    scale = _read("scale")["sizes"][-1]
    check = next(row for row in reversed(_read("composites-speed")) if row["device"].endswith(" 2 threads"))
    return {
        "forward, core-seconds a token (forward.json)": forward / FORWARD_TOKENS,
        "training, tokens a core-second at 288 x 4,096 (training.json)": training,
        "products, operations a core-second (composites-speed.json)": check["gflops"] * 1e9 / 2,
        "contexts, seconds a latent (scale.json)": scale["stages"]["contexts"] / scale["features"],
        "requests a latent, one explainer and one scorer (scale.json)": scale["requests"] / scale["features"],
        "requests a core-second (scale.json)": scale["requests_per_cpu_second"],
        "run's memory, GB (scale.json)": scale["peak_gb"],
        "composites, seconds of two cores a million pairs (composites-speed.json)": check["check_s"]
        / check["n"] ** 2
        * 1e6,
        "prompt tokens a latent, explained and judged on 100 (cost.json)": _read("cost")["explain + detection"][
            "prompt_tokens_mean"
        ],
    }


def sized(tokens: float, latents: int, measured: dict[str, float], flops: float) -> dict[str, Any]:
    forward, training, product, contexts, requests, a_second, _, pairs, prompt = measured.values()
    shards = -(-int(tokens) // SHARD_TOKENS)
    firings = tokens * K
    encoder = 2.0 * D * latents * tokens
    operations = encoder + 2.0 * PARAMETERS * tokens
    return {
        "tokens": int(tokens),
        "latents": latents,
        "forward, core-hours": _round(forward * tokens / 3600),
        "encoder product, core-hours": _round(encoder / product / 3600),
        "both, GPU-hours": _round(operations / flops / 3600),
        "training, one pass, core-hours": _round(tokens / training * D * latents / TRAINED / 3600),
        "text, GB": _round(tokens * TOKEN_BYTES / 1e9),
        "firings, GB": _round(firings * FIRING_BYTES / 1e9),
        "shards": shards,
        "index of the shards, GB": _round(shards * (latents + 1) * 8 / 1e9),
        "memory of a shard being sorted, GB": _round(min(tokens, SHARD_TOKENS) * K * SORTING / 1e9),
        "contexts, hours of one worker": _round(contexts * latents / 3600),
        "composites, hours of two cores": _round(pairs * latents**2 / 1e6 / 3600),
        "requests, millions": _round(requests * latents / 1e6),
        "client, core-hours": _round(requests * latents / a_second / 3600),
        "prompt tokens, millions": _round(prompt * latents / 1e6),
    }


def _round(number: float) -> float:
    return float(f"{number:.2g}")


def _read(name: str) -> Any:
    return json.loads((REFERENCE / f"{name}.json").read_text())


if __name__ == "__main__":
    main()
