"""Steering: which of a few groups of texts did the subject write while the feature was added to its activations?

A causal test of the output side (2410.13928, 2501.08319): what the explanation says should show in what the subject
does. `activations.steering` says how strongly a feature is added. The other groups were written under other features.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from autointerp.plugins import scorer
from autointerp.records import LLM, Context, OutputEffects, Score
from autointerp.scorers.judging import rng_of
from autointerp.scorers.picking import about_effects, check_shown, score_picks

PROMPTS = ("pick_texts",)


@scorer("steering", needs={"llm", "steered"})
async def score(
    explanation: str,
    examples: Sequence[Context],
    llm: LLM,
    *,
    steered: Callable[[], Awaitable[OutputEffects]],
    questions: int = 8,
    shown: int = 4,
    texts: int = 2,
    reask: int = 2,
    seed: int,
) -> Score:
    """Share of `questions` in which the judge picks the feature's group among `shown`, each of `texts` texts drawn
    from the eight that were written. The held-out `examples` are not used."""
    check_shown("steering", shown)
    rng = rng_of(examples, seed)
    asked = about_effects(await steered(), kind="steered", questions=questions, shown=shown, part=texts, rng=rng)
    lacking = "there are too few other features"
    return await score_picks(explanation, asked, llm, template="pick_texts", shown=shown, reask=reask, lacking=lacking)
