"""Where the truth is known: does a scorer prefer a concept's own name to another concept's?

    python benchmarks/concepts.py [--scorers embedding detection] [--judge qwen2.5-coder-1.5b-instruct] [--texts 20]

A feature here is a labelled concept of the catalogue's text `sae-probes` (arXiv 2502.16681): it fires in the texts that
have the label, and is silent in as many of the same set that have not. Its explanation is the concept in words. The
control is another concept's words on the same texts: one of another set (far), and where the set has several concepts
one of the same set (near). Reported are chance-corrected values, paired by concept. What was answered is kept, so a
second call goes on after `--minutes`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from autointerp import catalog, stats
from autointerp.catalog.embed import Embedder
from autointerp.config import LLMConfig
from autointerp.llm.build import open_llm
from autointerp.records import Context, Score
from autointerp.resources import cache_dir
from autointerp.scorers import detection, embedding

LONGEST = 240  # characters of a text


@dataclass(frozen=True)
class Concept:
    collection: str
    label: str
    words: str  # what its explanation says

    @property
    def name(self) -> str:
        return f"{self.collection}: {self.label}"


CONCEPTS = tuple(
    Concept(collection, label, words)
    for collection, labels in {
        "hist_fig_ismale": {"1": "the name of a man"},
        "headline_istrump": {"True": "Donald Trump"},
        "headline_isobama": {"True": "Barack Obama"},
        "headline_ischina": {"True": "China"},
        "headline_isiran": {"True": "Iran"},
        "spam_is": {"1": "advertising or the promise of a prize"},
        "click_bait": {"clickbait": "a sensational headline that makes curious"},
        "movie_sent": {"1": "praise of a film"},
        "news_class": {
            "Politics": "politics and government",
            "Technology": "computers and technology",
            "Entertainment": "film, music and celebrities",
            "Sport": "sports",
        },
        "twt_emotion": {
            "worry": "worry or anxiety",
            "happiness": "happiness or joy",
            "sadness": "sadness",
            "surprise": "surprise",
        },
        "world_country": {
            "United_Kingdom": "a place in the United Kingdom",
            "United_States": "a place in the United States",
            "Italy": "a place in Italy",
            "Australia": "a place in Australia",
            "India": "a place in India",
        },
        "temp_cat": {
            "Frequency": "a question about how often something happens",
            "Typical Time": "a question about the time at which something happens",
            "Event Ordering": "a question about what happens before or after something else",
            "Event Duration": "a question about how long something takes",
        },
    }.items()
    for label, words in labels.items()
)


def texts_of() -> dict[str, list[tuple[str, str]]]:
    """collection -> (text, label)."""
    sets: dict[str, list[tuple[str, str]]] = {}
    with open(catalog.resolve("sae-probes", "text"), encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            sets.setdefault(line["set"], []).append((line["text"][:LONGEST].strip(), line["label"]))
    return sets


def windows(number: int, concept: Concept, texts: Sequence[tuple[str, str]], count: int) -> list[Context]:
    """`count` texts of the concept's set, half of them with its label; a text is one token."""
    rng = random.Random(number)
    having = rng.sample(sorted({text for text, label in texts if label == concept.label}), count // 2)
    lacking = rng.sample(sorted({text for text, label in texts if label != concept.label}), count - count // 2)
    return contexts_of(number, having, lacking)


def contexts_of(number: int, having: Sequence[str], lacking: Sequence[str]) -> list[Context]:
    """Held-out windows of a latent that fires on the texts `having`; each text is one token."""
    return [
        Context(
            *(number, place, "test", "activating" if fires else "random", 0 if fires else None),
            *(place, 0, (text,), (float(fires),)),
        )
        for place, (text, fires) in enumerate([*((t, True) for t in having), *((t, False) for t in lacking)])
    ]


def swapped(number: int) -> dict[str, Concept]:
    """The concept whose words are put in the place of its own: far, and near where there is one."""
    rng, own = random.Random(number), CONCEPTS[number]
    far = [concept for concept in CONCEPTS if concept.collection != own.collection]
    near = [concept for concept in CONCEPTS if concept.collection == own.collection and concept != own]
    return {"far": rng.choice(far)} | ({"near": rng.choice(near)} if near else {})


async def measure(scorer: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a concept: the value of its own words and of others'; concepts for which there was no time are left out."""
    ends, rows, sets = time.monotonic() + 60 * options.minutes, [], texts_of()
    if scorer == "embedding":
        score = partial(embedding.score, llm=None, embedder=Embedder(catalog.resolve("minilm", "embedder"), "cpu"))
        return [await row_of(number, score, sets, options.texts) for number in range(len(CONCEPTS))]
    async with judge_of(options) as llm:
        score = partial(detection.score, llm=llm, mode=options.mode, seed=0)
        for number in range(len(CONCEPTS)):
            if time.monotonic() > ends:
                print(f"stopped after {number} of {len(CONCEPTS)} concepts: run again to go on")
                break
            rows.append(await row_of(number, score, sets, options.texts))
            print(rows[-1], flush=True)
    return rows


def judge_of(options: argparse.Namespace) -> Any:
    return open_llm(
        LLMConfig(model=options.judge, base_url=options.base_url),
        cache=cache_dir() / "requests.sqlite",
        journal=options.journal,
        seed=0,
        resolve_model=lambda name: catalog.resolve(name, "model"),
    )


async def row_of(number: int, score: Any, sets: Any, texts: int) -> dict[str, Any]:
    concept = CONCEPTS[number]
    examples = windows(number, concept, sets[concept.collection], texts)
    own: Score = await score(concept.words, examples)
    row = {"concept": concept.name, "words": concept.words, "own": own.corrected, "yes_rate": own.yes_rate}
    for where, other in swapped(number).items():
        row[where] = (await score(other.words, examples)).corrected
    return row


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    report: dict[str, Any] = {"concepts": len(rows), "own": mean_of([row["own"] for row in rows])}
    for where in ("far", "near"):
        pairs = [(row["own"], row[where]) for row in rows if where in row]
        gap = stats.paired_difference([own for own, _ in pairs], [other for _, other in pairs])
        report[where] = mean_of([other for _, other in pairs])
        report[f"own less {where}"] = {
            "mean": gap.mean, "low": gap.low, "high": gap.high,
            "wins": gap.wins, "losses": gap.losses, "n": gap.n,
        }  # fmt: skip
    return rounded(report | {"table": list(rows)})


def mean_of(values: Iterable[float | None]) -> float | None:
    """Of those that are known."""
    kept = [value for value in values if value is not None]
    return float(np.mean(kept)) if kept else None


def rounded(value: Any) -> Any:
    """The numbers in it to four places."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scorers", nargs="+", default=["embedding", "detection"], choices=("embedding", "detection"))
    parser.add_argument("--judge", default="qwen2.5-coder-1.5b-instruct")
    parser.add_argument("--base-url", help="of an OpenAI-compatible endpoint that has the judge")
    parser.add_argument("--mode", choices=("auto", "each", "list"), default="auto", help="how the judge is asked")
    parser.add_argument("--texts", type=int, default=20, help="of a concept, half of which have it")
    parser.add_argument(
        "--minutes", type=float, default=15.0, help="of the judge; then stop after the concept under way"
    )
    parser.add_argument("--journal", type=Path, default=Path("results/concepts-usage.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("results/reference/concepts.json"))
    options = parser.parse_args()
    options.journal.parent.mkdir(parents=True, exist_ok=True)
    judge = f" --judge {options.judge}" if "detection" in options.scorers else ""
    given = f"--scorers {' '.join(options.scorers)}{judge} --texts {options.texts}"
    report: dict[str, Any] = {"command": f"python benchmarks/concepts.py {given}"}
    for scorer in options.scorers:
        rows = asyncio.run(measure(scorer, options))
        report[scorer] = summary(rows)
        print(scorer, json.dumps({key: value for key, value in report[scorer].items() if key != "table"}, indent=1))
    options.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
