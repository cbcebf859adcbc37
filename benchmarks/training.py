"""SAE training: against sae-lens' own trainer, what each penalty costs, and how busy a GPU is.

    python benchmarks/training.py --activations FILE [--tokens 1_000_000] [--out results/reference/training.json]
    python benchmarks/training.py --gpu [--size 32768 2304]
    python benchmarks/training.py --stream [--tokens 400_000] [--out results/reference/streaming.json]
    python benchmarks/training.py --architectures --activations FILE [--out results/reference/architectures.json]

FILE is activations.npy [tokens, d_in], as `autointerp run train-demo` leaves it in its store (stage `activations`), of
stories15M. Both trainers see the same batches in the same order, on the same threads; explained variance is measured
on the same held-out tokens by the same code. sae-lens gets its AuxK, with dead latents counted over as many tokens as
ours, our learning rate's fall at the end, its input scaling, and autocast to bfloat16 where a few steps of it are
faster here. Costs of penalties are processor seconds of steps in turn with steps without. Exits 1 where a limit is
missed. --stream trains on stories15M's own activations from a file and from the subject, on the same tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autointerp.activations.dense import harvest_dense
from autointerp.activations.stream import CorpusStream
from autointerp.artifacts import Corpus, CorpusInfo
from autointerp.catalog import resolve
from autointerp.config import SubjectConfig
from autointerp.progress import Progress
from autointerp.sae import ArraySource, SaeCheck, StreamSource, TrainConfig, check_sae, load_sae, train_sae
from autointerp.sae.penalties import PENALTIES
from autointerp.sae.source import ActivationSource
from autointerp.subject import load_subject

WIDTH, K, BATCH = 4096, 32, 4096
LRS = (3e-4, 2e-3, 6e-3, 1.2e-2)  # sae-lens' default, and others that suit so short a training better
SPEED, COST, DEAD, BUSY, APART, STEP = 1.5, 1.10, 0.05, 0.40, 0.003, 1.5


class Timed:
    """A source that notes the time at which each batch is asked for: differences are the steps' durations."""

    def __init__(self, source: Any, clock: Any = time.process_time) -> None:
        self.source, self.clock, self.d_in = source, clock, source.d_in
        self.asked: list[float] = []

    def batches(self, seed: int, start_step: int, batch_size: int) -> Iterator[torch.Tensor]:
        self.asked.clear()  # the inputs' statistics are taken first
        for batch in self.source.batches(seed, start_step, batch_size):
            self.asked.append(self.clock())
            yield batch


def ours(
    source: ActivationSource, held_out: torch.Tensor, tokens: int, threshold: float | None = None, **options: Any
) -> dict[str, float]:
    config = TrainConfig.model_validate(
        {"d_sae": WIDTH, "k": K, "tokens": tokens, "batch_size": BATCH, "checkpoint_every": 10**9} | options
    )
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        sae = train_sae(source, config, folder)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    check = check_sae(sae, held_out, outlier_threshold=threshold)
    return figures(check, config.steps * config.batch_size, wall, cpu, config.peak_lr)


def figures(check: SaeCheck, tokens: int, wall: float, cpu: float, lr: float) -> dict[str, float]:
    apart = {"explained_variance_with_outliers": check.with_outliers[1]} if check.outlying else {}
    return {
        "explained_variance": check.explained_variance,
        "l0": check.l0,
        "dead_fraction": check.dead_fraction,
        "tokens_per_s": tokens / wall,
        "tokens_per_cpu_s": tokens / cpu,
        "lr": lr,
        **apart,
    }


def theirs(
    source: ArraySource,
    held_out: torch.Tensor,
    tokens: int,
    lr: float,
    autocast: bool,
    threshold: float | None = None,
) -> dict[str, float]:
    from sae_lens import SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig  # type: ignore
    from sae_lens.config import SAETrainerConfig  # type: ignore

    steps = tokens // BATCH
    alike = TrainConfig.model_validate({"d_sae": WIDTH, "k": K, "tokens": tokens, "batch_size": BATCH})
    torch.manual_seed(0)
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=source.d_in, d_sae=WIDTH, k=K, device="cpu", normalize_activations="expected_average_only_in"
        )
    )
    config = SAETrainerConfig(
        total_training_samples=steps * BATCH,
        train_batch_size_samples=BATCH,
        lr=lr,
        lr_end=lr / 10,  # what its runner sets; the constant schedule's decay goes to 0
        lr_decay_steps=int(alike.decay * steps),
        autocast=autocast,
        dead_feature_window=max(1, alike.dead_after_tokens // BATCH),
        n_batches_for_norm_estimate=1,
    )

    # `fit` takes a batch for the inputs' norm: the first is shown twice, so that both train on the same ones
    def batches() -> Iterator[torch.Tensor]:
        yield next(source.batches(0, 0, BATCH)).float()
        for batch in source.batches(0, 0, BATCH):
            yield batch.float()

    wall, cpu = time.perf_counter(), time.process_time()
    sae = SAETrainer(config, sae, batches()).fit()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        check = check_sae(load_sae(folder), held_out, outlier_threshold=threshold)
    return figures(check, steps * BATCH, wall, cpu, lr)


def compare(activations: Path, tokens: int, held: int) -> tuple[dict[str, Any], list[tuple[str, float, str, float]]]:
    source, held_out = ArraySource(np.load(activations, mmap_mode="r")).hold_out(held)
    held_out = held_out.float()
    few = 3 * BATCH
    autocast = max((True, False), key=lambda on: theirs(source, held_out[:BATCH], few, 3e-4, on)["tokens_per_cpu_s"])
    runs = {"autointerp": ours(source, held_out, tokens)}
    runs["autointerp, no AuxK"] = ours(source, held_out, tokens, aux_k=0)
    for lr in LRS:
        runs[f"autointerp, lr {lr:g}"] = ours(source, held_out, tokens, lr=lr)
        runs[f"sae-lens, lr {lr:g}"] = theirs(source, held_out, tokens, lr, autocast)
    print(f"{'':28} {'EV':>7} {'L0':>6} {'dead':>6} {'tokens/s':>9} {'a CPU-s':>9} {'lr':>8}")
    for name, run in runs.items():
        ev, l0, dead, speed, cpu, rate = run.values()
        print(f"{name:28} {ev:7.4f} {l0:6.1f} {dead:6.1%} {speed:9,.0f} {cpu:9,.0f} {rate:8.1e}")
    own = runs["autointerp"]
    pairs = {lr: (runs[f"autointerp, lr {lr:g}"], runs[f"sae-lens, lr {lr:g}"]) for lr in LRS}
    # Equal rates are not equal steps: our decoder's rows have length 1, theirs start at .1. So also: best against best.
    best = [max(side, key=lambda run: run["explained_variance"]) for side in zip(*pairs.values())]
    gains = [("own defaults", own, pairs[LRS[0]][1])] + [(f"lr {lr:g}", *pair) for lr, pair in pairs.items()]
    gains.append(("each at its best rate", *best))
    faster = min(a[key] / b[key] for a, b in pairs.values() for key in ("tokens_per_s", "tokens_per_cpu_s"))
    bars = [
        (f"explained variance less sae-lens', {at}", a["explained_variance"] - b["explained_variance"], "≥", 0.0)
        for at, a, b in gains
    ]
    bars += [
        ("tokens a second over sae-lens', by wall and CPU", faster, "≥", SPEED),
        ("silent latents on held-out tokens", own["dead_fraction"], "≤", DEAD),
    ]
    return {"tokens": tokens, "held_out": held, "sae_lens_autocast": autocast, "runs": runs}, bars


def step_seconds(source: Timed, width: int, steps: int, penalty: dict[str, Any] | None) -> float:
    """Processor seconds of a step, the mean over whole turns of five after the first turn."""
    config = {"d_sae": width, "k": K, "tokens": steps * BATCH, "batch_size": BATCH, "log_every": 10**9}
    with tempfile.TemporaryDirectory() as folder:
        train_sae(source, TrainConfig.model_validate(config | {"penalty": penalty}), folder)  # type: ignore[arg-type]
    turns = np.diff(source.asked[::5])[1:]
    return float(np.median(turns)) / 5


def costs(sizes: dict[tuple[int, int], list[str]], steps: int, rounds: int) -> tuple[dict[str, Any], list[Any]]:
    found: dict[str, Any] = {}
    bars = []
    for (width, d), kinds in sizes.items():
        rng = np.random.default_rng(0)
        rows = (rng.normal(size=(4 * BATCH, 64)) @ rng.normal(size=(64, d))).astype(np.float32)
        source = Timed(ArraySource(rows))
        step_seconds(source, width, 11, None)
        for kind in kinds:
            pairs = [
                (step_seconds(source, width, steps, None), step_seconds(source, width, steps, {"kind": kind}))
                for _ in range(rounds if kind == "chunk_max" else 1)
            ]
            ratio = statistics.median(with_it / without for without, with_it in pairs)
            name = f"{kind} at {width} x {d}"
            found[name] = {"ratio": ratio, "step_cpu_s": statistics.median(without for without, _ in pairs)}
            if kind == "chunk_max":
                bars.append((f"step with {name} / without", ratio, "≤", COST))
            print(f"{name:34} {found[name]['step_cpu_s']:.3f} CPU-s a step, with it × {ratio:.3f}", flush=True)
    return found, bars


def gpu(width: int, d: int, batch: int) -> tuple[dict[str, Any], list[Any]]:
    """Multiplications of the dense TopK SAE's step (two products forwards, three backwards: 10 · batch · width · d
    operations) a second, against those of one bfloat16 product of the encoder's shape."""
    steps = 120
    generator = torch.Generator("cuda").manual_seed(0)
    basis = torch.randn(256, d, device="cuda", generator=generator)
    chunk = torch.randn(4 * batch, 256, device="cuda", generator=generator).relu() @ basis
    source = Timed(StreamSource(lambda i: chunk, d_in=d, rows=4 * batch, buffer_chunks=2), _synchronised)
    config = {"d_sae": width, "k": 64, "tokens": steps * batch, "batch_size": batch, "log_every": 50}
    with tempfile.TemporaryDirectory() as folder:
        train_sae(source, TrainConfig.model_validate(config | {"checkpoint_every": 10**9}), folder, device="cuda")  # type: ignore[arg-type]
    step = (source.asked[-1] - source.asked[40]) / (len(source.asked) - 41)
    x, w = (torch.randn(rows, d, device="cuda", dtype=torch.bfloat16) for rows in (batch, width))
    out, times = torch.empty(batch, width, device="cuda", dtype=torch.bfloat16), []
    for _ in range(30):
        start = _synchronised()
        for _ in range(10):
            torch.mm(x, w.T, out=out)
        times.append((_synchronised() - start) / 10)
    achieved, product = 10 * batch * width * d / step, 2 * batch * width * d / statistics.median(times)
    result = {
        "device": torch.cuda.get_device_name(),
        "size": [width, d, batch],
        "step_s": step,
        "training_tflops": achieved / 1e12,
        "product_tflops": product / 1e12,
    }
    print(json.dumps(result, indent=1))
    return result, [("training FLOP/s over those of a bfloat16 product", achieved / product, "≥", BUSY)]


def streamed(tokens: int) -> tuple[dict[str, Any], list[Any]]:
    """Explained variance on held-out text of one training from a file of activations and one from the subject."""
    subject = load_subject(
        SubjectConfig(model="stories15m", device="cpu"), resolve("stories15m", "model"), "blocks.0.hook_resid_post"
    )
    generator, rows = torch.Generator().manual_seed(0), []
    for _ in range(8):  # text of the model's own, so that its activations are the usual ones
        start = torch.full((64, 1), subject.bos_id or 1)
        made = subject.forward.plain.model.generate(
            start, do_sample=True, max_new_tokens=95, min_new_tokens=95, pad_token_id=0
        )
        rows.append(made)
    text = torch.cat(rows)[torch.randperm(512, generator=generator)].numpy()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        info = CorpusInfo("sampled", "stories15m", subject.bos_id, 96, text.size, len(text), len(text), "")
        Corpus.save(place, info, text.ravel(), np.arange(len(text) + 1) * 96, np.arange(len(text)), np.zeros(len(text)))
        corpus, last = Corpus(place), len(text) - 64
        stream = CorpusStream(corpus, subject.activations, last, seed=0, batch_tokens=8192, device="cpu")
        harvest_dense(
            corpus, subject.activations, subject.d_hook, place,
            batch_tokens=8192, device="cpu", bar=Progress("activations", None, "tokens"),
        )  # fmt: skip
        stored = ArraySource(np.load(place / "activations.npy")[: stream.tokens])
        live = StreamSource(stream.chunk, d_in=subject.d_hook, rows=stream.rows, buffer_chunks=8)
        held_out, options = stream.held_out().float(), {"d_sae": 1024, "k": 16, "batch_size": 1024}
        runs = {
            "from a file": ours(stored, held_out, tokens, **options),
            "streamed": ours(live, held_out, tokens, **options),
        }
    print(json.dumps(runs, indent=1))
    apart = abs(runs["streamed"]["explained_variance"] - runs["from a file"]["explained_variance"])
    return runs, [("explained variance, streamed and from a file, apart", apart, "≤", APART)]


def architectures(file: Path, tokens: int, held_out: int) -> tuple[dict[str, Any], list[Any]]:
    """Processor seconds of a whole training of each architecture over those of TopK, on the same real tokens: kinds
    that have to come down to their L0 spend their first steps with far more latents on."""
    source, rows = ArraySource(np.load(file, mmap_mode="r")).hold_out(held_out)
    names = ("topk", "batchtopk", "matryoshka", "jumprelu")
    runs = {name: ours(source, rows.float(), tokens, architecture=name) for name in names}
    over = {name: runs["topk"]["tokens_per_cpu_s"] / runs[name]["tokens_per_cpu_s"] for name in names}
    print(json.dumps({"runs": runs, "over_topk": over}, indent=1))
    bars = [(f"training of {name} over that of topk", over[name], "≤", STEP) for name in names[1:]]
    return {"size": [WIDTH, source.d_in, BATCH], "tokens": tokens, "runs": runs, "over_topk": over}, bars


def _synchronised() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--activations", type=Path)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--held-out", type=int, default=50_000)
    parser.add_argument("--steps", type=int, default=26, help="of each timing of a penalty: 5 n + 1")
    parser.add_argument("--rounds", type=int, default=3, help="of timing the default penalty")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--architectures", action="store_true")
    parser.add_argument("--size", nargs=2, type=int, default=(32_768, 2_304), metavar=("WIDTH", "D"))
    parser.add_argument("--batch", type=int, default=8192, help="with --gpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    result: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "threads": torch.get_num_threads()}
    bars: list[tuple[str, float, str, float]] = []
    if args.gpu:
        result["gpu"], bars = gpu(args.size[0], args.size[1], args.batch)
    elif args.stream:
        result["streaming"], bars = streamed(args.tokens)
    elif args.architectures:
        if args.activations is None:
            parser.error("--architectures trains on --activations FILE")
        result["architectures"], bars = architectures(args.activations, args.tokens, args.held_out)
    else:
        if args.activations is not None:
            result["trainers"], bars = compare(args.activations, args.tokens, args.held_out)
        sizes = {(4096, 288): list(PENALTIES), (16384, 768): ["chunk_max"]}
        result["penalties"], more = costs(sizes, args.steps, args.rounds)
        bars += more
    result["limits"] = []
    for name, value, sign, limit in bars:
        met = value >= limit if sign == "≥" else value <= limit
        result["limits"].append({"what": name, "value": value, "limit": f"{sign} {limit}", "met": met})
        print(f"{name:52} {value:8.4f}   limit {sign} {limit:<5} {'met' if met else 'MISSED'}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return int(not all(limit["met"] for limit in result["limits"]))


if __name__ == "__main__":
    sys.exit(main())
