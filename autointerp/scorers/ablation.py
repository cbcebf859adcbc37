"""Ablation: which of a few lists of tokens become less likely next where the feature is taken off?

The other causal test of the output side: the feature's own part of what the SAE decodes is subtracted in held-out
texts on which it fires, and what the subject expects next is compared (`activations.steering`). Later layers are
included, unlike in `output_tokens`. The other lists are of other features, in the texts on which those fire.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from autointerp.plugins import scorer
from autointerp.records import LLM, Context, OutputEffects, Score
from autointerp.scorers.judging import rng_of
from autointerp.scorers.picking import about_effects, check_shown, score_picks

PROMPTS = ("pick_tokens",)


@scorer("ablation", needs={"llm", "ablated"})
async def score(
    explanation: str,
    examples: Sequence[Context],
    llm: LLM,
    *,
    ablated: Callable[[], Awaitable[OutputEffects]],
    questions: int = 8,
    shown: int = 4,
    tokens: int = 5,
    reask: int = 2,
    seed: int,
) -> Score:
    """Share of `questions` in which the judge picks the feature's list among `shown`, each of `tokens` tokens drawn
    from the ten that fall most. The held-out `examples` tell no more than the texts."""
    check_shown("ablation", shown)
    rng = rng_of(examples, seed)
    asked = about_effects(await ablated(), kind="ablated", questions=questions, shown=shown, part=tokens, rng=rng)
    lacking = "it fires in none of its held-out texts, or there are too few other features"
    return await score_picks(explanation, asked, llm, template="pick_tokens", shown=shown, reask=reask, lacking=lacking)
