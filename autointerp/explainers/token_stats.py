"""The baseline that every language model has to beat: the tokens on which the feature fires, named."""

from __future__ import annotations

from autointerp.plugins import explainer
from autointerp.prompting import on_one_line
from autointerp.records import Explanation, FeatureEvidence, TokenStat


@explainer("token_stats", needs_llm=False)
async def explain(feature: FeatureEvidence, llm: None, *, tokens: int = 5, min_share: float = 0.05) -> Explanation:
    """The up to `tokens` tokens that it fires on most and most specifically, each with its share of the firings.

    Ranked by firings × (firings / occurrences), so that a frequent token on which it fires now and then does not
    stand before a rarer one on which it always fires. Tokens below `min_share` of the firings are left out.
    """
    if not feature.token_stats or not feature.firings:
        return Explanation(None, failure="no token statistics of the feature")
    named = [stat for stat in feature.token_stats if stat.fired >= min_share * feature.firings]
    if not named:
        return Explanation(None, failure=f"no token makes up {min_share:.0%} of the firings")
    named.sort(key=lambda stat: -stat.fired * specificity(stat))
    listed = [f'"{on_one_line(stat.token)}" ({stat.fired / feature.firings:.0%} of firings)' for stat in named[:tokens]]
    return Explanation(f"the token{'s' if len(listed) > 1 else ''} {', '.join(listed)}")


def specificity(stat: TokenStat) -> float:
    """Share of the token's occurrences on which the feature fires."""
    return stat.fired / stat.seen if stat.seen else 0.0
