"""Output tokens: which of a few lists of tokens does the feature promote?

The lists are the tokens whose logits the decoder rows of this and of other features raise by their product with the
unembedding (as VocabProj of 2501.08319): the direct path alone. An explanation that was written from contexts passes
only where what a feature reads tells what it writes.
"""

from __future__ import annotations

from collections.abc import Sequence

from autointerp.plugins import scorer
from autointerp.records import LLM, Context, OutputEffects, Score
from autointerp.scorers.judging import rng_of
from autointerp.scorers.picking import about_effects, check_shown, score_picks

PROMPTS = ("pick_tokens",)


@scorer("output_tokens", needs={"llm", "logit_effects"})
async def score(
    explanation: str,
    examples: Sequence[Context],
    llm: LLM,
    *,
    logit_effects: OutputEffects,
    questions: int = 8,
    shown: int = 4,
    tokens: int = 5,
    reask: int = 2,
    seed: int,
) -> Score:
    """Share of `questions` in which the judge picks the feature's list among `shown`, each of `tokens` tokens drawn
    from the ten that are raised most. The held-out `examples` are not used."""
    check_shown("output_tokens", shown)
    rng = rng_of(examples, seed)
    asked = about_effects(logit_effects, kind="output", questions=questions, shown=shown, part=tokens, rng=rng)
    lacking = "the SAE writes where no logits can be read off it, or there are too few other features"
    return await score_picks(explanation, asked, llm, template="pick_tokens", shown=shown, reask=reask, lacking=lacking)
