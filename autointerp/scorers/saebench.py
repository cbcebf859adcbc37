"""SAEBench's autointerp score: 14 short texts at once, which of them does the feature fire in? Its plain accuracy.

For figures that compare with published ones (SAEBench, 2503.09532), with the sampling and the question of that
benchmark: 2 of the 12 strongest windows, 2 of the others in proportion to their squared peak, 10 silent, each with 10
tokens to either side of its peak, shuffled, in one request answered by numbers or None. The question is in words of
our own. Two things differ, and are meant: the windows are held-out ones of the run, evenly over its quantiles, and an
answer that cannot be read leaves the feature unscored with the reason, where SAEBench drops it from the mean.

A judge that always answers None has .714: read `corrected`, or a scorer that passes the checks of 2506.05774.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import replace

from autointerp import stats
from autointerp.answers import spoken
from autointerp.plugins import scorer
from autointerp.prompting import REPEAT_TEMPERATURE, plain, render
from autointerp.records import LLM, Context, Judgement, Score
from autointerp.scorers.judging import Item, failed, held_out, rng_of

PROMPTS = ("judge_saebench",)
STRONGEST = 12  # from which the top windows are drawn: 10 of them explain there


@scorer("saebench")
async def score(
    explanation: str,
    examples: Sequence[Context],
    llm: LLM,
    *,
    top: int = 2,
    weighted: int = 2,
    silent: int = 10,
    buffer: int = 10,
    reask: int = 1,
    seed: int,
) -> Score:
    """One question over `top` + `weighted` + `silent` windows of 2 `buffer` + 1 tokens."""
    held_out("saebench", examples)
    rng = rng_of(examples, seed)
    items = sample(examples, rng, top=top, weighted=weighted, silent=silent, buffer=buffer)
    if items is None:
        return failed([], f"needs {top + weighted} firing and {silent} random windows: raise contexts.test_activating")
    named = await _answer(explanation, items, llm, reask)
    if isinstance(named, str):
        return failed(items, named)
    hits = [(number in named) == item.truth for number, item in enumerate(items, start=1)]
    value, yes = sum(hits) / len(items), sum(number in named for number in range(1, len(items) + 1)) / len(items)
    low, high = stats.share_interval(sum(hits), len(items)) or (None, None)
    base = sum(item.truth for item in items) / len(items)
    chance = base * yes + (1 - base) * (1 - yes)  # as many named, the labels permuted
    return Score(
        value,
        low,
        high,
        len(items),
        0,
        base,
        {"accuracy": value, "accuracy_of_none": 1 - base},
        tuple(_judgement(item, number in named) for number, item in enumerate(items, start=1)),
        chance=chance,
        corrected=stats.chance_corrected(value, chance),
        yes_rate=yes,
    )


def sample(
    examples: Sequence[Context], rng: random.Random, *, top: int, weighted: int, silent: int, buffer: int
) -> list[Item] | None:
    """The windows of one question in random order; None where there are too few."""
    firing = sorted((e for e in examples if e.fires and e.peak > 0), key=lambda e: (-e.peak, e.example))
    random_ones = sorted((e for e in examples if e.kind == "random"), key=lambda e: e.example)
    if len(firing) < top + weighted or len(random_ones) < silent:
        return None
    strongest = firing[: max(top, min(STRONGEST, len(firing) - weighted))]
    rest = firing[len(strongest) :]
    chosen = [*rng.sample(strongest, top), *_in_proportion(rest, weighted, rng), *rng.sample(random_ones, silent)]
    items = [Item(context, plain(_cut(context, buffer)), context.fires, context.kind) for context in chosen]
    rng.shuffle(items)
    return items


def _in_proportion(windows: Sequence[Context], n: int, rng: random.Random) -> list[Context]:
    """`n` windows without replacement, in proportion to their squared peak (Efraimidis and Spirakis 2006)."""
    keys = {window.example: math.log(1 - rng.random()) / window.peak**2 for window in windows}
    return sorted(windows, key=lambda window: -keys[window.example])[:n]


def _cut(context: Context, buffer: int) -> Context:
    """`buffer` tokens to either side of the peak, of a silent window of its middle; as many where an end is near."""
    n = len(context.tokens)
    middle = context.activations.index(context.peak) if context.peak > 0 else n // 2
    start = max(0, min(middle - buffer, n - (2 * buffer + 1)))
    span = slice(start, start + 2 * buffer + 1)
    return replace(context, tokens=context.tokens[span], activations=context.activations[span])


async def _answer(explanation: str, items: Sequence[Item], llm: LLM, reask: int) -> set[int] | str:
    """The numbers said, from 1; or why nothing could be read."""
    positive = sum(item.truth for item in items)
    messages = render(
        "judge_saebench", explanation=explanation, texts=[item.text for item in items], like=range(2, 2 + positive)
    )
    failure = "not asked"
    for attempt in range(1 + reask):
        answer = await llm.complete(
            messages, max_tokens=5 * len(items) + 5, attempt=attempt, temperature=REPEAT_TEMPERATURE * (attempt > 0)
        )
        if answer.text is None:
            return answer.failure or "the judge gave no answer"
        said, unread = spoken(answer.text)
        named = read(said, len(items))
        if named is not None:
            return named
        failure = unread or f"the answer is neither numbers nor None: {said[:60]!r}"
    return failure


def read(text: str, n: int) -> set[int] | None:
    """Numbers from 1 to `n` with commas or "and" between them, or None for none; Python's None for anything else."""
    bare = text.strip().rstrip(".").strip()
    if bare.lower() in ("none", '"none"', "'none'"):
        return set()
    parts = [part for part in re.split(r"\s*(?:,|\band\b|\s)\s*", bare) if part]
    if not parts or not all(re.fullmatch(r"\d{1,3}", part) for part in parts):
        return None
    numbers = {int(part) for part in parts}
    return numbers if all(1 <= number <= n for number in numbers) else None


def _judgement(item: Item, yes: bool) -> Judgement:
    context = item.context
    return Judgement(context.example, item.kind, context.quantile, float(item.truth), float(yes), text=item.text)
