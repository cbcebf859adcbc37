"""One pass of the subject for four SAEs against a pass for each of them.

    OMP_NUM_THREADS=1 python benchmarks/passes.py [--tokens 65536] [--rounds 3] [--out results/reference/passes.json]

Four random TopK SAEs (k 32) on stories15M, at the outputs of four of its blocks. The harvest of all four side by side,
the four harvests alone, one forward pass to the last of the hook points, and the four encodings run in turn on the same
rows of 256 tokens, in processor seconds of one process; figures are medians over the rounds. Shards are compared byte
by byte.

Exits 1 where a shard differs or a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harvest import BATCH, CONTEXT, corpus_of, random_sae

from autointerp.activations.harvest import Harvest, harvest_shard, harvest_side_by_side
from autointerp.artifacts import Corpus
from autointerp.catalog import resolve
from autointerp.config import SubjectConfig
from autointerp.progress import Progress
from autointerp.subject import Subject, load_subject

BLOCKS, WIDTH = (1, 2, 3, 4), 2048
OVER_PARTS = 1.15  # the pass over one forward pass to the last hook point and the four encodings


def seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def wanted_at(corpus: Corpus, at: Subject) -> Harvest:
    sae = random_sae(at.d_hook, WIDTH)
    return Harvest(corpus, at.activations, sae.encode_sparse, WIDTH, at.hook.name, True, BATCH, "cpu")


def measure(tokens: int, rounds: int, scratch: Path) -> tuple[dict[str, float], bool]:
    """Median processor seconds of each part, and whether all shards are the same."""
    folder = resolve("stories15m", "model")
    subject = load_subject(SubjectConfig(model="stories15m", device="cpu"), folder, None)
    corpus = corpus_of(scratch / "corpus", tokens)
    ats = [subject.at(f"blocks.{block}.hook_resid_post") for block in BLOCKS]
    wanted, hooks = [wanted_at(corpus, at) for at in ats], [at.hook for at in ats]
    rows = torch.from_numpy(corpus.tokens[:].astype("int64")).view(-1, CONTEXT).split(BATCH // CONTEXT)
    paths = {way: [scratch / f"{way} {block}" for block in BLOCKS] for way in ("together", "alone")}
    bar, last = Progress("harvest", None, "tokens"), corpus.info.n_rows

    def alone() -> None:
        for each, path in zip(wanted, paths["alone"]):
            harvest_shard(each, 0, last, path, bar)

    def encode(acts: list[torch.Tensor]) -> None:
        for each, value in zip(wanted, acts):
            each.encode_sparse(value.flatten(0, 1))

    taken: dict[str, list[float]] = {name: [] for name in ("together", "alone", "forward", "encode")}
    with torch.inference_mode():
        for _ in range(rounds + 1):  # the first is for warmth
            read = partial(subject.activations_at, hooks=hooks)
            together = partial(harvest_side_by_side, wanted, read, 0, last, paths["together"], bar)
            taken["together"].append(seconds(together))
            taken["alone"].append(seconds(alone))
            taken["forward"].append(seconds(lambda: [ats[-1].activations(part) for part in rows]))
            made = [read(part) for part in rows]
            taken["encode"].append(seconds(lambda made=made: [encode(acts) for acts in made]))
    same = all(a.read_bytes() == b.read_bytes() for a, b in zip(paths["together"], paths["alone"]))
    return {name: round(statistics.median(figures[1:]), 3) for name, figures in taken.items()}, same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        taken, same = measure(args.tokens, args.rounds, Path(scratch))
    ratio = taken["together"] / (taken["forward"] + taken["encode"])
    report = {
        "command": " ".join(["python", *sys.argv]),
        "threads": torch.get_num_threads(),
        "processor_seconds": taken,
        "together_over_alone": round(taken["together"] / taken["alone"], 3),
        "same_shards": same,
        "bars": {"together over one forward pass and the encodings": [round(ratio, 3), OVER_PARTS]},
        "met": same and ratio <= OVER_PARTS,
    }
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    return int(not report["met"])


if __name__ == "__main__":
    sys.exit(main())
