"""The explainer whole_words: contexts with whole words marked, how specific each token is, and what lies near."""

from __future__ import annotations

import random

from autointerp.errors import AutointerpError
from autointerp.explainers.default import ask, silent_contexts, spread
from autointerp.explainers.words import form_of, naming, on_whole_words, token_uses, typical_words
from autointerp.plugins import explainer
from autointerp.prompting import render
from autointerp.records import LLM, Context, Explanation, FeatureEvidence

PROMPTS = ("explain_words",)
NEIGHBOUR_CONTEXTS = 2  # of each neighbour


@explainer("whole_words")
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
    words: int = 0,
    hint: bool = True,
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
    `neighbours` features near it, from which it is to be told apart. Behind the model's phrase come up to `words` of
    the feature's typical words, as token_stats would list them. The `hint` says what form of answer the token counts
    ask for (`words.form_of`), because a weak model gives every feature the same one.
    """
    lent = [context for near in feature.neighbours for context in near.contexts]
    if any(c.split != "train" for c in (*feature.activating, *feature.random, *feature.near, *lent)):
        raise AutointerpError(f"feature {feature.feature}: an explainer was given held-out contexts")
    if not feature.activating:
        return Explanation(None, failure="no train context in which the feature fires")
    rng = random.Random(f"{seed}:{feature.feature}")
    shown = on_whole_words if whole_words else _as_it_is
    uses = token_uses(feature)
    messages = render(
        "explain_words",
        feature=feature,
        examples=[shown(context) for context in spread(feature.activating, examples, rng)],
        silent=silent_contexts(feature, silent, rng),
        show_activations=show_activations,
        form=form_of(uses) if hint else None,
        uses=[use for use in uses if use.share >= 0.01][:token_stats],
        promoted=[token for token, _ in feature.logits_up[:promoted]],
        suppressed=[token for token, _ in feature.logits_down[:suppressed]],
        neighbours=[
            [shown(context) for context in spread(near.contexts, NEIGHBOUR_CONTEXTS, rng)]
            for near in feature.neighbours[:neighbours]
        ],
    )
    explanation = await ask(messages, llm, reask)
    return naming(explanation, typical_words(uses, words)) if words else explanation


def _as_it_is(context: Context) -> Context:
    return context
