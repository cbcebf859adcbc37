"""Which of explainer, judge and evidence is short? A judge on rules that are true, and on explanations by hand.

    python benchmarks/judge.py RUN [--judges qwen2.5-coder-1.5b-instruct …] [--texts 16] [--minutes 15]

RUN is the folder of a campaign on `reference` that has the features of `by_hand.jsonl` (`campaign.py --ids`). Its
windows are judged in two ways, by `detection` one at a time:

1. Rules. A rule is an explanation whose truth a regular expression decides: one word, three words as a list or as a
   sentence, a category of words, a form such as brackets. Half of the texts follow it, drawn from RUN's silent windows.
   Neither explainer nor SAE has a part in this value: what is missing to 1 is the judge's.
2. By hand. `by_hand.jsonl` explains 20 of RUN's features, drawn at random, from the train windows that the explainer
   was shown. They are judged on the held-out windows as the run's own were, and paired with them: what they gain is the
   explainer's share. What they still lack against `lexical_shown`, which counts the same windows, is the judge's.

What was answered is kept: a second call goes on after `--minutes`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from concepts import contexts_of, judge_of, mean_of, rounded

import autointerp as ai
from autointerp import stats
from autointerp.activations.contexts import read_contexts
from autointerp.records import Context, Score
from autointerp.scorers import detection

BY_HAND = Path(__file__).with_name("by_hand.jsonl")
RIVALS = ("default", "token_stats")  # explainers of the run, by the first judge
COUNTS = ("lexical_shown", "lexical")  # ceilings without a model
OFTEN = (12, 60)  # windows that a word of a rule stands in, of about 1,500
WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
CATEGORIES = {
    "a member of a family, such as mother, son or wife": (
        "mother father son daughter wife husband brother sister parents family mom dad kids uncle aunt"
    ),
    "a length of time, such as year, day or minute": (
        "year years day days minute minutes hour hours week weeks month months night tonight today"
    ),
    "a color": "red green blue black white yellow brown pink purple orange grey gray",
    "an unkind judgement, such as bad, terrible or stupid": (
        "bad terrible stupid awful worst horrible boring dull poor lame ridiculous crap dumb pathetic"
    ),
    "a number in words, such as two, three or hundred": (
        "two three four five six seven eight nine ten hundred thousand million"
    ),
    "first-person pronouns": "i me my mine myself i'm i've i'd i'll",
}
FORMS = {
    "a number written in digits": r"\d",
    "a word written in capital letters": r"\b[A-Z]{3,}\b",
    "a quotation mark": r'"',
    "a question mark": r"\?",
    "a bracket or parenthesis": r"[()]",
    'a word that ends in "ly"': r"ly\b",
    'a word that ends in "ing"': r"ing\b",
    "an exclamation mark": r"!",
}


@dataclass(frozen=True)
class Rule:
    family: str
    words: str  # what its explanation says
    holds: Callable[[str], bool]


def rules_of(texts: Sequence[str], seed: int = 1) -> list[Rule]:
    """The rules; those of single words take words that stand in some of the texts and not in many."""
    seen = Counter(word for text in texts for word in set(words_of(text)))
    rng = random.Random(seed)
    words = sorted(word for word, count in seen.items() if OFTEN[0] <= count <= OFTEN[1] and len(word) > 3)
    rng.shuffle(words)
    rules = [Rule("word", f'the word "{word}"', partial(has, {word})) for word in words[:8]]
    for at in range(8, 26, 3):
        a, b, c = three = words[at : at + 3]
        rules.append(Rule("list of words", f"{a}, {b}, {c}", partial(has, set(three))))
        rules.append(Rule("sentence of words", f'the words "{a}", "{b}" and "{c}"', partial(has, set(three))))
    rules += [Rule("category", name, partial(has, set(listed.split()))) for name, listed in CATEGORIES.items()]
    return rules + [Rule("form", name, partial(fits, form)) for name, form in FORMS.items()]


def words_of(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def has(words: set[str], text: str) -> bool:
    return not words.isdisjoint(words_of(text))


def fits(form: str, text: str) -> bool:
    return re.search(form, text) is not None


def examples_of(number: int, rule: Rule, texts: Sequence[str], count: int) -> list[Context]:
    """`count` texts, half of which follow the rule; a text is one token."""
    rng = random.Random(number)
    follow, break_it = ([text for text in texts if rule.holds(text) == holds] for holds in (True, False))
    half = min(count // 2, len(follow), len(break_it))
    return contexts_of(number, rng.sample(follow, half), rng.sample(break_it, half))


async def measure(
    judge: str, run: Any, contexts: dict[int, list[Context]], by_hand: Sequence[dict[str, Any]], options: Any
) -> dict[str, Any]:
    ends = time.monotonic() + 60 * options.minutes
    silent = sorted(
        {context.text.strip() for each in contexts.values() for context in each if context.kind == "random"}
    )
    rules = [(i, rule) for i, rule in enumerate(rules_of(silent))]
    asked = argparse.Namespace(judge=judge, base_url=options.base_url, journal=options.journal)
    async with judge_of(asked) as llm:
        score = partial(detection.score, llm=llm, mode="each", seed=0)
        hand = [
            {"feature": row["feature"], "value": score_of(await score(row["explanation"], held_out))}
            for row in in_time(by_hand, ends)
            if (held_out := [c for c in contexts[row["feature"]] if c.split == "test"])
        ]
        ruled = [
            {"family": rule.family, "words": rule.words, "value": score_of(await score(rule.words, examples))}
            for i, rule in in_time(rules, ends)
            if (examples := examples_of(i, rule, silent, options.texts))
        ]
    return {"judge": judge, "by hand": paired(hand, run), "rules": by_family(ruled)}


def in_time(rows: Sequence[Any], ends: float) -> Iterator[Any]:
    for done, row in enumerate(rows):
        if time.monotonic() > ends:
            print(f"stopped after {done} of {len(rows)}: run again to go on")
            return
        yield row


def score_of(score: Score) -> dict[str, float | None]:
    return {"corrected": score.corrected, "auroc": score.metrics["auroc"], "yes_rate": score.yes_rate}


def paired(rows: Sequence[dict[str, Any]], run: Any) -> dict[str, Any]:
    """The explanations by hand less the run's own and less the counts, on the same windows."""
    scores = run.scores[run.scores["control"].isna()]
    values = {row["feature"]: row["value"]["corrected"] for row in rows}
    report: dict[str, Any] = {"features": len(values), "mean": mean_of(values.values()), "rows": rows}
    judged = scores[scores["scorer"].str.startswith("detection")]
    rivals = {name: judged[judged["explainer"] == name] for name in RIVALS}
    rivals |= {name: scores[scores["scorer"] == name].drop_duplicates("feature") for name in COUNTS}
    for name, table in rivals.items():
        other = dict(zip(table["feature"], table["corrected"]))
        both = [f for f in values if values[f] is not None and other.get(f) is not None and np.isfinite(other[f])]
        gap = stats.paired_difference([values[f] for f in both], [other[f] for f in both])
        report[f"less {name}"] = {
            "of": mean_of(other[f] for f in both), "mean": gap.mean, "low": gap.low, "high": gap.high, "n": gap.n,
        }  # fmt: skip
    return report


def by_family(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for family in dict.fromkeys(row["family"] for row in rows):
        values = [row["value"] for row in rows if row["family"] == family]
        report[family] = {"rules": len(values)} | {
            name: mean_of(value[name] for value in values) for name in ("corrected", "auroc", "yes_rate")
        }
    every = [row["value"]["corrected"] for row in rows]
    return {"mean": mean_of(every), "families": report, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--judges", nargs="+", default=["qwen2.5-coder-1.5b-instruct"])
    parser.add_argument("--base-url", help="of an OpenAI-compatible endpoint that has the judges")
    parser.add_argument("--texts", type=int, default=16, help="of a rule, half of which follow it")
    parser.add_argument("--minutes", type=float, default=15.0, help="of each judge; then stop, and run again to go on")
    parser.add_argument("--journal", type=Path, default=Path("results/judge-usage.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("results/reference/judge.json"))
    options = parser.parse_args()
    options.journal.parent.mkdir(parents=True, exist_ok=True)
    run, contexts = ai.open_run(options.run), read_contexts(options.run / "contexts.parquet")
    by_hand = [json.loads(line) for line in BY_HAND.read_text(encoding="utf-8").splitlines()]
    if lacking := [str(row["feature"]) for row in by_hand if row["feature"] not in contexts]:
        ids = " ".join(str(row["feature"]) for row in by_hand)
        parser.error(f"{options.run} lacks the features {' '.join(lacking)}: run campaign.py with --ids {ids}")
    judges = [asyncio.run(measure(judge, run, contexts, by_hand, options)) for judge in options.judges]
    command = f"python benchmarks/judge.py RUN --judges {' '.join(options.judges)} --texts {options.texts}"
    options.out.write_text(json.dumps({"command": command, "judges": rounded(judges)}, indent=1) + "\n")
    for each in judges:
        hand, rules = each["by hand"], each["rules"]
        print(each["judge"], json.dumps(rounded({key: value for key, value in hand.items() if key != "rows"})))
        print(json.dumps(rounded({"rules": rules["mean"], **rules["families"]}), indent=1))


if __name__ == "__main__":
    main()
