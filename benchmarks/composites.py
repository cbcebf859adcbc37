"""The composite check against planted dictionaries, and its time against its own matrix product.

python benchmarks/composites.py [--seeds 100:110] [--device cpu] [--out results/reference/composites-planted.json]
python benchmarks/composites.py --structures --seeds 400:410 --out results/reference/composites-structures.json
python benchmarks/composites.py --speed 65536 768 [--device cuda] [--out results/reference/composites-speed.json]
python benchmarks/composites.py --speed 16384 768 [--out results/reference/composites-speed.json]
python benchmarks/composites.py --inject pipelines/saes/* [--out results/reference/composites-inject.json]

Precision counts every latent labelled composite or possible; a duplicate of a composite is right too.
Recall and the exact pair are up to duplicates: a part's copy names the same direction. The thresholds
were chosen on seeds 0 to 11. `--structures` are dictionaries with what only looks like sums: circles,
subspaces, outlier dimensions, antipodes, steep spectra; and sums of four. `told` is the share of the
seeds in which the check did not say that it cannot tell; the other figures are of those.

Each dictionary of each seed is printed and kept in `--out` when it is done; `--resume` goes on from there.

`--inject` is the positive control of `autointerp composites --inject 50` on each SAE, with five seeds, and on a
random dictionary of as many rows; the bar is of the random ones.

`--speed` adds its figures to the list in its file. The product it is measured against is that of float32,
2n²d operations, in blocks of the check's own size; the check itself forms it in fewer bits where the machine
is faster at those. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autointerp import stats
from autointerp.artifacts import write_atomically
from autointerp.composites import find_composites
from autointerp.composites.injection import inject
from autointerp.composites.neighbours import BLOCK, unit
from autointerp.composites.neighbours import _few_bits as few_bits
from autointerp.sae.decoders import load_decoders
from autointerp.toys.planted import PlantedDictionary, plant

CONE: dict[str, Any] = {"power": 1.0, "mean": 0.5}  # pairs of random rows: cosine .20 ± .16, isotropic .00 ± .04
STRONG: dict[str, Any] = {"power": 0.7, "mean": 1.0}  # .50 ± .06
ISOTROPIC_BARS = {"precision": 0.99, "recall": 0.99, "exact_pair": 0.95}
CONE_BARS = {"precision": 0.95, "recall": 0.90, "exact_pair": 0.88}
NONE_BARS = {"false_per_1000": 1.0}
DICTIONARIES: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    **{f"isotropic, noise {noise}": ({"noise": noise}, ISOTROPIC_BARS) for noise in (0.0, 0.2, 0.4)},
    "isotropic, a fifth of them triples, noise 0.2": ({"noise": 0.2, "triples": 0.2}, ISOTROPIC_BARS),
    **{f"cone, noise {noise}": ({"noise": noise, **CONE}, CONE_BARS) for noise in (0.0, 0.2, 0.4)},
    "cone of strong mean, noise 0.4": ({"noise": 0.4, **STRONG}, CONE_BARS),
    "isotropic, none planted": ({"composites": 0.0}, NONE_BARS),
    "cone, none planted": ({"composites": 0.0, **CONE}, NONE_BARS),
    "cone of strong mean, none planted": ({"composites": 0.0, **STRONG}, NONE_BARS),
}

CIRCLES: dict[str, Any] = {"circles": tuple(range(5, 25))}
SPACES: dict[str, Any] = {"subspaces": tuple((r, m) for r in (2, 3, 4, 5, 6) for m in (3 * r, 5 * r, 30))}
MANY: dict[str, Any] = {**CIRCLES, **SPACES, "spread": 0.1}
ALONE: dict[str, Any] = {"composites": 0.0}
SPACE_BARS = {"subspace_flagged": 0.02, "subspace_labelled": 0.90}
SUMS_BARS = {"precision": 0.97, "recall": 0.90}
STRUCTURES: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "circles of 5 to 24": ({**ALONE, **CIRCLES}, SPACE_BARS),
    "circles, noise 0.2": ({**ALONE, **CIRCLES, "spread": 0.2}, SPACE_BARS),
    "subspaces of rank 2 to 6": ({**ALONE, **SPACES}, SPACE_BARS),
    "subspaces, noise 0.2": ({**ALONE, **SPACES, "spread": 0.2}, SPACE_BARS),
    "both beside sums": ({**MANY, "noise": 0.3}, {**SPACE_BARS, "recall": 0.90}),
    "both beside sums, cone": ({**MANY, "noise": 0.3, **CONE}, {**SPACE_BARS, "recall": 0.90}),
    "1 in 20 loads 3 dimensions x 10": ({"loaded": (0.05, 10.0), "noise": 0.3}, SUMS_BARS),
    "1 in 20 loads 3 dimensions x 30": ({"loaded": (0.05, 30.0), "noise": 0.3}, SUMS_BARS),
    "the same, none planted": ({**ALONE, "loaded": (0.05, 30.0)}, NONE_BARS),
    "3 dimensions x 10": ({"stretched": (3, 10.0), "noise": 0.3}, SUMS_BARS),
    "3 dimensions x 30": ({"stretched": (3, 30.0), "noise": 0.3}, SUMS_BARS),
    "3 dimensions x 30, none planted": ({**ALONE, "stretched": (3, 30.0)}, NONE_BARS),
    "antipodes": ({"antipodes": 0.05, "noise": 0.3}, SUMS_BARS),
    "antipodes, none planted": ({**ALONE, "antipodes": 0.05}, NONE_BARS),
    **{f"power {p}, noise {s}": ({"power": p, "noise": s}, SUMS_BARS) for p in (1.0, 1.5, 2.0) for s in (0.0, 0.2)},
    **{f"power 2.5, noise {s}": ({"power": 2.5, "noise": s}, {"precision": 0.9}) for s in (0.0, 0.2)},
    **{f"power {p}, none planted": ({**ALONE, "power": p}, NONE_BARS) for p in (1.0, 1.5, 2.0, 2.5)},
    "sums of four": ({"fours": 1.0, "noise": 0.0, "hidden": 0.0}, {"named": 0.8}),
    "sums of four, noise 0.2": ({"fours": 1.0, "noise": 0.2, "hidden": 0.0}, {"named": 0.8}),
    "sums of sums": ({"nested": 0.3, "noise": 0.2}, SUMS_BARS),
    "all of these": (
        {**MANY, "noise": 0.2, "antipodes": 0.03, "loaded": (0.03, 20.0), "nested": 0.1, "fours": 0.1, "triples": 0.1},
        {**SPACE_BARS, "recall": 0.90},
    ),
}
AT_MOST = {"false_per_1000", "subspace_flagged"}  # their bars


MEASURES = {  # and the headings of their columns
    "precision": "P",
    "recall": "R det",  # of composites whose parts are all in the dictionary
    "recall_all": "R all",
    "exact_pair": "exact",
    "named": "named",
    "false_per_1000": "f/1000",
    "subspace_flagged": "s flag",
    "subspace_labelled": "s label",
    "told": "told",
}


def measure(planted: PlantedDictionary, labels: tuple[str, ...], table: Any) -> dict[str, float | None]:
    """Precision, recall of the detectable and of all, exact parts among the found and among the detectable, false flags
    per 1,000 rows; of the members of circles and subspaces the shares that are flagged and that are labelled so."""
    flagged = [int(i) for i in np.nonzero(table["label"].isin(labels).to_numpy())[0]]
    truth = set(planted.of_kind("composite"))
    detectable = {row for row in truth if planted.detectable(row)}
    found = {planted.original(row): row for row in flagged}
    right = [row for row in flagged if planted.original(row) in truth]
    named = [row for row in detectable if row in found]
    exact = [
        row
        for row in named
        if {planted.original(part) for part in table["constituents"][found[row]]}
        == {planted.original(part) for part in planted.parts[row]}
    ]
    label, members = table["label"].to_numpy(), planted.of_kind("subspace")
    if table["failure"].str.startswith("cannot tell").any():
        return dict.fromkeys(MEASURES) | {"told": 0.0}
    return {
        "precision": len(right) / len(flagged) if flagged else None,
        "recall": len(named) / len(detectable) if detectable else None,
        "recall_all": len(truth & found.keys()) / len(truth) if truth else None,
        "exact_pair": len(exact) / len(named) if named else None,
        "named": len(exact) / len(detectable) if detectable else None,
        "false_per_1000": 1000 * (len(flagged) - len(right)) / len(planted.kinds),
        "subspace_flagged": float(np.isin(label[members], labels).mean()) if members else None,
        "subspace_labelled": float((label[members] == "subspace").mean()) if members else None,
        "told": 1.0,
    }


LABELS = (("composite", "possible"), ("composite",))
Kinds = dict[str, tuple[dict[str, Any], dict[str, float]]]


def accuracy(kinds: Kinds, seeds: range, device: str, n: int, d: int, out: Path | None, resume: bool) -> dict[str, Any]:
    """The measures of each dictionary and seed, and over the seeds; kept in `out` after each dictionary of each seed.
    `resume`: what `out` holds already of dictionaries with the same options is not measured again."""
    kept = json.loads(out.read_text()) if resume and out is not None and out.exists() else {}
    same = (kept.get("n"), kept.get("d")) == (n, d)
    result: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "n": n, "d": d, "dictionaries": {}}
    for name, (options, bars) in kinds.items():
        before = kept["dictionaries"].get(name, {}) if same else {}
        runs = before.get("runs", {}) if before.get("options") == json.loads(json.dumps(options)) else {}
        result["dictionaries"][name] = {"options": options, "bars": bars, "runs": runs}
    for seed in seeds:
        print(f"\nseed {seed:37} {' '.join(f'{name:>7}' for name in MEASURES.values())}  bars")
        for name, entry in result["dictionaries"].items():
            if str(seed) not in entry["runs"]:
                planted = plant(n, d, seed=seed, **entry["options"])
                table = find_composites(planted.rows, device=device)
                entry["runs"][str(seed)] = {" or ".join(labels): measure(planted, labels, table) for labels in LABELS}
            shown = entry["runs"][str(seed)][" or ".join(LABELS[0])]
            print(_line(name, shown, entry["bars"]), flush=True)
            _conclude(entry)
            if out is not None:
                write_atomically(out, lambda file: file.write_text(json.dumps(result, indent=1) + "\n"))
    print(f"\n{'mean of the seeds':42} {' '.join(f'{name:>7}' for name in MEASURES.values())}  bars")
    for name, entry in result["dictionaries"].items():
        for labels in LABELS:
            print(_line(f"{name}: {labels[-1]}", entry[" or ".join(labels)]["mean"], entry["bars"]))
    return result


def _line(name: str, values: dict[str, float | None], bars: dict[str, float]) -> str:
    shown = " ".join(f"{'-' if v is None else format(v, '.3f'):>7}" for v in values.values())
    return f"{name:42} {shown}  {'met' if _met(values, bars) else 'MISSED'}"


def _conclude(entry: dict[str, Any]) -> None:
    """Adds to a dictionary's entry its mean and worst seed for each set of labels."""
    for labels in map(" or ".join, LABELS):
        runs = [run[labels] for run in entry["runs"].values()]
        values = {key: [v for run in runs if (v := run[key]) is not None] for key in MEASURES}
        mean = {key: float(np.mean(v)) if v else None for key, v in values.items()}
        worst = {key: (max(v) if key in AT_MOST else min(v)) if v else None for key, v in values.items()}
        met = _met(mean, entry["bars"])
        entry[labels] = {"seeds": len(runs), "mean": mean, "worst_seed": worst, "bars_met": met}


def _met(values: dict[str, float | None], bars: dict[str, float]) -> bool:
    return values["told"] == 0.0 or all(_meets(key, values[key], bar) for key, bar in bars.items())


def _meets(key: str, value: float | None, bar: float) -> bool:
    return value is not None and (value <= bar if key in AT_MOST else value >= bar)


# Processor seconds of all threads count on a CPU, which others may share; the time on the clock on a GPU.
SPEED_BARS: dict[tuple[int, int], dict[str, float]] = {
    (65_536, 768): {"ratio": 1.3, "peak_rss_gb": 2.0},
    (16_384, 768): {"check_s": 15.0},
}


def speed(n: int, d: int, device: str) -> dict[str, Any]:
    """One run of the whole check and one of the blocked product Z Zᵀ alone, same block, same machine."""
    planted = plant(min(n, 4096), d, seed=0, noise=0.3, **CONE).rows
    rows = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[: len(planted)] = planted
    synchronise = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    find_composites(rows[: min(n, 4096)], device=device)  # loads the libraries
    synchronise()
    start, cpu = time.perf_counter(), time.process_time()
    table = find_composites(rows, device=device)
    synchronise()
    check, check_cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Z = unit(torch.from_numpy(rows).to(device))

    def multiply(dtype: torch.dtype) -> tuple[float, float]:
        X, out = Z.to(dtype), torch.empty(BLOCK, n, dtype=dtype, device=device)
        torch.mm(X[:BLOCK], X.T, out=out[: min(BLOCK, n)])
        synchronise()
        start, cpu = time.perf_counter(), time.process_time()
        for at in range(0, n, BLOCK):
            block = X[at : at + BLOCK]
            torch.mm(block, X.T, out=out[: len(block)])
        synchronise()
        return time.perf_counter() - start, time.process_time() - cpu

    product, product_cpu = multiply(torch.float32)
    few = few_bits(Z.device)
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "n": n,
        "d": d,
        "device": torch.cuda.get_device_name()
        if device.startswith("cuda")
        else f"cpu, {torch.get_num_threads()} threads",
        "check_s": check,
        "product_s": product,
        "ratio": check / product if device.startswith("cuda") else check_cpu / product_cpu,
        "ratio_wall": check / product,
        "check_cpu_s": check_cpu,
        "product_cpu_s": product_cpu,
        "search_dtype": str(few).removeprefix("torch."),
        "product_in_search_dtype_cpu_s": multiply(few)[1],
        "gflops": 2 * n * n * d / product / 1e9,
        "peak_rss_gb": peak * 1024 / 1e9,
        "rss_before_gb": before * 1024 / 1e9,
        "flagged": len(table[table["label"].isin(["composite", "possible"])]),
    }
    if device.startswith("cuda"):
        result["peak_device_gb"] = torch.cuda.max_memory_allocated() / 1e9
    result["bars"] = SPEED_BARS.get((n, d), {})
    result["bars_met"] = all(result[key] <= bar for key, bar in result["bars"].items())
    for key, value in result.items():
        if not isinstance(value, dict):
            bar = f"  bar ≤ {result['bars'][key]}" if key in result["bars"] else ""
            print(f"{key:30} {format(value, '.3f') if isinstance(value, float) else value}{bar}")
    return result


INJECT_BARS = {"precision": 0.95, "recall": 0.90}


def injected(specs: list[str], device: str) -> dict[str, Any]:
    """`composites --inject 50` on SAEs and on random directions of the same shape: counts over five seeds."""
    result: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "bars": INJECT_BARS, "dictionaries": {}}
    for spec, rows in zip(specs, load_decoders(specs)):
        own = torch.as_tensor(rows).float()
        random = torch.randn(own.shape, generator=torch.Generator().manual_seed(0))
        for name, matrix in ((Path(spec).name, own), (f"random, {len(own)} x {own.shape[1]}", random)):
            table: Any = find_composites(matrix, device=device)
            runs = [inject(matrix, table, 50, seed=seed, device=device) for seed in range(5)]
            sums, recovered, false = (sum(getattr(r, k) for r in runs) for k in ("sums", "recovered", "false_flags"))
            result["dictionaries"][name] = row = {
                "latents": len(own),
                "flagged_before": int(table["label"].isin(LABELS[0]).sum()),
                "recall": recovered / sums,
                "recall_interval": stats.share_interval(recovered, sums),
                "precision": recovered / (recovered + false) if recovered + false else None,
                "exact": sum(run.exact for run in runs) / recovered if recovered else None,
                "labelled_subspace": sum(r.labelled_subspace for r in runs) / sum(r.on_circles for r in runs),
                "runs": [asdict(run) for run in runs],
            }
            print(name, {key: value for key, value in row.items() if key != "runs"}, flush=True)
    random_rows = [row for name, row in result["dictionaries"].items() if name.startswith("random")]
    result["bars_met"] = all(_meets(key, row[key], bar) for row in random_rows for key, bar in INJECT_BARS.items())
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="100:110", help="first:after the last")
    parser.add_argument("--size", nargs=2, type=int, default=(4096, 512), metavar=("N", "D"))
    parser.add_argument("--structures", action="store_true")
    parser.add_argument("--speed", nargs=2, type=int, metavar=("N", "D"))
    parser.add_argument("--inject", nargs="+", metavar="SAE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--resume", action="store_true", help="go on with the seeds and dictionaries that --out lacks")
    args = parser.parse_args()
    if args.speed:
        result = speed(args.speed[0], args.speed[1], args.device)
        missed = not result["bars_met"]
    elif args.inject:
        result = injected(args.inject, args.device)
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n")
        missed = not result["bars_met"]
    else:
        first, last = map(int, args.seeds.split(":"))
        kinds = STRUCTURES if args.structures else DICTIONARIES
        result = accuracy(kinds, range(first, last), args.device, args.size[0], args.size[1], args.out, args.resume)
        missed = not all(entry["composite or possible"]["bars_met"] for entry in result["dictionaries"].values())
    if args.out and args.speed:
        written = [*(json.loads(args.out.read_text()) if args.out.exists() else []), result]
        args.out.write_text(json.dumps(written, indent=2) + "\n")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
