"""What a harvest costs beyond the subject's forward pass and the encoder's product, on disk and in memory.

    python benchmarks/harvest.py [--tokens 32768] [--rounds 3] [--device cuda] [--out results/reference/harvest.json]

1. A random TopK SAE (k 32) on stories15M. Forward pass, encoder product, `encode_sparse` and the whole harvest of the
   same rows of 256 tokens run in turn, in processor seconds of one process; figures are medians over the rounds. The
   product is ``torch.mm`` of a batch into memory that is there already. Bookkeeping is the harvest with codes that were
   made before, which neither runs a subject nor encodes.
2. Peak memory and bytes a firing of a harvest of planted firings of 131,072 latents, each size in a process of its own.

Exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autointerp.activations.harvest import harvest
from autointerp.artifacts import Corpus, CorpusInfo
from autointerp.catalog import resolve
from autointerp.config import SubjectConfig
from autointerp.progress import Progress
from autointerp.sae.model import SAE, SAEConfig, Sparse
from autointerp.subject import load_subject

K, CONTEXT, BATCH = 32, 256, 8192
RATIO = {8192: 1.10, 32_768: 1.15}  # harvest over forward and product
BOOKKEEPING, BYTES, GROWTH = 2.0, 4.5, 1.05
LONGER = 8  # times the text is as long for the bookkeeping, which is quick, and a shard of 500,000 tokens the usual
SIZES = (1_000_000, 8_000_000)  # tokens whose peak memory is compared


def random_sae(d: int, width: int) -> SAE:
    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(width, d, generator=generator))
    tensors = {
        "W_enc": decoder.T.contiguous(),
        "W_dec": decoder,
        "b_enc": 0.01 * torch.ones(width),
        "b_dec": torch.zeros(d),
    }
    return SAE(SAEConfig("topk", d, width, "autointerp", "float32", True, k=K), tensors)


def corpus_of(folder: Path, tokens: int) -> Corpus:
    folder.mkdir()
    rows = tokens // CONTEXT
    text = np.random.default_rng(0).integers(3, 30_000, rows * CONTEXT)
    info = CorpusInfo("random", "random", None, CONTEXT, rows * CONTEXT, rows, rows, "")
    Corpus.save(folder, info, text, np.arange(rows + 1) * CONTEXT, np.arange(rows), np.zeros(rows))
    return Corpus(folder)


def timed(work: Callable[[], Any], device: str) -> float:
    """Processor seconds; on a GPU seconds by the clock."""
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def harvested(corpus: Corpus, read: Any, encode: Any, width: int, folder: Path, device: str = "cpu") -> None:
    harvest(
        corpus, read, encode, width, folder, hook="h", skip_bos=True, batch_tokens=BATCH, device=device,
        outlier_threshold=1e9, bar=Progress("harvest", None, "tokens"),
    )  # fmt: skip


def costs(width: int, tokens: int, rounds: int, scratch: Path, device: str = "cpu") -> dict[str, float]:
    folder = resolve("stories15m", "model")
    subject = load_subject(SubjectConfig(model="stories15m", device=device), folder, "blocks.3.hook_resid_post")
    corpus = corpus_of(scratch / "corpus", tokens)
    text = torch.from_numpy(np.asarray(corpus.tokens).astype(np.int64)).view(-1, BATCH // CONTEXT, CONTEXT)
    sae = random_sae(subject.d_model, width).to(device)
    activations = [subject.activations(batch).flatten(0, 1) for batch in text]
    codes = [sae.encode_sparse(x) for x in activations]
    room = torch.empty(BATCH, width, device=device)
    longer, known = corpus_of(scratch / "longer", LONGER * tokens), dict[str, Any]()

    def next_codes(x: torch.Tensor) -> Sparse:
        token, latent, value = next(known["codes"])
        return Sparse(token, latent.clone(), value)

    def bookkeeping() -> None:
        known["codes"] = itertools.cycle(codes)
        harvested(
            longer, lambda _: activations[0].view(-1, CONTEXT, subject.d_model), next_codes, width, out / "b", device
        )

    work = {
        "forward": lambda: [subject.activations(batch) for batch in text],
        "product": lambda: [torch.mm(x, sae.W_enc, out=room) for x in activations],
        "encode": lambda: [sae.encode_sparse(x) for x in activations],
        "harvest": lambda: harvested(corpus, subject.activations, sae.encode_sparse, width, out / "h", device),
        "bookkeeping": bookkeeping,
    }
    turns: list[dict[str, float]] = []
    out = scratch
    for number in range(rounds + 1):
        out = scratch / str(number)
        turns.append({name: timed(each, device) for name, each in work.items()})
        turns[-1]["bookkeeping"] /= LONGER
    del turns[0]  # the first is a warm-up
    thousands = tokens / 1000
    figures = {f"{name}_ms": statistics.median(turn[name] for turn in turns) / thousands * 1e3 for name in work}
    figures["ratio"] = statistics.median(turn["harvest"] / (turn["forward"] + turn["product"]) for turn in turns)
    return figures


def at_size(tokens: int) -> list[float]:
    """GB of this process after a harvest of so many tokens, with codes planted (every k-th latent from a random one),
    and bytes a firing on disk."""
    width, batch = 131_072, BATCH // CONTEXT * CONTEXT
    generator = np.random.default_rng(0)
    steps = torch.arange(K) * (width // K)
    values = torch.rand(batch, K) + 0.1

    def encode(x: torch.Tensor) -> Sparse:
        first = torch.from_numpy(generator.integers(0, width, len(x)))
        latent = (first[:, None] + steps).remainder_(width).flatten()
        return Sparse(torch.arange(len(x)).repeat_interleave(K), latent, values[: len(x)].flatten())

    with tempfile.TemporaryDirectory() as scratch:
        corpus = corpus_of(Path(scratch) / "corpus", tokens)
        harvested(corpus, lambda tokens: torch.ones(*tokens.shape, 4), encode, width, Path(scratch) / "out")
        size = sum(file.stat().st_size for file in (Path(scratch) / "out").iterdir())
    return [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, size / (corpus.info.n_tokens * K)]


def at_sizes() -> dict[str, list[float]]:
    measured = {}
    for tokens in SIZES:
        command = [sys.executable, __file__, "--peak", str(tokens)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        measured[str(tokens)] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32_768, help="a multiple of 8,192")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--widths", type=int, nargs="+", default=[8192, 32_768, 131_072])
    parser.add_argument("--device", default="cpu", help="cpu, by processor seconds; cuda, by the clock")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(json.dumps(at_size(args.peak)))
        return 0
    results: dict[str, Any] = {}
    bars: dict[str, list[float]] = {}
    for width in args.widths:
        with tempfile.TemporaryDirectory() as scratch:
            results[str(width)] = figures = costs(width, args.tokens, args.rounds, Path(scratch), args.device)
        print(width, json.dumps(figures), flush=True)
        bars[f"bookkeeping, ms a 1,000 tokens, width {width}"] = [figures["bookkeeping_ms"], BOOKKEEPING]
        if width in RATIO:
            bars[f"harvest over forward and product, width {width}"] = [figures["ratio"], RATIO[width]]
    if args.device == "cpu":
        results["peak_gb_and_bytes_a_firing"] = measured = at_sizes()
        small, large = (measured[str(size)] for size in SIZES)
        bars["peak memory at 8M over 1M tokens"] = [large[0] / small[0], GROWTH]
        bars["bytes a firing, width 131072"] = [large[1], BYTES]
    met = all(value <= bar for value, bar in bars.values())
    print(json.dumps(bars, indent=1))
    report = {"command": " ".join(["python", *sys.argv]), "threads": torch.get_num_threads(), "results": results}
    if args.out:
        args.out.write_text(json.dumps(report | {"bars": bars, "met": met}, indent=1) + "\n")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
