"""Which of our measures notice that half of a judge's answers are wrong: the missing and the extra label test.

    python benchmarks/sanity.py [RUN …] [--features 100]

After arXiv 2506.05774 (section 4): a score has to fall when half of the texts in which the concept is present are
labelled as lacking it (missing), and when as many again that lack it are labelled as having it (extra). Here the
labels are the judge's, and the feature is what they are compared with, as in every scorer of the pipeline. A measure
passes where it falls by more than .001 of its range for at least nine features in ten, in both tests.

1. Without a RUN: a judge who knows the feature, and one who flips a tenth of the answers, on 2,000 windows a feature or
   more, of which half, a tenth, a hundredth and a thousandth fire; graded and in Yes and No.
2. With RUNs: the judgements of detection and fuzzing as they are, and with silent windows drawn again until a tenth
   and a hundredth fire. A measure passes there where the mean over features falls, its 95 % interval below 0; a
   judge who is near chance has little to lose.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autointerp import stats
from autointerp.report.folder import RunFolder

Array = NDArray[np.float64]
Measure = Callable[[NDArray[np.bool_], Array], float | None]

RATES = (0.499, 0.1, 0.01, 0.001)  # .499 and not ½, as in the paper: at ½ the extra labels are all that there are
FALL = 0.001  # of the range of a measure
ENOUGH = 0.9  # of the features
WINDOWS, FIRING = 2000, 10  # of a feature, at the least
JUDGED = ("detection", "fuzzing")
RANDOM_KIND = ("random", "mismarked")  # silent examples that stand for all of them


def binary(name: str) -> Measure:
    return lambda truth, evidence: stats.binary_metrics(truth, evidence >= 0.5)[name]


def f1_corrected(truth: NDArray[np.bool_], evidence: Array) -> float | None:
    """Of labels that lie as often at random, F1 is 2 · firing · yes / (n · (firing + yes))."""
    yes = evidence >= 0.5
    chance = 2 * truth.mean() * yes.sum() / (truth.sum() + yes.sum())
    return stats.chance_corrected(stats.binary_metrics(truth, yes)["f1"], float(chance))


def balanced_corrected(truth: NDArray[np.bool_], evidence: Array) -> float | None:
    return stats.chance_corrected(stats.binary_metrics(truth, evidence >= 0.5)["balanced_accuracy"], 0.5)


def corrected(truth: NDArray[np.bool_], evidence: Array) -> float | None:
    value = stats.average_precision(truth, evidence)
    return stats.chance_corrected(value, stats.average_precision_chance(truth, evidence))


MEASURES: Mapping[str, tuple[Measure, float]] = {  # name -> measure of (fires, evidence), its range
    "average precision": (stats.average_precision, 1),
    "average precision, corrected": (corrected, 1),
    "AUROC": (stats.auroc, 1),
    "F1": (binary("f1"), 1),
    "IoU": (binary("iou"), 1),
    "precision": (binary("precision"), 1),
    "recall": (binary("recall"), 1),
    "balanced accuracy": (binary("balanced_accuracy"), 1),
    "accuracy": (binary("accuracy"), 1),
    "F1, corrected": (f1_corrected, 1),
    "balanced accuracy, corrected": (balanced_corrected, 1),
    "Pearson": (lambda truth, evidence: stats.pearson(truth, evidence), 2),
    "cosine": (lambda truth, evidence: stats.cosine(truth, evidence), 1),
}


# --- the two tests ----------------------------------------------------------------------------


def missing(evidence: Array, rng: np.random.Generator) -> Array:
    """Half of what the judge found, lost: each label is kept with probability ½."""
    return evidence * (rng.random(evidence.shape) < 0.5)


def extra(evidence: Array, rng: np.random.Generator) -> Array:
    """As many labels again at random places."""
    present = float(evidence.sum())
    chance = present / max(len(evidence) - present, 1e-9)
    return np.minimum(evidence + (rng.random(evidence.shape) < chance), 1.0)


TESTS = {"missing": missing, "extra": extra}


def falls(windows: Sequence[tuple[NDArray[np.bool_], Array]], seed: int) -> dict[str, dict[str, list[float]]]:
    """measure -> test -> how much it rises for each feature, as a share of its range; what has no value after the
    test counts as the measure's least, 0. Features without a value before are left out."""
    rng = np.random.default_rng(seed)
    rises: dict[str, dict[str, list[float]]] = {name: {test: [] for test in TESTS} for name in MEASURES}
    for truth, evidence in windows:
        changed = {test: change(evidence, rng) for test, change in TESTS.items()}
        for name, (measure, span) in MEASURES.items():
            before = measure(truth, evidence)
            if before is None:
                continue
            for test, after in changed.items():
                rises[name][test].append(((measure(truth, after) or 0.0) - before) / span)
    return rises


def verdicts(rises: Mapping[str, Mapping[str, Sequence[float]]], each: bool) -> dict[str, dict[str, Any]]:
    """`each`: nine features in ten have to fall; else the mean with its interval."""
    rows: dict[str, dict[str, Any]] = {}
    for name, tests in rises.items():
        rows[name] = {}
        for test, values in tests.items():
            low, high = stats.mean_interval(values) or (float("nan"), float("nan"))
            fell = float(np.mean([value < -FALL for value in values])) if values else 0.0
            passes = fell >= ENOUGH if each else high < -FALL
            mean = float(np.mean(values)) if values else None
            figures = {"rise": mean, "low": low, "high": high, "share that falls": fell}
            rows[name][test] = {key: _rounded(value) for key, value in figures.items()} | {"passes": bool(passes)}
        rows[name]["passes"] = all(rows[name][test]["passes"] for test in TESTS)
    return rows


def _rounded(value: float | None) -> float | None:
    return None if value is None or value != value else round(value, 4)


# --- whose judgements -------------------------------------------------------------------------


def oracles(features: int, rate: float, flips: float, graded: bool) -> list[tuple[NDArray[np.bool_], Array]]:
    """A judge who knows the feature but flips a share of the answers; graded ones lie on their side of ½."""
    rng, windows = np.random.default_rng(0), []
    n = max(WINDOWS, round(FIRING / rate))
    for _ in range(features):
        truth = rng.permutation(np.arange(n) < round(rate * n))
        yes = truth ^ (rng.random(n) < flips * min(1, 2 * rate))  # no more flips than there are firing windows
        evidence = yes.astype(float)
        if graded:
            evidence = np.where(yes, rng.uniform(0.6, 1, n), rng.uniform(0, min(0.4, rate), n))
        windows.append((truth, evidence))
    return windows


def judged(run: str, scorer: str, explainer: str) -> Iterator[tuple[NDArray[np.bool_], Array, NDArray[np.bool_]]]:
    """(fires, evidence, whether it is a random silent window) of each feature."""
    columns = ["feature", "explainer", "scorer", "control", "kind", "truth", "prediction", "probability", "status"]
    kept: dict[int, list[tuple[bool, float, bool]]] = {}
    for batch in RunFolder(run).batches("judgements", columns):
        for row in batch.to_pylist():
            if (row["scorer"], row["explainer"]) != (scorer, explainer) or row.get("control") or row["status"] != "ok":
                continue
            evidence = row["prediction"] if row["probability"] is None else row["probability"]
            place = (row["truth"] > 0, evidence, row["kind"] in RANDOM_KIND)
            kept.setdefault(row["feature"], []).append(place)
    for rows in kept.values():
        truth, evidence, plain = zip(*rows)
        if any(truth) and not all(truth):
            yield np.array(truth), np.array(evidence, dtype=float), np.array(plain)


def at_rate(
    truth: NDArray[np.bool_], evidence: Array, plain: NDArray[np.bool_], rate: float, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], Array]:
    """The firing windows, and random silent ones drawn with replacement until `rate` of all fire."""
    silent = evidence[plain & ~truth] if (plain & ~truth).any() else evidence[~truth]
    count = round(truth.sum() * (1 - rate) / rate)
    drawn = rng.choice(silent, count)
    return np.r_[np.ones(truth.sum(), bool), np.zeros(count, bool)], np.r_[evidence[truth], drawn]


def of_run(run: str) -> dict[str, Any]:
    scores = RunFolder(run).read("scores", ["scorer", "explainer"])
    pairs = dict.fromkeys((row["scorer"], row["explainer"]) for row in scores.to_pylist()) if scores else {}
    report: dict[str, Any] = {}
    for scorer, explainer in pairs:
        if not scorer.startswith(JUDGED):
            continue
        features = list(judged(run, scorer, explainer))
        if not features:
            continue
        rng = np.random.default_rng(0)
        sets = {"as judged": [(truth, evidence) for truth, evidence, _ in features]}
        for rate in (0.1, 0.01):
            sets[f"{rate:g} fire"] = [at_rate(*feature, rate, rng) for feature in features]
        for name, windows in sets.items():
            report[f"{scorer}, {explainer}, {name}"] = verdicts(falls(windows, 0), each=False)
        report[f"{scorer}, {explainer}, features"] = len(features)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("results/reference/sanity.json"))
    options = parser.parse_args()
    given = " ".join(["", *options.runs])
    report: dict[str, Any] = {"command": f"python benchmarks/sanity.py{given} --features {options.features}"}
    for kind, flips, graded in (("oracle", 0.0, False), ("oracle, graded", 0.0, True), ("flips a tenth", 0.1, False)):
        report[kind] = {
            f"{rate:g} fire": verdicts(falls(oracles(options.features, rate, flips, graded), 1), each=True)
            for rate in RATES
        }
    report |= {Path(run).name: of_run(run) for run in options.runs}
    report["passes everywhere, without a model"] = [
        name
        for name in MEASURES
        if all(rows[name]["passes"] for kind in ("oracle", "oracle, graded") for rows in report[kind].values())
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    for kind, sets in report.items():
        for name, rows in sets.items() if isinstance(sets, dict) else ():
            if isinstance(rows, dict):
                print(f"{kind}, {name}:", *(f"{m} {_told(row)}" for m, row in rows.items()), sep="\n    ")
    print("passes everywhere, without a model:", ", ".join(report["passes everywhere, without a model"]))


def _told(row: Mapping[str, Any]) -> str:
    return "; ".join(f"{test} {row[test]['rise']} ({'ok' if row[test]['passes'] else 'FAILS'})" for test in TESTS)


if __name__ == "__main__":
    main()
