"""Scorers that use neither explanation nor model. What they score above chance, the choice of windows gives away."""

from __future__ import annotations

from collections.abc import Sequence

from autointerp.plugins import scorer
from autointerp.records import Context, RandomWindows, Score
from autointerp.scorers.judging import Item, counted, held_out, summarise


@scorer("position", needs=())
async def position(explanation: str, examples: Sequence[Context], llm: None) -> Score:
    """Rank windows by where they stand: the nearer to their document's start, the likelier to fire."""
    held_out("position", examples)
    ranks = [(-float(e.position), None) for e in examples]
    return summarise([Item.window(e) for e in examples], ranks, answers=False)


@scorer("constant", needs={"random_windows"})
async def constant(
    explanation: str, examples: Sequence[Context], llm: None, *, random_windows: RandomWindows | None = None
) -> Score:
    """Say Yes to every window: the value is the base rate, the corrected value 0."""
    held_out("constant", examples)
    got = summarise([Item.window(e) for e in examples], [(1.0, None) for _ in examples])
    return counted(got, random_windows, lambda tokens: 1.0)
