"""What the scorers give to judges whose knowledge is known, on planted features: all of it, none of it, some noise.

    python benchmarks/yardsticks.py [--features 200]

The bars: an oracle scores .99; judges who know nothing score 0 above chance within .01, and their interval lies above
chance in at most 3.5 %; an oracle that flips a share of its answers scores its closed form; a judging that stops early
(`stop_width`) ranks features as the whole does, Spearman .95 at half of the judged examples.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from autointerp import stats
from autointerp.prompting import plain
from autointerp.scorers import detection, discrimination, fuzzing, intruder
from autointerp.scorers.judging import Item, summarise

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "scorers"))
from planted_features import Judge, know_nothing, neighbours, oracle, windows

SIZES = (24, 40, 100)
WIDTHS = (0.2, 0.25, 0.3)
BATCH = 10  # examples in a list: a judging that stops, stops behind one


async def oracles(features: int) -> dict[str, float]:
    """The smallest value an oracle has on any feature, for each scorer with a judge."""
    judge = Judge(oracle)
    asked = {
        "detection": lambda f: detection.score("x", windows(f), judge, seed=f),
        "fuzzing": lambda f: fuzzing.score("x", windows(f), judge, seed=f),
        "discrimination": lambda f: discrimination.score("x", windows(f), judge, neighbours=neighbours(f), seed=f),
        "intruder": lambda f: intruder.score("x", windows(f), judge, seed=f),
    }
    return {name: min([(await score(f)).value or 0.0 for f in range(features)]) for name, score in asked.items()}


def items_of(scorer: str, feature: int, n: int) -> list[Item]:
    rng = random.Random(feature)
    if scorer == "detection":
        items = [Item.window(context) for context in windows(feature, n)]
        return rng.sample(items, n)
    if scorer == "fuzzing":
        return fuzzing.marks(windows(feature, n), rng)
    return discrimination.against(windows(feature, n), neighbours(feature, n), n // 2, rng)


def knows_nothing(scorer: str, n: int, features: int) -> dict[str, dict[str, Any]]:
    """Mean chance-corrected value of each judge who knows nothing, and how often its interval lies above chance."""
    sets = [items_of(scorer, feature, n) for feature in range(features)]
    rows: dict[str, dict[str, Any]] = {}
    for judge in know_nothing(0):
        corrected: list[float] = []
        above = 0
        for feature, items in enumerate(sets):
            rule = know_nothing(f"judge {feature}")[judge]  # a stream of its own
            truth, score = [item.truth for item in items], [rule(item.text) for item in items]
            value, chance = stats.average_precision(truth, score), stats.average_precision_chance(truth, score)
            corrected.append(stats.chance_corrected(value, chance) or 0.0)
            low, _ = stats.average_precision_interval(truth, score) or (0.0, 1.0)
            above += low > sum(truth) / len(truth)
        error = float(np.std(corrected)) / features**0.5
        rows[judge] = {
            "corrected": round(float(np.mean(corrected)), 4),
            "standard_error": round(error, 4),
            "limit": 0.01,
            "interval_above": round(above / features, 4),
            "interval_limit": 0.035,
        }
    return rows


def noisy(flips: float, features: int) -> dict[str, float]:
    """A flip rate's mean value, its closed form at a base rate of one half, and how often the interval holds it."""
    expected = (1 - flips) ** 2 + flips / 2
    values: list[float] = []
    held = 0
    for feature in range(features):
        rng, items = random.Random(feature), [Item.window(context) for context in windows(feature)]
        got = summarise(items, [(float((rng.random() < flips) != item.truth), None) for item in items])
        values.append(got.value or 0.0)
        held += (got.low or 1.0) <= expected <= (got.high or 0.0)
    return {"mean": round(float(np.mean(values)), 4), "closed_form": round(expected, 4), "held": held / features}


def explanations(kind: str, features: int) -> list[tuple[float, float]]:
    """Of each feature P(Yes) of the judge where it fires and where it is silent."""
    spread = [(feature + 0.5) / features for feature in range(features)]
    if kind == "flips .2 everywhere":
        return [(0.8, 0.2)] * features
    if kind == "flips 0 to .4":
        return [(1 - 0.4 * at, 0.4 * at) for at in spread]
    return [(0.2 + 0.6 * at, 0.2) for at in spread]  # knows a share 0 to 1 of the firing windows; flips .2


async def sequential(kind: str, width: float, features: int) -> dict[str, float]:
    """Judging that stops when the interval is `width` wide against all 100 examples, in lists of BATCH.

    `held`: how often the interval at the stop, and that of all examples, hold the closed form.
    """
    early: list[float] = []
    whole: list[float] = []
    asked = held = held_whole = 0
    for feature, (hit, false) in enumerate(explanations(kind, features)):
        contexts = windows(feature, 100)
        rng = random.Random(f"{kind}:{feature}")
        answers = {plain(context): rng.random() < (hit if context.fires else false) for context in contexts}
        judge = Judge(lambda text, answers=answers: float(answers[text]), ())
        full = await detection.score("x", contexts, judge, batch=BATCH, seed=feature)
        got = await detection.score("x", contexts, judge, batch=BATCH, stop_width=width, seed=feature)
        truth = hit * hit / (hit + false) + (1 - hit) / 2
        early.append(got.value or 0.0)
        whole.append(full.value or 0.0)
        asked += got.n_scored
        held += (got.low or 1.0) <= truth <= (got.high or 0.0)
        held_whole += (full.low or 1.0) <= truth <= (full.high or 0.0)
    return {
        "judged": round(asked / (100 * features), 3),
        "spearman": round(float(spearmanr(early, whole).statistic), 3),
        "bias": round(float(np.mean(early) - np.mean(whole)), 4),
        "held": round(held / features, 3),
        "held by all examples": round(held_whole / features, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("results/reference/yardsticks.json"))
    options = parser.parse_args()
    report = {
        "command": f"python benchmarks/yardsticks.py --features {options.features}",
        "oracle, worst feature": asyncio.run(oracles(20)) | {"limit": 0.99},
        "know nothing": {
            f"{scorer}, n {n}": knows_nothing(scorer, n, options.features)
            for scorer in ("detection", "fuzzing", "discrimination")
            for n in SIZES
        },
        "sequential, by width": {
            kind: {str(width): asyncio.run(sequential(kind, width, min(options.features, 1000))) for width in WIDTHS}
            for kind in ("flips 0 to .4", "share known, flips .2", "flips .2 everywhere")
        },
        "noisy oracle": {str(flips): noisy(flips, options.features) for flips in (0.0, 0.1, 0.2, 0.3, 0.4)},
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    for name, rows in report["know nothing"].items():
        print(name, *(f"{judge} {row['corrected']:+.3f} ({row['interval_above']:.3f})" for judge, row in rows.items()))
    print(json.dumps({key: value for key, value in report.items() if key != "know nothing"}, indent=1))


if __name__ == "__main__":
    main()
