"""Families of planted dictionaries: is each latent's fate in a wider dictionary told, and whether labels stay?

python benchmarks/families.py [--seeds 500:503] [--out results/reference/families.json]

For each kind of latent the precision and recall of its label, over the seeds; `others` is the share of the latents with
the right label, split, taken apart or kept, whose family is named without a mistake. Two controls: dictionaries that
have nothing in common, of which everything should be `missing` and `new`; and labels over retrainings, where half of
the sums are planted in both dictionaries, beside a matching at random. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from autointerp.artifacts import write_atomically
from autointerp.composites import find_composites
from autointerp.composites.families import FATES, ORIGINS, families, stability
from autointerp.toys.planted import plant
from autointerp.toys.planted_families import PlantedFamilies, plant_families

CONE: dict[str, Any] = {"power": 1.0, "mean": 0.5}
STRONG: dict[str, Any] = {"power": 0.7, "mean": 1.0}
GEOMETRIES: dict[str, dict[str, Any]] = {"isotropic": {}, "cone": CONE, "cone of strong mean": STRONG}
NOISES = (0.0, 0.2, 0.4)
BARS = {"isotropic": 0.95, "cone": 0.80, "cone of strong mean": 0.80}  # of every precision and recall at noise .2
CONTROL_BAR = 0.99  # least share that is missing or new
N, D = 1024, 256


def tally(truth: tuple[str, ...], labels: list[str], counts: dict[str, Counter[str]]) -> None:
    for true, label in zip(truth, labels):
        counts[true]["true"] += 1
        counts[label]["labelled"] += 1
        counts[true]["right"] += true == label


def ratios(counts: dict[str, Counter[str]]) -> dict[str, dict[str, float | int | None]]:
    def share(part: int, whole: int) -> float | None:
        return part / whole if whole else None

    return {
        label: {
            "n": count["true"],
            "precision": share(count["right"], count["labelled"]),
            "recall": share(count["right"], count["true"]),
        }
        for label, count in counts.items()
    }


def measure(options: dict[str, Any], seeds: range) -> dict[str, Any]:
    fates, origins = ({label: Counter[str]() for label in labels} for labels in (FATES, ORIGINS))
    named = Counter[str]()
    for seed in seeds:
        planted = plant_families(N, D, seed=seed, **options)
        told = families(planted.narrow, planted.wide)
        tally(planted.fates, told.fates["label"].tolist(), fates)
        tally(planted.origins, told.origins["label"].tolist(), origins)
        named += whole_families(planted, told.fates)
    return {
        "options": options,
        "fates": ratios(fates),
        "origins": ratios(origins),
        "others": named["exact"] / named["right"],
    }


def whole_families(planted: PlantedFamilies, table: Any) -> Counter[str]:
    counts = Counter[str]()
    for truth, others, row in zip(planted.fates, planted.others, table.to_dict("records")):
        if truth == row["label"] and truth in ("kept", "split", "apart"):
            counts.update(right=1, exact=int(set(row["others"]) == others))
    return counts


def unrelated(options: dict[str, Any], seeds: range) -> dict[str, float]:
    """Of dictionaries drawn apart, but for the mean that they share, the shares called missing and new."""
    shares: dict[str, list[float]] = {"missing": [], "new": []}
    for seed in seeds:
        rows = plant(3 * N, D, seed=seed, composites=0, children=0, duplicates=0, **options).rows
        told = families(rows[:N], rows[N:])
        shares["missing"].append(float((told.fates["label"] == "missing").mean()))
        shares["new"].append(float((told.origins["label"] == "new").mean()))
    return {name: float(np.mean(values)) for name, values in shares.items()}


def retrained(seed: int) -> dict[str, Any]:
    """Two dictionaries of the same atoms. Of 100 sums in the first, 50 are sums of the same in the second, and 50 are
    latents as near to those as in noise, but no sums: their atoms are gone."""
    rng = np.random.default_rng(seed)
    atoms = plant(N, D, seed=seed, composites=0, children=0, duplicates=0).rows
    parts = rng.permutation(N)[:200].reshape(100, 2)
    sums = unit(atoms[parts[:, 0]] + atoms[parts[:, 1]])
    again = atoms.copy()
    again[parts[50:].flatten()] = unit(rng.standard_normal((100, D)))
    dictionaries = [unit(noisy(np.concatenate([rows, sums]), rng)) for rows in (atoms, again)]
    order = rng.permutation(len(dictionaries[1]))
    first, second = dictionaries[0], dictionaries[1][order]
    stable = stability(find_composites(first), find_composites(second), families(first, second).match)[0]
    return {"planted": 0.5, "n": stable.n, "share": stable.share, "low": stable.low, "high": stable.high} | {
        "chance": stable.chance,
        "chance_high": stable.chance_high,
        "p": stable.p,
    }


def noisy(rows: np.ndarray, rng: np.random.Generator, norm: float = 0.2) -> np.ndarray:
    return rows + norm * unit(rng.standard_normal(rows.shape))


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def lowest(measured: dict[str, Any]) -> float:
    values = [row[key] for side in ("fates", "origins") for row in measured[side].values() for key in row if key != "n"]
    return min(0.0 if value is None else value for value in values)


def shown(name: str, measured: dict[str, Any]) -> str:
    cells = [
        f"{label} {row['precision'] or 0:.2f}/{row['recall'] or 0:.2f}"
        for side in ("fates", "origins")
        for label, row in measured[side].items()
    ]
    return f"{name:32} {'  '.join(cells)}  named {measured['others']:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="500:503", help="first:after the last")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    seeds = range(*map(int, args.seeds.split(":")))
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "n": N,
        "d": D,
        "planted": {},
        "unrelated": {},
    }
    met = []
    for geometry, options in GEOMETRIES.items():
        for noise in NOISES:
            name = f"{geometry}, noise {noise}"
            result["planted"][name] = measured = measure({**options, "noise": noise}, seeds)
            print(shown(name, measured), flush=True)
        met.append(lowest(result["planted"][f"{geometry}, noise 0.2"]) >= BARS[geometry])
        result["unrelated"][geometry] = control = unrelated(options, seeds)
        met.append(min(control.values()) >= CONTROL_BAR)
        print(f"{geometry}, unrelated: {control}", flush=True)
    result["retrained"] = [retrained(seed) for seed in seeds]
    met.append(all(row["low"] <= row["planted"] <= row["high"] for row in result["retrained"]))
    print(f"labels of which half stay: {[(row['share'], row['chance']) for row in result['retrained']]}")
    result |= {"bars": BARS | {"unrelated": CONTROL_BAR}, "bars_met": all(met)}
    if args.out:
        write_atomically(args.out, lambda file: file.write_text(json.dumps(result, indent=1) + "\n"))
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
