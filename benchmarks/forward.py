"""Activations of a residual hook against the plain Hugging Face model run to that block, with fused attention.

    python benchmarks/forward.py [--model smollm2-135m] [--layer 9] [--rounds 9] [--out results/reference/forward.json]

The yardstick is a second copy of the model of which the later blocks were cut off. Both run on the same tokens in turn,
in processor seconds of one process; a figure is the median of the turns' ratios. TransformerLens' bridge and
``subject.compile`` stand beside, without a bar. Exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from autointerp.catalog import resolve
from autointerp.config import SubjectConfig
from autointerp.subject import Subject, load_subject

BAR = 1.05
TOKENS = 1024  # of one pass


def cut_off(folder: Path, layer: int, dtype: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model's blocks as far as `layer`, with nothing after them: tokens -> activations."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    trunk = loaded.eval().base_model
    trunk.layers, trunk.norm = trunk.layers[: layer + 1], torch.nn.Identity()

    @torch.no_grad()
    def run(tokens: torch.Tensor) -> torch.Tensor:
        return trunk(tokens, use_cache=False).last_hidden_state

    return run


def seconds(run: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor) -> float:
    start = time.process_time()
    run(tokens)
    return time.process_time() - start


def ratio(
    ours: Callable[[torch.Tensor], torch.Tensor],
    theirs: Callable[[torch.Tensor], torch.Tensor],
    tokens: torch.Tensor,
    rounds: int,
) -> dict[str, float]:
    """Of processor seconds, in turns; the first turn is not counted."""
    difference = float((ours(tokens) - theirs(tokens).float()).norm() / theirs(tokens).float().norm())
    turns = [(seconds(ours, tokens), seconds(theirs, tokens)) for _ in range(rounds)]
    return {
        "ratio": statistics.median(a / b for a, b in turns),
        "cpu_s": statistics.median(a for a, _ in turns),
        "plain_cpu_s": statistics.median(b for _, b in turns),
        "relative_difference": difference,
    }


def by_bridge(subject: Subject) -> Callable[[torch.Tensor], torch.Tensor]:
    def run(tokens: torch.Tensor) -> torch.Tensor:
        return subject.forward.by_bridge(tokens, [subject.hook])[0]

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layer", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    folder, hook = resolve(args.model, "model"), f"blocks.{args.layer}.hook_resid_post"
    results: dict[str, Any] = {}
    for dtype in ("float32", "bfloat16"):
        config = SubjectConfig.model_validate({"model": args.model, "device": "cpu", "dtype": dtype})
        subject, plain = load_subject(config, folder, hook), cut_off(folder, args.layer, dtype)
        for length in (256, 1024):
            tokens = torch.randint(5, 40_000, (TOKENS // length, length), generator=torch.Generator().manual_seed(0))
            ways = {"hook": subject.activations, "bridge": by_bridge(subject)}
            if length == 256:
                ways["compiled"] = load_subject(config.model_copy(update={"compile": True}), folder, hook).activations
            for way, run in ways.items():
                results[f"{way}, rows of {length}, {dtype}"] = measured = ratio(run, plain, tokens, args.rounds)
                print(f"{way}, rows of {length}, {dtype}: {measured}", flush=True)
    bars = {name: [value["ratio"], BAR] for name, value in results.items() if name.startswith("hook")}
    met = all(value <= bar for value, bar in bars.values())
    command = " ".join(["python", *sys.argv])
    report = {"command": command, "threads": torch.get_num_threads(), "hook": hook, "results": results, "bars": bars}
    print(json.dumps(bars, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report | {"met": met}, indent=1) + "\n")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
