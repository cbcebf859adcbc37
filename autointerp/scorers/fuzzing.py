"""Fuzzing: shown a firing text with words marked, can a judge tell from the explanation whether the marks are right?

Detection asks whether the feature fires in a text, fuzzing on what (both 2410.13928). Firing windows are paired: in
half of the pairs each shows its own marks, in the others each shows the other's. A mark that is lent lies as near to
its place as there is a silent run of tokens that looks like the one it marked (start of a word, letters, capital,
length, what stands on both sides). Two windows are a pair only where both have room for the other's marks, so that
neither number nor place nor looks of the marks tell right from wrong. With a weaker match a judge of such figures
gained .03: a feature that fires on every comma leaves none for a wrong mark. No text comes twice, which would tie the
labels of a pair together.

So both windows of a pair have one label, and are alike. Chance is therefore that of labels drawn by pair, and the
interval sums over pairs too: where evidence correlates by .9 within pairs, a judge who knows nothing would else be .018
above chance on 20 windows and .011 on 50, and its interval above the base rate for 4 to 5 % of the features, in place
of under 2 %.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from autointerp.plugins import scorer
from autointerp.prompting import marked
from autointerp.records import LLM, Context, Score
from autointerp.scorers.judging import (
    Asking,
    Item,
    Mode,
    Pairs,
    ask,
    calibration_pairs,
    failed,
    held_out,
    rng_of,
    summarise,
)

PROMPTS = ("judge_marked_one", "judge_marked_list")


async def pairs(
    explanation: str,
    examples: Sequence[Context],
    llm: LLM,
    *,
    most: int,
    seed: int,
    **how: Any,
) -> Pairs:
    """(truth, evidence) of up to `most` marked windows, judged as `score` judges: for other features' scores."""
    return await calibration_pairs(
        explanation, marks(examples, rng_of(examples, seed)), llm, Asking(*PROMPTS, seed=seed, **how), most
    )


@scorer("fuzzing", needs={"llm", "calibration"}, pairs=pairs)
async def score(
    explanation: str,
    examples: Sequence[Context],
    llm: LLM,
    *,
    mode: Mode = "auto",
    batch: int = 25,
    reask: int = 1,
    stop_width: float | None = None,
    calibration: Pairs = (),
    seed: int,
) -> Score:
    """Judge the marks of every firing window, right ones and wrong ones; silent windows play no part."""
    held_out("fuzzing", examples)
    items = marks(examples, rng_of(examples, seed))
    if not items:
        return failed([], "no two firing windows whose marks could be exchanged")
    how = Asking(*PROMPTS, mode, batch, reask, stop_width, seed)
    return summarise(items, await ask(explanation, items, llm, how), calibration=calibration)


def marks(examples: Sequence[Context], rng: random.Random) -> list[Item]:
    """Pairs of firing windows, each of which has room for the other's marks: half of them with their own, half with the
    other's. Windows without such a partner are left out; none are left of fewer than two pairs."""
    windows = [e for e in examples if e.fires and any(a > 0 for a in e.activations)]
    rng.shuffle(windows)
    pairs = _pairs(windows)
    if len(pairs) < 2:
        return []
    items: list[Item] = []
    for number, pair in enumerate(pairs):
        for window, places in pair:
            if number % 2:
                items.append(Item(window, marked(window), True, "marked", number))
            else:
                wrong = tuple(float(i in places) for i in range(len(window.tokens)))
                text = marked(replace(window, activations=wrong))
                items.append(Item(window, text, False, "mismarked", number))
    rng.shuffle(items)
    return items


def _pairs(windows: Sequence[Context]) -> list[list[tuple[Context, set[int]]]]:
    """Each window in turn with the next that can exchange marks with it, and where the other's marks go in each."""
    pairs: list[list[tuple[Context, set[int]]]] = []
    alone: list[Context] = []
    for window in windows:
        for other in alone:
            here, there = _placed(window, other), _placed(other, window)
            if here is not None and there is not None:
                pairs.append([(other, there), (window, here)])
                alone.remove(other)
                break
        else:
            alone.append(window)
    return pairs


def _placed(window: Context, donor: Context) -> set[int] | None:
    """Where the donor's marks go: silent tokens that look like those it marks, the nearest; None without room."""
    taken = {i for i, activation in enumerate(window.activations) if activation > 0}
    placed: set[int] = set()
    for start, stop in _runs(donor):
        looks, length = _looks(donor, start, stop)
        wanted = start * len(window.tokens) / len(donor.tokens)
        best: tuple[float, int] | None = None
        for at in range(len(window.tokens) - (stop - start) + 1):
            span = range(at, at + stop - start)
            if taken.isdisjoint(span) and placed.isdisjoint(range(at - 1, span.stop + 1)):  # apart from other marks
                here, size = _looks(window, at, span.stop)
                if here == looks and abs(size - length) <= 1:
                    cost = abs(size - length) * len(window.tokens) + abs(at - wanted)
                    best = min(best or (cost, at), (cost, at))
        if best is None:
            return None
        placed.update(range(best[1], best[1] + stop - start))
    return placed


def _runs(context: Context) -> list[tuple[int, int]]:
    """[start, stop) of each run of firing tokens, which is one mark."""
    fires = [False, *(activation > 0 for activation in context.activations), False]
    edges = [i for i in range(len(fires) - 1) if fires[i] != fires[i + 1]]
    return list(zip(edges[::2], edges[1::2]))


def _looks(context: Context, start: int, stop: int) -> tuple[tuple[bool, ...], int]:
    """What shows of the tokens [start, stop) without reading them, with what they stand between, and their length."""
    text = "".join(context.tokens[start:stop])
    bare = text.strip()
    before, after = context.tokens[start - 1 : start], context.tokens[stop : stop + 1]
    shows = (
        text[:1] == " ",
        bare.isalpha(),
        any(c.isalnum() for c in bare),
        bare[:1].isupper(),
        bool(before) and before[0].strip()[-1:].isalnum(),
        bool(after) and after[0].strip()[:1].isalnum(),
        bool(after) and after[0][:1] == " ",
    )
    return shows, len(bare)
