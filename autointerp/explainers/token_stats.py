"""The token_stats explainer: names the tokens on which the feature fires; the baseline without a language model."""

from __future__ import annotations

from autointerp.plugins import explainer
from autointerp.prompting import on_one_line
from autointerp.records import Explanation, FeatureEvidence, TokenStat


@explainer("token_stats", needs=())
async def explain(feature: FeatureEvidence, llm: None, *, tokens: int = 5, min_share: float = 0.05) -> Explanation:
    """The up to `tokens` tokens that it fires on most and most specifically, each with its share of the firings.

    Ranked by firings × (firings / occurrences), so that a frequent token on which it fires now and then does not
    stand before a rarer one on which it always fires. Tokens below `min_share` of the firings are left out.
    """
    if not feature.token_stats:
        return Explanation(None, failure="no token statistics of the feature")
    named = [(stat, share) for stat, share in shares(feature) if share >= min_share]
    if not named:
        return Explanation(None, failure=f"no token makes up {min_share:.0%} of the firings")
    named.sort(key=lambda pair: -pair[1] * specificity(pair[0]))
    listed = [f'"{on_one_line(stat.token)}" ({share:.0%} of firings)' for stat, share in named[:tokens]]
    return Explanation(f"the token{'s' if len(listed) > 1 else ''} {', '.join(listed)}")


def shares(feature: FeatureEvidence) -> list[tuple[TokenStat, float]]:
    """Each listed token with its share of the firings in train documents, which is where tokens are counted."""
    total = feature.train_firings
    if total is None:
        total = sum(stat.fired for stat in feature.token_stats)
    return [(stat, stat.fired / total) for stat in feature.token_stats if total]


def specificity(stat: TokenStat) -> float:
    """Share of the token's occurrences on which the feature fires."""
    return stat.fired / stat.seen if stat.seen else 0.0
