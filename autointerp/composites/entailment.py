"""Entailment table: a judge's verdict on each composite's explanation and its constituents', and the means over all."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from autointerp.composites.evidence import PAIRS, Pair
from autointerp.composites.flagged import Flagged
from autointerp.composites.semantics import entails
from autointerp.composites.union import split_by_dictionary
from autointerp.records import LLM
from autointerp.stats import paired_difference

PROMPTS = ("judge_entails",)


async def judge_pair(feature: int, pair: Pair, flagged: Flagged, llm: LLM) -> dict[str, Any]:
    """One row of semantic.parquet.

    `semantic` is the smallest probability that the composite's explanation entails one of its parts': that of "g and
    h" entails each. `semantic_either` is that of the other way: each part of "g or h" entails it.
    """
    parts = flagged.parts[pair].get(feature)
    mine, lent = split_by_dictionary(parts or (), flagged.d_sae)
    row: dict[str, Any] = {"feature": feature, "pair": pair, "constituents": mine, "union_constituents": lent}
    if not parts:
        return row | {"failure": "no other composite to swap with" if pair == "swapped" else "too few other features"}
    if feature not in flagged.texts:
        return row | {"failure": f"not explained: {flagged.failure(feature)}"}
    if lacking := flagged.missing(parts):
        return row | {"failure": "; ".join(lacking)}
    whole = flagged.texts[feature]
    texts = [flagged.texts[part] for part in parts]
    forth = await asyncio.gather(*(entails(whole, text, llm) for text in texts))
    back = await asyncio.gather(*(entails(text, whole, llm) for text in texts))
    row |= {"probabilities": [answer.probability for answer in forth]}
    row |= {"reverse": [answer.probability for answer in back]}
    for column, answers in (("semantic", forth), ("semantic_either", back)):
        known = [answer.probability for answer in answers if answer.probability is not None]
        row[column] = min(known) if len(known) == len(parts) else None
    lost = list(dict.fromkeys(answer.failure for answer in (*forth, *back) if answer.failure))
    return row | ({"failure": "; ".join(lost)} if lost else {})


def entailed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over the rows of semantic.parquet: how often the explanation of a composite is the conjunction, or one of which
    either part is enough, and how far own pairs are above the controls."""
    own = sum(row["pair"] == "own" for row in rows)
    facts = {"composites": own} | _direction(rows, "semantic") | {"either": _direction(rows, "semantic_either")}
    return facts | ({"search": _direction(rows, "agree")} if any(row.get("agree") is not None for row in rows) else {})


def _direction(rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, Any]:
    by_pair = {pair: {row["feature"]: row.get(column) for row in rows if row["pair"] == pair} for pair in PAIRS}
    own = by_pair["own"]
    judged = [p for p in own.values() if p is not None]
    facts: dict[str, Any] = {"judged": len(judged)}
    if judged:
        facts["entailed"] = sum(p >= 0.5 for p in judged) / len(judged)
    for pair in PAIRS:
        known = [p for p in by_pair[pair].values() if p is not None]
        facts[pair] = sum(known) / len(known) if known else None
        if pair != "own":
            difference = paired_difference(list(own.values()), [by_pair[pair].get(f) for f in own])
            facts[f"above_{pair}"] = asdict(difference)
    return facts
