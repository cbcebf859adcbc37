"""Discrimination: does the explanation tell this feature's firings from those of its nearest neighbours?

Most explanations that detection finds good also fit other features (2605.12874), which texts without marks cannot
show. Here firing windows with the feature's own marks stand against windows in which a neighbour fires and this
feature is silent, with the neighbour's marks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from autointerp.plugins import scorer
from autointerp.prompting import marked
from autointerp.records import LLM, Context, Neighbour, Score
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
    neighbours: Sequence[Neighbour] = (),
    windows: int = 50,
    seed: int,
    **how: Any,
) -> Pairs:
    """(truth, evidence) of up to `most` marked windows, judged as `score` judges: for other features' scores."""
    items = against(examples, neighbours, windows, rng_of(examples, seed))
    return await calibration_pairs(explanation, items, llm, Asking(*PROMPTS, seed=seed, **how), most)


@scorer("discrimination", needs={"llm", "neighbours", "calibration"}, pairs=pairs)
async def score(
    explanation: str,
    examples: Sequence[Context],
    llm: LLM,
    *,
    neighbours: Sequence[Neighbour] = (),
    windows: int = 50,
    mode: Mode = "auto",
    batch: int = 25,
    reask: int = 1,
    stop_width: float | None = None,
    calibration: Pairs = (),
    seed: int,
) -> Score:
    """Judge up to `windows` firing windows and as many of the neighbours', each neighbour giving an equal part.

    The windows of `neighbours` are of the test split.
    """
    held_out("discrimination", [*examples, *(c for neighbour in neighbours for c in neighbour.contexts)])
    items = against(examples, neighbours, windows, rng_of(examples, seed))
    present = {item.truth for item in items}
    if len(present) < 2:
        return failed(items, "no windows of neighbours" if True in present else "no firing window")
    how = Asking(*PROMPTS, mode, batch, reask, stop_width, seed)
    return summarise(items, await ask(explanation, items, llm, how), calibration=calibration)


def against(
    examples: Sequence[Context], neighbours: Sequence[Neighbour], windows: int, rng: random.Random
) -> list[Item]:
    """The items: firing windows with the feature's marks, and in turn each neighbour's with its own."""
    firing = [e for e in examples if e.fires]
    firing = rng.sample(firing, min(windows, len(firing)))
    shuffled = [rng.sample(n.contexts, len(n.contexts)) for n in neighbours]
    foreign = [context for turn in zip_longest(*shuffled) for context in turn if context is not None][:windows]
    items = [Item(e, marked(e), True, "activating") for e in firing]
    items += [Item(e, marked(e), False, "neighbour") for e in foreign]
    rng.shuffle(items)
    return items
