"""Fuzzing: shown a firing text with words marked, can a judge tell from the explanation whether the marks are right?

Detection asks whether the feature fires in a text, fuzzing on what. Half of the firing windows are shown with their own
tokens marked; the others exchange their patterns of marks. So the number of marks and their places are distributed
alike, and no text and no pattern comes twice, which would make a pair's labels depend on each other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from autointerp.plugins import scorer
from autointerp.prompting import marked
from autointerp.records import LLM, Context, Score
from autointerp.scorers.judging import Asking, Item, Mode, ask, failed, held_out, summarise

PROMPTS = ("judge_marked_one", "judge_marked_list")


@scorer("fuzzing")
async def score(
    explanation: str,
    examples: Sequence[Context],
    llm: LLM,
    *,
    mode: Mode = "auto",
    batch: int = 25,
    reask: int = 1,
    calibration: Sequence[tuple[bool, float]] = (),
    seed: int,
) -> Score:
    """Judge the marks of every firing window, right ones and wrong ones; silent windows play no part."""
    held_out("fuzzing", examples)
    items = marks(examples, random.Random(f"{seed}:{examples[0].feature if examples else ''}"))
    if not items:
        return failed([], "no two firing windows whose marks could be exchanged")
    how = Asking("judge_marked_one", "judge_marked_list", mode, batch, reask, seed)
    return summarise(items, await ask(explanation, items, llm, how), calibration=calibration)


def marks(examples: Sequence[Context], rng: random.Random) -> list[Item]:
    """The firing windows in random order, half of them with their own marks, half with exchanged ones.

    Windows that find nobody to exchange with are left out of both halves.
    """
    windows = [e for e in examples if e.fires and 0 < sum(a > 0 for a in e.activations) < len(e.tokens)]
    rng.shuffle(windows)
    half = len(windows) // 2
    items = [Item(window, marked(window), True, "marked") for window, _ in _exchanged(windows[:half])]
    for window, pattern in _exchanged(windows[half:]):
        wrong = tuple(float(i in pattern) for i in range(len(window.tokens)))
        items.append(Item(window, marked(replace(window, activations=wrong)), False, "mismarked"))
    rng.shuffle(items)
    return items


def _exchanged(windows: Sequence[Context]) -> list[tuple[Context, frozenset[int]]]:
    """Each window with another's pattern of firing tokens, in which it fires nowhere; every pattern is used once.

    Of the patterns that fit, a window takes that whose marked tokens look most like its own (word starts, letters,
    length), for marks on half words or stops would betray themselves. Windows that fit fewest choose first.
    """
    patterns = {w.example: frozenset(i for i, a in enumerate(w.activations) if a > 0) for w in windows}
    fits = {w.example: {o.example for o in windows if _fits(patterns[o.example], patterns, w)} for w in windows}
    free = [window.example for window in windows]
    exchanged: dict[int, int] = {}
    for window in sorted(windows, key=lambda w: len(fits[w.example])):
        own = patterns[window.example]
        donors = [donor for donor in free if donor in fits[window.example]]
        if donors:
            donor = min(donors, key=lambda donor: _unlikeness(window, own, patterns[donor]))
            free.remove(donor)
            exchanged[window.example] = donor
    return [(w, patterns[exchanged[w.example]]) for w in windows if w.example in exchanged]


def _fits(pattern: frozenset[int], patterns: dict[int, frozenset[int]], window: Context) -> bool:
    return not pattern & patterns[window.example] and max(pattern) < len(window.tokens)


def _unlikeness(window: Context, own: frozenset[int], other: frozenset[int]) -> float:
    right, wrong = _surface(window, own), _surface(window, other)
    return sum(abs(a - b) for a, b in zip(right, wrong))


def _surface(window: Context, places: frozenset[int]) -> tuple[float, float, float]:
    """Means over the tokens at `places`: whether each begins a word, is of letters, and its length in tens."""
    tokens = [window.tokens[i] for i in places]
    n = len(tokens)
    return (
        sum(token[:1] == " " for token in tokens) / n,
        sum(token.strip().isalpha() for token in tokens) / n,
        sum(len(token.strip()) for token in tokens) / n / 10,
    )
