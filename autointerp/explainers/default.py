"""The default explainer: contexts with the firing tokens marked, token statistics, one phrase asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence

from autointerp.answers import parse_explanation
from autointerp.errors import AutointerpError
from autointerp.explainers.words import shares
from autointerp.plugins import explainer
from autointerp.prompting import REPEAT_TEMPERATURE, render
from autointerp.records import LLM, Context, Explanation, FeatureEvidence, Message

PROMPTS = ("explain",)
MAX_TOKENS = 120  # of an answer; a phrase needs a tenth of it, some models think a line before


@explainer("default")
async def explain(
    feature: FeatureEvidence,
    llm: LLM,
    *,
    examples: int = 12,
    silent: int = 0,
    show_activations: bool = False,
    token_stats: int = 8,
    promoted: int = 0,
    reask: int = 1,
    seed: int,
) -> Explanation:
    """One call, two where the answer is unreadable.

    `examples` firing contexts are shown, spread evenly over the quantiles (only the strongest would lose about
    15 % of the score above chance, 2410.13928), and `silent` of those that do not fire, half of them near misses.
    `token_stats` of the tokens it fires on most and `promoted` of those its direction raises in the output
    (2501.08319: reading and writing side describe a feature better together) are named beside them.
    """
    if any(c.split != "train" for c in (*feature.activating, *feature.random, *feature.near)):
        raise AutointerpError(f"feature {feature.feature}: an explainer was given held-out contexts")
    if not feature.activating:
        return Explanation(None, failure="no train context in which the feature fires")
    rng = random.Random(f"{seed}:{feature.feature}")
    messages = render(
        "explain",
        feature=feature,
        examples=spread(feature.activating, examples, rng),
        silent=silent_contexts(feature, silent, rng),
        show_activations=show_activations,
        stats=[
            (s.token, round(100 * share)) for s, share in shares(feature)[:token_stats] if s.token and share >= 0.01
        ],
        promoted=[token for token, _ in feature.logits_up[:promoted]],
    )
    return await ask(messages, llm, reask)


async def ask(messages: Sequence[Message], llm: LLM, reask: int) -> Explanation:
    """The model's explanation, asked for again, up to `reask` times, where the answer is unreadable."""
    explanation = Explanation(None)
    for attempt in range(1 + reask):
        answer = await llm.complete(
            messages, max_tokens=MAX_TOKENS, attempt=attempt, temperature=REPEAT_TEMPERATURE * (attempt > 0)
        )
        if answer.failure is not None:
            return Explanation(None, answer.failure, explanation.raw)
        explanation = parse_explanation(answer.text, truncated=answer.truncated)
        if explanation.text:
            break
    return explanation


def spread(contexts: Sequence[Context], n: int, rng: random.Random) -> list[Context]:
    """`n` contexts taken in turn from every quantile, drawn at random within each; the strongest first."""
    by_quantile: dict[int, list[Context]] = {}
    for context in contexts:
        by_quantile.setdefault(-1 if context.quantile is None else context.quantile, []).append(context)
    piles = [rng.sample(by_quantile[q], len(by_quantile[q])) for q in sorted(by_quantile, reverse=True)]
    chosen = [pile[turn] for turn in range(max(map(len, piles), default=0)) for pile in piles if turn < len(pile)][:n]
    return sorted(chosen, key=lambda context: -context.peak)


def silent_contexts(feature: FeatureEvidence, n: int, rng: random.Random) -> list[Context]:
    """`n` contexts in which the feature does not fire, half of them near misses."""
    near = rng.sample(feature.near, min(n // 2, len(feature.near)))
    return near + rng.sample(feature.random, min(n - len(near), len(feature.random)))
