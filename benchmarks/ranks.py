"""Training on several ranks: is it the SAE of one process, and how long does it take?

    python benchmarks/ranks.py [--ranks 1 2] [--device cpu] [--activations FILE] [--tokens 400_000] [--width 2048]

Each architecture is trained by one process as usual, and then by each number of `--ranks`; 1 is a group of
torch.distributed with one rank in it, so that a single GPU has NCCL in the way too. Without numbers: 1, and all GPUs.
FILE is activations.npy as a run leaves it in its store; without it activations are planted, 512 directions of which 8
are in a token. Explained variance is of 8,192 tokens held out; cosines are of each decoder row to that which the same
latent has by one process. What the order of sums alone does is measured too: by one process, the rows of each batch in
reverse. Exits 1 where ranks are further apart in explained variance than .005.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autointerp.sae import SAE, ArraySource, TrainConfig, check_sae, load_sae, train_sae
from autointerp.sae.source import ActivationSource
from autointerp.sae.spawn import Tell, run_ranks

ARCHITECTURES = ("topk", "batchtopk", "matryoshka", "jumprelu", "relu")
HELD, APART = 8192, 5e-3


def planted(n: int, d: int = 288, directions: int = 512, active: int = 8) -> np.ndarray:
    """[n, d] float16: sums of a few directions, each with a strength."""
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(directions, d)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    chosen, strength = rng.integers(directions, size=(n, active)), rng.uniform(1, 3, (n, active)).astype(np.float32)
    return np.concatenate(
        [np.einsum("na,nad->nd", s, unit[c]) for c, s in zip(np.split(chosen, 64), np.split(strength, 64))]
    ).astype(np.float16)


class Reversed:
    """The same batches, their rows from the last to the first."""

    def __init__(self, source: ArraySource) -> None:
        self.source, self.d_in = source, source.d_in

    def batches(self, seed: int, start_step: int, batch_size: int) -> Iterator[torch.Tensor]:
        for batch in self.source.batches(seed, start_step, batch_size):
            yield batch.flip(0)


def in_group(source: ActivationSource, config: TrainConfig, folder: str, device: str, tell: Tell) -> None:
    train_sae(source, config, folder, device=device)


def trained(source: ActivationSource, config: TrainConfig, ranks: int, device: str) -> tuple[SAE, float]:
    """The SAE of a number of ranks (0: of one process as usual), and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        if ranks == 1:
            run_ranks(partial(in_group, source, config, folder), 1, device, lambda *_: None)
        else:
            train_sae(source, config.model_copy(update={"ranks": max(1, ranks)}), folder, device=device)
        seconds = json.loads((Path(folder) / "train.json").read_text())["figures"]["seconds"]
        return load_sae(folder), seconds


def compare(source: ArraySource, held_out: torch.Tensor, config: TrainConfig, args: Any) -> dict[str, Any]:
    alone, seconds = trained(source, config, 0, args.device)
    explained = check_sae(alone, held_out).explained_variance
    report: dict[str, Any] = {"one process": {"explained_variance": explained, "seconds": seconds}}
    ways: dict[str, tuple[ActivationSource, int]] = {"one process, rows in reverse": (Reversed(source), 0)}
    for name, (given, ranks) in (ways | {f"ranks {ranks}": (source, ranks) for ranks in args.ranks}).items():
        sae, seconds = trained(given, config, ranks, args.device)
        check = check_sae(sae, held_out)
        cosines = torch.nn.functional.cosine_similarity(alone.W_dec, sae.W_dec)
        report[name] = {
            "explained_variance": check.explained_variance,
            "apart": abs(check.explained_variance - explained),
            "l0": check.l0,
            "cosine_median": float(cosines.median()),
            "cosine_least": float(cosines.min()),
            "seconds": seconds,
        }
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=sorted({1, max(1, torch.cuda.device_count())}))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--activations", type=Path)
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = np.load(args.activations, mmap_mode="r") if args.activations else planted(1 << 18)
    source, held_out = ArraySource(rows).hold_out(HELD)
    shape = {"d_sae": args.width, "k": 32, "tokens": args.tokens, "batch_size": 4096}
    command = " ".join(["python benchmarks/ranks.py", *sys.argv[1:]])
    report: dict[str, Any] = {"command": command, "threads": torch.get_num_threads()}
    started = time.perf_counter()
    for architecture in ARCHITECTURES:
        steered = {"target_l0": 32.0} if architecture == "relu" else {}
        config = TrainConfig.model_validate(shape | {"architecture": architecture} | steered)
        report[architecture] = compare(source, held_out.float(), config, args)
        print(architecture, json.dumps(report[architecture]), flush=True)
    report["seconds"] = round(time.perf_counter() - started, 1)
    worst = max(
        report[architecture][f"ranks {ranks}"]["apart"] for architecture in ARCHITECTURES for ranks in args.ranks
    )
    report["limits"] = [{"what": "explained variance apart", "value": worst, "limit": APART, "met": worst <= APART}]
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    return int(worst > APART)


if __name__ == "__main__":
    sys.exit(main())
