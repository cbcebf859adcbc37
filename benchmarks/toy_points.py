"""Open points of toy SAEs, each asked of small ones whose features are known: one command, a few processor minutes.

python benchmarks/toy_points.py [--seeds 600:605] [--only plane] [--out results/reference/toy-points.json]

one-hot   Two one-hot sets, swept over their correlation and the dictionary's width: features, or sums of two?
plane     Data of two features that go together, in their plane, with the latents that were learned (picture only).
nearest   A penalty on each latent's nearest row, against one in which each row is the nearest of one other at most
          (the Hungarian matching of all rows to others).
tied      The encoder is the decoder transposed, against one that is learned.
stages    L1 in stages: each learns what the frozen ones before it leave over, with a weight and a size of its own.
dead      Latents that never fire, by the size of the dictionary; nothing revives them.

The SAEs of all seeds are trained at once, by Adam on a decoder of unit rows, without what `autointerp train` does for
short trainings and for dead latents; `plane` alone is trained by it. Truth is `toys.recovery`. Values are means over
seeds with their 95 % t interval.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from autointerp import stats
from autointerp.artifacts import write_atomically
from autointerp.sae.source import StreamSource
from autointerp.sae.train import train_sae
from autointerp.sae.train_config import TrainConfig
from autointerp.toys import worlds
from autointerp.toys.recovery import recovery, truth

HELD_OUT = 10_000  # tokens
BATCH = 256
World = worlds.World


@dataclass(frozen=True)
class Setting:
    """An SAE of `n` latents: TopK where `k` is given, else L1 with the weight `sparsity`."""

    n: int
    k: int | None = None
    sparsity: float = 0.2
    tied: bool = False
    penalty: float = 0.0  # weight of mean relu(cosine with the partner)²
    unique: bool = False  # partners by the Hungarian matching
    steps: int = 1500
    lr: float = 3e-3


class Batch:
    """SAEs of one setting, one a seed: all tensors begin with [seeds]."""

    def __init__(self, setting: Setting, x: Tensor) -> None:
        seeds = len(x)
        generator = torch.Generator().manual_seed(0)
        self.setting = setting
        mixed = torch.randn(seeds, setting.n, x.shape[1], generator=generator) @ x  # rows that see the data: fewer die
        self.decoder = torch.nn.functional.normalize(mixed, dim=2)
        self.encoder = self.decoder.clone()
        self.bias = torch.zeros(seeds, 1, setting.n)
        self.partners: Tensor | None = None

    def codes(self, x: Tensor) -> Tensor:
        """[s, b, d] -> [s, b, n]"""
        rows = self.decoder if self.setting.tied else self.encoder
        pre = (x @ rows.mT + self.bias).relu()
        if self.setting.k is None:
            return pre
        top = pre.topk(self.setting.k, dim=2)
        return torch.zeros_like(pre).scatter(2, top.indices, top.values)

    def train(self, sample: Callable[[int], Tensor]) -> None:
        """On batches `sample(step)` [s, b, d]."""
        learned = [self.decoder, self.bias] + ([] if self.setting.tied else [self.encoder])
        for tensor in learned:
            tensor.requires_grad_()
        optimiser = torch.optim.Adam(learned, lr=self.setting.lr, betas=(0.9, 0.99))
        for step in range(self.setting.steps):
            for group in optimiser.param_groups:
                group["lr"] = self.setting.lr * min(1.0, 2.5 * (1 - step / self.setting.steps))
            x = sample(step)
            codes = self.codes(x)
            loss = (codes @ self.decoder - x).square().sum(2).mean(1).sum()
            if self.setting.k is None:
                rising = min(1.0, 5 * (step + 1) / self.setting.steps)
                loss = loss + rising * self.setting.sparsity * codes.sum(2).mean(1).sum()
            if self.setting.penalty:
                loss = loss + self.setting.penalty * self._nearest(step).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                self.decoder /= self.decoder.norm(dim=2, keepdim=True).clamp_min(1e-8)
        for tensor in learned:
            tensor.requires_grad_(False)

    def _nearest(self, step: int) -> Tensor:
        """[s] mean over latents of relu(cosine with the partner)²; partners are found anew every tenth step."""
        if step % 10 == 0 or self.partners is None:
            rows = self.decoder.detach()
            cosines = rows @ rows.mT
            cosines.diagonal(dim1=1, dim2=2).fill_(-2.0)
            self.partners = cosines.argmax(2)
            if self.setting.unique:
                matched = [linear_sum_assignment(matrix.numpy(), maximize=True)[1] for matrix in cosines]
                self.partners = torch.from_numpy(np.stack(matched))
        other = self.decoder.gather(1, self.partners[..., None].expand_as(self.decoder))
        return (self.decoder * other).sum(2).relu().square().mean(1)


def sampler(worlds_of: Sequence[World]) -> Callable[[int], Tensor]:
    return lambda step: torch.stack([world.sample(BATCH, step + 1)[0] for world in worlds_of])  # part 0 is held out


def learned(worlds_of: Sequence[World], stages: Sequence[Setting]) -> tuple[list[Batch], Tensor, Tensor]:
    """The stages' SAEs; the codes of all [s, tokens, n] on the held-out tokens, and what these leave over."""
    batches: list[Batch] = []
    sample = sampler(worlds_of)

    def left(x: Tensor) -> Tensor:
        with torch.no_grad():
            for batch in batches:
                x = x - batch.codes(x) @ batch.decoder
        return x

    for setting in stages:
        batch = Batch(setting, left(sample(0)))
        batch.train(lambda step: left(sample(step)))
        batches.append(batch)
    x = torch.stack([world.sample(HELD_OUT, 0)[0] for world in worlds_of])
    codes = []
    with torch.no_grad():
        for batch in batches:
            codes.append(batch.codes(x))
            x = x - codes[-1] @ batch.decoder
    return batches, torch.cat(codes, 2), x


def measure(worlds_of: Sequence[World], *stages: Setting) -> dict[str, list[float]]:
    """Figures of one setting (or of its stages), each a list over seeds."""
    batches, codes, rest = learned(worlds_of, stages)
    decoders = torch.cat([batch.decoder for batch in batches], 1).numpy()
    out: dict[str, list[float]] = {}
    for i, world in enumerate(worlds_of):
        alive = ((codes[i] > 0).float().mean(0) >= 1e-3).numpy()
        features = world.features.numpy()
        known = truth(decoders[i], features, alive)
        x = world.sample(HELD_OUT, 0)[0]
        figures = {
            "composites": len(known.of_kind("composite")),
            "features": recovery(decoders[i], features, alive).recovered,
            "other": len(known.of_kind("other")),
            "dead": float((codes[i] > 0).sum(0).eq(0).float().mean()),
            "l0": float((codes[i] > 0).float().sum(1).mean()),
            "explained_variance": 1 - float(rest[i].square().sum() / (x - x.mean(0)).square().sum()),
        }
        for name, value in figures.items():
            out.setdefault(name, []).append(float(value))
    return out


def summary(values: dict[str, list[float]]) -> dict[str, Any]:
    """Each figure as [mean, low, high]; no interval where all seeds agree."""
    rows = {}
    for name, seeds in values.items():
        bounds = stats.mean_interval(seeds) or (None, None)
        rows[name] = [float(np.mean(seeds)), *bounds]
    return rows


def shown(name: str, row: dict[str, Any]) -> None:
    cells = [f"{key} {value[0]:.3g}" for key, value in row.items() if isinstance(value, list)]
    print(f"{name:44} {'  '.join(cells)}", flush=True)


# --- the points

PAIRS: dict[str, Any] = {"features": 64, "d": 64, "pairs": 12, "together": 0.5}
BASE = Setting(96)
TOGETHER = (0.25, 0.4, 0.6, 0.8, 0.95)  # .25: the sets of four are independent
WIDTHS = (4, 6, 8, 12, 16)


def one_hot(seeds: range) -> list[dict[str, Any]]:
    """All correlations of one width are trained at once."""
    rows = []
    for kind, setting in (
        ("L1", Setting(4, sparsity=0.3)),
        ("TopK, k 2", Setting(4, k=2)),
        ("TopK, k 1", Setting(4, k=1)),
    ):
        for n in WIDTHS:
            made = [worlds.two_one_hot_sets(seed, together=p) for p in TOGETHER for seed in seeds]
            values = measure(made, replace(setting, n=n, steps=1000))
            for i, p in enumerate(TOGETHER):
                part = slice(i * len(seeds), (i + 1) * len(seeds))
                figures = summary({name: seen[part] for name, seen in values.items()})
                rows.append({"kind": kind, "n": n, "together": p, **figures})
                shown(f"one-hot, {kind}, {n} latents, together {p}", rows[-1])
    return rows


@cache
def on_pairs(stages: tuple[Setting, ...], seeds: range) -> dict[str, Any]:
    return summary(measure([worlds.correlated_pairs(seed, **PAIRS) for seed in seeds], *stages))


def named(settings: Mapping[str, Sequence[Setting]], seeds: range) -> list[dict[str, Any]]:
    rows = []
    for name, stages in settings.items():
        rows.append({"name": name, **on_pairs(tuple(stages), seeds)})
        shown(name, rows[-1])
    return rows


def nearest(seeds: range) -> list[dict[str, Any]]:
    settings = {"no penalty": [BASE]}
    for weight in (0.3, 3.0):
        settings[f"nearest, weight {weight:g}"] = [replace(BASE, penalty=weight)]
        settings[f"nearest one to one, weight {weight:g}"] = [replace(BASE, penalty=weight, unique=True)]
    return named(settings, seeds)


def tied(seeds: range) -> list[dict[str, Any]]:
    topk = replace(BASE, k=2)
    settings = {"L1": [BASE], "L1, tied": [replace(BASE, tied=True)]}
    return named(settings | {"TopK, k 2": [topk], "TopK, k 2, tied": [replace(topk, tied=True)]}, seeds)


def stages(seeds: range) -> list[dict[str, Any]]:
    def stage(n: int, sparsity: float) -> Setting:
        return Setting(n, sparsity=sparsity, steps=BASE.steps // 2)

    return named(
        {
            "one stage of 96": [BASE],
            "48 + 48": [stage(48, 0.2), stage(48, 0.2)],
            "64 + 32": [stage(64, 0.2), stage(32, 0.2)],
            "64 + 32, second weight a half": [stage(64, 0.2), stage(32, 0.1)],
            "64 + 32, first weight double": [stage(64, 0.4), stage(32, 0.2)],
        },
        seeds,
    )


def dead(seeds: range) -> list[dict[str, Any]]:
    settings = {}
    for kind, setting in (("L1", replace(BASE, steps=800)), ("TopK, k 2", replace(BASE, k=2, steps=800))):
        settings |= {f"{kind}, {n} latents": [replace(setting, n=n)] for n in (32, 64, 128, 256)}
    return named(settings, seeds)


POINTS = {"one-hot": one_hot, "nearest": nearest, "tied": tied, "stages": stages, "dead": dead}


# --- pictures


def draw_one_hot(rows: list[dict[str, Any]], path: Path) -> None:
    """Composites and recovered features by correlation and width, one column of panels a kind of SAE."""
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    figure, axes = plt.subplots(2, len(kinds), figsize=(4 * len(kinds), 6.4), layout="constrained", squeeze=False)
    for column, kind in enumerate(kinds):
        for axis, key, title in zip(axes[:, column], ("composites", "features"), ("sums", "features, of 8")):
            grid = [[_value(rows, kind, n, p, key) for n in WIDTHS] for p in TOGETHER]
            axis.imshow(grid, origin="lower", cmap="Blues", vmin=0, vmax=8, aspect="auto")
            for y, line in enumerate(grid):
                for x, value in enumerate(line):
                    axis.text(x, y, f"{value:.1f}", ha="center", va="center", color="w" if value > 5 else "k")
            axis.set_xticks(range(len(WIDTHS)), WIDTHS)
            axis.set_yticks(range(len(TOGETHER)), TOGETHER)
            axis.set_title(f"{kind}: {title}", fontsize=10)
            axis.set(xlabel="latents", ylabel="chance of the same number")
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def _value(rows: list[dict[str, Any]], kind: str, n: int, p: float, key: str) -> float:
    return next(row[key][0] for row in rows if (row["kind"], row["n"], row["together"]) == (kind, n, p))


def draw_plane(path: Path, seed: int) -> None:
    """Tokens of Till's world in the plane of the two features that go together, and the latents that were learned, by
    `autointerp train`'s trainer as in benchmarks/toys.py."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(15, 7.6), layout="constrained")
    for line, varying in zip(axes, (False, True)):
        world = worlds.three_features(seed, varying=varying)
        plane = world.features[:2].T
        x, strengths = world.sample(1500, 0)
        for axis, (n, sparsity) in zip(line, ((3, 3.0), (4, 1.5), (4, 3.0), (5, 3.0))):
            sae = trained(world, n, sparsity, seed)
            alive = (sae.encode(x) > 0).float().mean(0) >= 1e-3
            colours = np.where(strengths[:, 2] > 0, "tab:orange", "0.6").tolist()
            axis.scatter(*(x @ plane).T, s=3, c=colours, alpha=0.5)
            for row, lives in zip(torch.nn.functional.normalize(sae.W_dec.detach()) @ plane, alive):
                arrow = {"arrowstyle": "->", "color": "tab:blue" if lives else "0.85", "lw": 2}
                axis.annotate("", row.tolist(), (0, 0), arrowprops=arrow)
            proportion = "varying" if varying else "fixed"
            axis.set_title(f"{n} latents, λ {sparsity:g}, {proportion} proportion", fontsize=10)
            axis.set(xlim=(-0.3, 1.7), ylim=(-0.3, 1.7), aspect="equal", xlabel="feature 1", ylabel="feature 2")
    figure.savefig(path, dpi=100, format="png")
    plt.close(figure)


@torch.no_grad()
def trained(world: World, n: int, sparsity: float, seed: int) -> Any:
    def tokens(i: int) -> Tensor:
        return world.sample(8192, i + 1)[0]

    source = StreamSource(tokens, d_in=world.features.shape[1], rows=8192, buffer_chunks=1)
    options: dict[str, Any] = {"architecture": "relu", "sparsity": sparsity, "k": 1, "d_sae": n, "seed": seed}
    schedule: dict[str, Any] = {"dtype": "float32", "batch_size": 256, "tokens": 256 * 2000, "lr": 3e-3, "decay": 0.7}
    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
        return train_sae(source, TrainConfig(**options, **schedule), Path(folder))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="600:605", help="first:after the last")
    parser.add_argument("--only", choices=[*POINTS, "plane"], help="one of the points")
    parser.add_argument("--out", type=Path, help="figures as JSON; pictures go beside it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("autointerp").setLevel(logging.ERROR)
    seeds = range(*map(int, args.seeds.split(":")))
    result: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "seeds": [seeds.start, seeds.stop]}
    began = time.process_time()
    for name, point in POINTS.items():
        if args.only in (None, name):
            result[name] = point(seeds)
    result["processor_seconds"] = round(time.process_time() - began)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
        write_atomically(args.out, lambda file: file.write_text(text))
        if "one-hot" in result:
            write_atomically(
                args.out.with_name(f"{args.out.stem}-one-hot.png"), lambda file: draw_one_hot(result["one-hot"], file)
            )
        if args.only in (None, "plane"):
            write_atomically(
                args.out.with_name(f"{args.out.stem}-plane.png"), lambda file: draw_plane(file, seeds.start)
            )
    print(f"{result['processor_seconds']} processor seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
