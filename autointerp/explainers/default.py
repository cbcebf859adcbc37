"""The default explainer: a spread of contexts with the firing words marked, token statistics, one phrase asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence

from autointerp.answers import parse_explanation
from autointerp.errors import AutointerpError
from autointerp.explainers.words import on_whole_words, token_uses
from autointerp.plugins import explainer
from autointerp.prompting import REPEAT_TEMPERATURE, render
from autointerp.records import LLM, Context, Explanation, FeatureEvidence, Message

PROMPTS = ("explain",)
NEIGHBOUR_CONTEXTS = 2  # of each neighbour
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
    whole_words: bool = True,
    promoted: int = 0,
    suppressed: int = 0,
    neighbours: int = 0,
    reask: int = 1,
    seed: int,
) -> Explanation:
    """One call, two where the answer is unreadable.

    `examples` firing contexts are shown, spread evenly over the quantiles (only the strongest would lose about
    15 % of the score above chance, 2410.13928), and `silent` of those that do not fire, half of them near misses.
    With `whole_words` a mark covers the word of which a firing token is a fragment. Beside them stand `token_stats`
    of its tokens, each with its share of the firings and with how many of its own occurrences fire (38 of 38 says
    more than 12 %); `promoted` and `suppressed` of the tokens that its direction raises and lowers in the output
    (2501.08319: reading and writing side describe a feature better together); and two contexts of each of the first
    `neighbours` features near it, from which it is to be told apart.
    """
    lent = [context for near in feature.neighbours for context in near.contexts]
    if any(c.split != "train" for c in (*feature.activating, *feature.random, *feature.near, *lent)):
        raise AutointerpError(f"feature {feature.feature}: an explainer was given held-out contexts")
    if not feature.activating:
        return Explanation(None, failure="no train context in which the feature fires")
    rng = random.Random(f"{seed}:{feature.feature}")
    shown = on_whole_words if whole_words else _as_it_is
    messages = render(
        "explain",
        feature=feature,
        examples=[shown(context) for context in spread(feature.activating, examples, rng)],
        silent=_silent(feature, silent, rng),
        show_activations=show_activations,
        uses=[use for use in token_uses(feature) if use.share >= 0.01][:token_stats],
        promoted=[token for token, _ in feature.logits_up[:promoted]],
        suppressed=[token for token, _ in feature.logits_down[:suppressed]],
        neighbours=[
            [shown(context) for context in spread(near.contexts, NEIGHBOUR_CONTEXTS, rng)]
            for near in feature.neighbours[:neighbours]
        ],
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


def _silent(feature: FeatureEvidence, n: int, rng: random.Random) -> list[Context]:
    near = rng.sample(feature.near, min(n // 2, len(feature.near)))
    return near + rng.sample(feature.random, min(n - len(near), len(feature.random)))


def _as_it_is(context: Context) -> Context:
    return context
