"""What detection and fuzzing give to scorers without a model, on the features of an SAE harvested before.

    python benchmarks/ceilings.py CORPUS HARVEST SAE --tokenizer FOLDER [--features 100]

CORPUS, HARVEST and SAE are folders of a run's store. Beside the ceilings (token tables) and floors (constant,
position) stands a cheap judge: logistic regression on some twenty surface figures of a text, fitted on half of the
features and applied to the other half, with no explanation. What it gains over chance, the choice of examples
betrays, or what features in general fire on. Its bar is .02 of average precision.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from autointerp import stats
from autointerp.activations.contexts import sample_contexts
from autointerp.activations.evidence import EvidenceReader, firing_table
from autointerp.artifacts import Corpus, Firings
from autointerp.config import ContextsConfig
from autointerp.records import Context
from autointerp.sae import load_sae
from autointerp.scorers import floors, lexical
from autointerp.scorers.fuzzing import marks
from autointerp.scorers.judging import Item

LIMIT = 0.02


def surface(item: Item) -> list[float]:
    """Some twenty figures of a text that know nothing of any feature; those of the marks are 0 where there is none."""
    text = item.text.replace("«", "").replace("»", "")
    inside = re.findall("«(.*?)»", item.text)
    before = [item.text[: m.start()].rstrip()[-1:] for m in re.finditer("«", item.text)]
    after = [item.text[m.end() :].lstrip()[:1] for m in re.finditer("»", item.text)]
    size, n = max(len(text), 1), max(len(inside), 1)
    marked = "".join(inside)
    return [
        len(text),
        len(text.split()),
        sum(map(len, text.split())) / max(len(text.split()), 1),
        *(text.count(c) / size for c in ',.!?"'),
        text.count("\\n") / size,
        sum(c.isupper() for c in text) / size,
        sum(c.isdigit() for c in text) / size,
        float(text[:1].isupper()),
        float(item.context.position),
        len(inside),
        len(marked),
        len(marked) / n,
        (item.text.find("«") + 1) / size,
        sum(w[:1].isupper() for w in inside) / n,
        sum(w.isalpha() for w in inside) / n,
        sum(len(w) <= 3 for w in inside) / n,
        sum(not any(c.isalnum() for c in w) for w in inside) / n,
        sum(c in ".,!?" for c in before) / n,
        sum(c in ".,!?" for c in after) / n,
        sum(c.isalpha() for c in after) / n,
    ]


def cheap_judge(sets: list[list[Item]]) -> list[float]:
    """Value less chance of each feature's items, by a judge fitted on the features of the other half."""
    figures = [np.array([surface(item) for item in items]) for items in sets]
    truths = [np.array([item.truth for item in items]) for items in sets]
    gains: list[float] = []
    for half in (0, 1):
        others = [i for i in range(len(sets)) if i % 2 != half]
        scaler = StandardScaler().fit(np.concatenate([figures[i] for i in others]))
        judge = LogisticRegression(max_iter=500, C=0.1)
        judge.fit(
            scaler.transform(np.concatenate([figures[i] for i in others])), np.concatenate([truths[i] for i in others])
        )
        for i in range(half, len(sets), 2):
            evidence = judge.decision_function(scaler.transform(figures[i]))
            value, chance = (f(truths[i], evidence) for f in (stats.average_precision, stats.average_precision_chance))
            gains.append((value or 0.0) - (chance or 0.0))
    return gains


def summary(values: list[float]) -> dict[str, float | int | None]:
    bounds = stats.mean_interval(values)
    low, high = (None, None) if bounds is None else (round(limit, 4) for limit in bounds)
    return {"mean": round(float(np.mean(values)), 4), "low": low, "high": high, "n": len(values)}


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    corpus, firings = Corpus(options.corpus), Firings(options.harvest)

    def strings(ids: Any) -> list[str]:
        return [piece.replace("▁", " ").replace("<0x0A>", "\n") for piece in tokenizer.convert_ids_to_tokens(list(ids))]

    table = firing_table(firings, 200)
    ready = table.loc[table["status"] == "ok", "feature"].to_numpy()
    chosen = sorted(np.random.default_rng(0).permutation(ready)[: options.features].tolist())
    directions = load_sae(str(options.sae)).W_dec.detach().float().numpy()
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    near = {i: [int(j) for j in np.argsort(-(directions @ directions[i]))[1:11]] for i in chosen}
    config = ContextsConfig()
    by_feature: dict[int, list[Context]] = {feature: [] for feature in chosen}
    for context in sample_contexts(corpus, firings, chosen, near, strings, config, 0):
        by_feature[context.feature].append(context)
    counted = EvidenceReader(firings, corpus, strings, test_share=config.test_share, seed=0).token_tables(chosen)
    scores: dict[str, list[Any]] = {name: [] for name in ("lexical", "lexical_shown", "position", "constant")}
    for feature in chosen:
        test = [c for c in by_feature[feature] if c.split == "test"]
        train = [c for c in by_feature[feature] if c.split == "train"]
        scores["lexical"].append(await lexical.score("", test, None, token_table=counted[feature]))
        scores["lexical_shown"].append(await lexical.score_shown("", test, None, shown=train))
        scores["position"].append(await floors.position("", test, None))
        scores["constant"].append(await floors.constant("", test, None))
    tests = [[c for c in by_feature[f] if c.split == "test"] for f in chosen]
    exchanged = [marks(test, random.Random(f)) for f, test in zip(chosen, tests)]
    cheap = {
        "detection": cheap_judge([[Item.window(c) for c in test] for test in tests]),
        "detection, random": cheap_judge([[Item.window(c) for c in test if c.kind != "near"] for test in tests]),
        "detection, near": cheap_judge([[Item.window(c) for c in test if c.kind != "random"] for test in tests]),
        "fuzzing": cheap_judge([items for items in exchanged if items]),
    }
    return {
        "features": len(chosen),
        "value": {name: summary([s.value for s in each]) for name, each in scores.items()},
        "corrected": {name: summary([s.corrected for s in each]) for name, each in scores.items()},
        "fuzzing's examples": round(float(np.mean([len(items) for items in exchanged])), 1),
        "fifths, weakest first (AUROC of lexical)": [
            round(float(np.mean([s.metrics[f"auroc_q{q}"] for s in scores["lexical"]])), 3) for q in range(1, 6)
        ],
        "cheap judge, value less chance": {name: summary(each) | {"limit": LIMIT} for name, each in cheap.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "harvest", "sae"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("results/reference/ceilings.json"))
    options = parser.parse_args()
    measured = asyncio.run(measure(options))
    command = f"python benchmarks/ceilings.py CORPUS HARVEST SAE --tokenizer FOLDER --features {options.features}"
    options.out.write_text(json.dumps({"command": command, **measured}, indent=1) + "\n")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
