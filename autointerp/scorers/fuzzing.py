"""Fuzzing: shown a firing text with words marked, can a judge tell from the explanation whether the marks are right?

Detection asks whether the feature fires in a text, fuzzing on what. Half of the firing windows are shown with their own
tokens marked; the others get the marks of one another. A mark that is lent lies as near to its place as there is a
word that looks like the one it marked (start of a word, letters, capital, length), so that wrong marks are told from
right ones neither by their number, nor by their places, nor by falling on commas and halves of words. No text comes
twice, which would make the labels of a pair depend on each other.
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
    """The firing windows in random order, half of them with their own marks, half with others'.

    Windows that have no room for the marks lent to them are left out of both halves alike.
    """
    windows = [e for e in examples if e.fires and any(a > 0 for a in e.activations)]
    rng.shuffle(windows)
    half = len(windows) // 2
    items = [Item(window, marked(window), True, "marked") for window, _ in _lent(windows[:half])]
    for window, places in _lent(windows[half:]):
        wrong = tuple(float(i in places) for i in range(len(window.tokens)))
        items.append(Item(window, marked(replace(window, activations=wrong)), False, "mismarked"))
    rng.shuffle(items)
    return items


def _lent(windows: Sequence[Context]) -> list[tuple[Context, set[int]]]:
    """Each window with the places of the next one's marks in it; a window without room for them is left out."""
    lent: list[tuple[Context, set[int]]] = []
    for window, donor in zip(windows, [*windows[1:], *windows[:1]]):
        places = _placed(window, donor)
        if window is not donor and places is not None:
            lent.append((window, places))
    return lent


def _placed(window: Context, donor: Context) -> set[int] | None:
    """Where the donor's marks go: silent tokens that look like those it marks, the nearest; None without room."""
    taken = {i for i, activation in enumerate(window.activations) if activation > 0}
    placed: set[int] = set()
    for start, stop in _runs(donor):
        looks, wanted = _looks(donor, start, stop), start * len(window.tokens) / len(donor.tokens)
        best: tuple[float, int] | None = None
        for at in range(len(window.tokens) - (stop - start) + 1):
            span = range(at, at + stop - start)
            if taken.isdisjoint(span) and placed.isdisjoint(range(at - 1, span.stop + 1)):  # apart from other marks
                unlike = sum(a != b for a, b in zip(looks, _looks(window, at, span.stop)))
                cost = len(window.tokens) * unlike + abs(at - wanted)
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


def _looks(context: Context, start: int, stop: int) -> tuple[object, ...]:
    """What shows of the tokens [start, stop) without reading them, and what they stand between."""
    text = "".join(context.tokens[start:stop])
    bare = text.strip()
    before, after = context.tokens[start - 1 : start], context.tokens[stop : stop + 1]
    return (
        text[:1] == " ",
        bare.isalpha(),
        bare[:1].isupper(),
        len(bare) <= 3,
        len(bare) <= 6,
        any(c.isalnum() for c in bare),
        bool(before) and before[0].strip()[-1:].isalnum(),
        bool(after) and after[0].strip()[:1].isalnum(),
        bool(after) and after[0][:1] == " ",
    )
