"""Search by concept: which explained latents say what a composite's explanation says, whatever their directions?

1. `nearest_texts`: of all explanations of the run, the union dictionary's too, those nearest to the composite's as an
   embedding model sees them.
2. `by_concept`: the judge is asked which of these the composite's explanation entails; the likeliest are found, as many
   as it has constituents, the nearer first where the judge says the same of several.
3. `agreement`: the share of the constituents, found by direction, that are among them; of a control's the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from autointerp.composites.evidence import Pair
from autointerp.composites.flagged import Flagged
from autointerp.composites.semantics import entails
from autointerp.records import LLM

SHORTLIST = 8  # explanations that the judge is asked about

Embed = Callable[[Sequence[str]], np.ndarray]  # n texts -> unit rows [n, d]


def nearest_texts(flagged: Flagged, embed: Embed) -> dict[int, list[int]]:
    """For each composite that has an explanation, the `SHORTLIST` other latents whose explanations are nearest to it,
    the nearest first."""
    latents = sorted(flagged.texts)
    rows = embed([flagged.texts[latent] for latent in latents]) if latents else np.zeros((0, 1))
    place = {latent: i for i, latent in enumerate(latents)}
    nearest = {}
    for feature in flagged.parts["own"]:
        if feature in place:
            cosines = rows @ rows[place[feature]]
            cosines[place[feature]] = -np.inf
            order = np.argsort(-cosines, kind="stable")[: min(SHORTLIST, len(latents) - 1)]
            nearest[feature] = [latents[i] for i in order.tolist()]
    return nearest


async def by_concept(whole: str, texts: Sequence[str], count: int, llm: LLM) -> tuple[list[int], str | None]:
    """Which `count` of `texts`, the nearest first, `whole` entails most likely, as places in `texts`; none, and why,
    where the judge could not be read about one of them."""
    answers = await asyncio.gather(*(entails(whole, text, llm) for text in texts))
    probabilities = [answer.probability for answer in answers]
    known = [value for value in probabilities if value is not None]
    if len(known) < len(texts):
        return [], "; ".join(dict.fromkeys(answer.failure for answer in answers if answer.failure))
    order = sorted(range(len(texts)), key=lambda i: (-known[i], i))
    return order[:count], None


def agreement(chosen: Sequence[int], parts: Sequence[int]) -> float:
    """The share of `parts` that are among the `chosen`."""
    return float(np.mean(np.isin(parts, chosen)))


async def searched(
    feature: int, near: Mapping[int, Sequence[int]], flagged: Flagged, llm: LLM
) -> dict[Pair, dict[str, Any]]:
    """What rows of semantic.parquet hold of the search, by pair: the latents found, and the share of the pair's that
    are among them; or the reason why there are none."""
    pairs: dict[Pair, Sequence[int]] = {
        pair: parts[feature] for pair, parts in flagged.parts.items() if feature in parts
    }
    shortlist = near.get(feature, [])
    if not shortlist:
        return {pair: {"failure": "search: no other explanation to search in"} for pair in pairs}
    lacking = flagged.missing(flagged.parts["own"][feature])
    if lacking:
        return {pair: {"failure": f"search: {'; '.join(lacking)}"} for pair in pairs}
    texts = [flagged.texts[latent] for latent in shortlist]
    places, why = await by_concept(flagged.texts[feature], texts, len(flagged.parts["own"][feature]), llm)
    if why is not None:
        return {pair: {"failure": f"search: {why}"} for pair in pairs}
    chosen = [shortlist[i] for i in places]
    names = [flagged.name(latent) for latent in chosen]
    return {pair: {"by_concept": names, "agree": agreement(chosen, parts)} for pair, parts in pairs.items()}


def with_search(row: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A row of semantic.parquet with what the search says, reasons behind each other."""
    reasons = [each["failure"] for each in (row, chosen) if each.get("failure")]
    return {**row, **chosen} | ({"failure": "; ".join(reasons)} if reasons else {})
