"""Trainings on a model with attention sinks: early, middle and late block of SmolLM2-135M, against sae-lens.

    python benchmarks/sinks.py FOLDER [--blocks 4 14 26] [--tokens 1_000_000] [--out results/reference/sinks.json]

1. FOLDER (outside the repository) gets the corpus, film reviews, and each block's activations in float16: 1.2 GB a
   million tokens and block. What is there already is used, and so are the figures of a block that was measured.
2. On each block our trainer with its defaults, and sae-lens' own at several rates, see the same batches of the same
   rows, those of usual norm (`sae.outlier_norm`). Both are measured on held-out rows, without the sinks and with them.
3. Ours once more on all rows, as it would be without `sae.outlier_norm`, with the warning that it ends with.

Limits: at most 10 % silent latents; explained variance without sinks at least sae-lens' at its best rate. Exits 1 where
one is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training import BATCH, WIDTH, K, ours, theirs

from autointerp.activations.dense import harvest_dense
from autointerp.activations.outliers import find_outliers
from autointerp.artifacts import Corpus, write_atomically
from autointerp.catalog import resolve
from autointerp.config import CorpusConfig, SaeConfig, SubjectConfig
from autointerp.evaluation.rows import held_out_of
from autointerp.progress import Progress
from autointerp.sae import ArraySource, TrainConfig, train_sae
from autointerp.subject.corpus import build_corpus
from autointerp.subject.model import load_subject

MODEL, TEXT, CONTEXT = "smollm2-135m", "imdb", 256
LRS = (3e-4, 2e-3, 6e-3)  # sae-lens' default, and others that suit so short a training better
SILENT = 0.10
ALL_ROWS = "trained on all rows"
MULTIPLE = SaeConfig.model_fields["outlier_norm"].default


def activations(folder: Path, block: int, tokens: int) -> np.ndarray:
    """[tokens, 576] float16 of one block, made where they are not there yet; what was killed goes on."""
    model = Path(resolve(MODEL, "model"))
    if not (folder / "corpus" / "corpus.json").exists():
        build_corpus(CorpusConfig(source=TEXT, tokens=tokens, context=CONTEXT), model, folder / "corpus")
    corpus, made = Corpus(folder / "corpus"), folder / f"block-{block}"
    made.mkdir(parents=True, exist_ok=True)
    if not (made / "whole").exists():
        hook = f"blocks.{block}.hook_resid_post"
        subject = load_subject(SubjectConfig(model=MODEL, dtype="bfloat16"), model, hook)
        bar = Progress(f"block {block}", corpus.info.n_tokens, "tokens")
        harvest_dense(
            corpus, subject.activations, subject.d_hook, made, batch_tokens=8192, device=str(subject.device), bar=bar
        )
        (made / "whole").touch()
    return np.load(made / "activations.npy", mmap_mode="r")


def on_all_rows(source: ArraySource, tokens: int) -> dict[str, Any]:
    """What a training says that leaves no sink out."""
    config = TrainConfig.model_validate({"d_sae": WIDTH, "k": K, "tokens": tokens, "batch_size": BATCH})
    with tempfile.TemporaryDirectory() as folder:
        train_sae(source, config, folder)
        figures = json.loads((Path(folder) / "train.json").read_text())["figures"]
    return {name: figures.get(name) for name in ("explained_variance", "dead_fraction", "warnings")}


def measure(rows: np.ndarray, tokens: int, kept: Kept) -> dict[str, Any]:
    outliers, index = find_outliers(rows, MULTIPLE)
    held = held_out_of(len(rows))
    source, held_out = ArraySource(rows, index).hold_out(held)
    held_out, at = held_out.float(), outliers.threshold
    runs = {"autointerp": kept("autointerp", lambda: ours(source, held_out, tokens, at))}

    @cache
    def autocast() -> bool:
        """Whether sae-lens is faster with it."""
        few = partial(theirs, source, held_out[:BATCH], 3 * BATCH, LRS[0])
        return max((True, False), key=lambda on: few(on)["tokens_per_cpu_s"])

    for lr in LRS:
        name = f"sae-lens, lr {lr:g}"
        runs[name] = kept(name, lambda lr=lr: theirs(source, held_out, tokens, lr, autocast(), at))
    return {
        "outliers": asdict(outliers),
        "runs": runs,
        ALL_ROWS: kept(ALL_ROWS, lambda: on_all_rows(ArraySource(rows[: len(rows) - held]), tokens)),
    }


class Kept:
    """The figures of each run of a block, in its folder: a second call goes on with the next.

    To measure a run again, take its entry out of the file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        figures = json.loads(self.file.read_text()) if self.file.exists() else {}
        if name not in figures:
            figures[name] = run()
            write_atomically(self.file, lambda path: path.write_text(json.dumps(figures)))
        return figures[name]


def bars_of(block: int, measured: dict[str, Any]) -> list[dict[str, Any]]:
    runs = dict(measured["runs"])
    own = runs.pop("autointerp")
    best = max(run["explained_variance"] for run in runs.values())
    gain = own["explained_variance"] - best
    return [
        {
            "what": f"block {block}: silent latents",
            "value": own["dead_fraction"],
            "limit": f"≤ {SILENT}",
            "met": own["dead_fraction"] <= SILENT,
        },
        {
            "what": f"block {block}: explained variance less sae-lens' best",
            "value": gain,
            "limit": "≥ 0",
            "met": gain >= 0,
        },
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", nargs="+", type=int, default=[4, 14, 26])
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of text, and presentations in each training")
    parser.add_argument("--out", type=Path, default=Path("results/reference/sinks.json"))
    args = parser.parse_args()
    blocks: dict[int, Any] = {}
    for block in args.blocks:
        rows = activations(args.folder, block, args.tokens)
        blocks[block] = measure(rows, args.tokens, Kept(args.folder / f"block-{block}" / f"runs-{args.tokens}.json"))
        share = blocks[block]["outliers"]["variance_share"]
        print(f"block {block}: {blocks[block]['outliers']['outlying']:,} sinks, {share:.1%} of the variance")
        for name, run in blocks[block]["runs"].items():
            both = run.get("explained_variance_with_outliers", run["explained_variance"])
            print(
                f"  {name:22} explained variance {run['explained_variance']:.4f} ({both:.4f} with sinks),"
                f" L0 {run['l0']:.1f}, silent {run['dead_fraction']:.1%}"
            )
        print(f"  on all rows: {blocks[block][ALL_ROWS]}", flush=True)
    limits = [bar for block, measured in blocks.items() for bar in bars_of(block, measured)]
    for bar in limits:
        print(f"{bar['what']:52} {bar['value']:8.4f}   limit {bar['limit']:<6} {'met' if bar['met'] else 'MISSED'}")
    options = f"--blocks {' '.join(map(str, args.blocks))} --tokens {args.tokens}"
    result = {
        "command": f"python benchmarks/sinks.py FOLDER {options}",
        "model": MODEL,
        "text": TEXT,
        "width": WIDTH,
        "k": K,
        "threads": torch.get_num_threads(),
        "blocks": blocks,
        "limits": limits,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    return int(not all(bar["met"] for bar in limits))


if __name__ == "__main__":
    sys.exit(main())
