"""The token_stats explainer: names the tokens on which the feature fires; the baseline without a language model."""

from __future__ import annotations

from typing import Literal

from autointerp.explainers.words import token_uses, typical_words
from autointerp.plugins import explainer
from autointerp.prompting import on_one_line
from autointerp.records import Explanation, FeatureEvidence

Form = Literal["words", "shares"]


@explainer("token_stats", needs=())
async def explain(
    feature: FeatureEvidence,
    llm: None,
    *,
    tokens: int = 5,
    min_share: float = 0.05,
    min_specificity: float = 0.02,
    form: Form = "words",
) -> Explanation:
    """The up to `tokens` tokens that it fires on most and most specifically, ranked by share · specificity.

    As a plain list of ``words`` (dog, cat), which a judge reads best, fragments as the whole words they stand in; or
    each token as it is with its ``shares`` of the firings. Tokens below `min_share` of the firings are left out, and
    those on which it fires in less than `min_specificity` of their occurrences, unless there is no other.
    """
    if not feature.token_stats:
        return Explanation(None, failure="no token statistics of the feature")
    uses = token_uses(feature)
    frequent = [use for use in uses if use.share >= min_share]
    if not frequent:
        return Explanation(None, failure=f"no token makes up {min_share:.0%} of the firings")
    if form == "words":
        words = typical_words(uses, tokens, min_share=min_share, min_specificity=min_specificity)
        return Explanation(", ".join(words) or f'"{on_one_line(frequent[0].token)}"')
    named = [use for use in frequent if use.specificity >= min_specificity][:tokens] or frequent[:1]
    listed = [f'"{on_one_line(use.token)}" ({use.share:.0%} of firings)' for use in named]
    return Explanation(f"the token{'s' if len(listed) > 1 else ''} {', '.join(listed)}")
