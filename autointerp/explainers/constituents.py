"""Explainers of composites (conjunction, disjunction, constituents): from the explanations of their constituents.

The pipeline fills `feature.constituents` as two options say. `of` names the explainer whose explanations
they carry (None: the config's first that does not itself read them). `pair` says whose they are: the
latent's "own", or, as a control, those of another composite ("swapped") or of latents that fire as often
("random").
"""

from __future__ import annotations

import random
from typing import Literal

from autointerp.explainers.default import ask, spread
from autointerp.plugins import explainer
from autointerp.prompting import render
from autointerp.records import LLM, Explanation, FeatureEvidence

PROMPTS = ("explain_composite",)
Pair = Literal["own", "swapped", "random"]


@explainer("conjunction", needs={"constituents"})
async def conjunction(feature: FeatureEvidence, llm: None, *, of: str | None = None, pair: Pair = "own") -> Explanation:
    """No model: "both g and h". Scored like any explanation, it says how far 'g and h' predict f's contexts."""
    return _joined(feature, "both", "all of", "and")


@explainer("disjunction", needs={"constituents"})
async def disjunction(feature: FeatureEvidence, llm: None, *, of: str | None = None, pair: Pair = "own") -> Explanation:
    """No model: "either g or h", for a latent that two features share because there were not latents enough."""
    return _joined(feature, "either", "any of", "or")


def _joined(feature: FeatureEvidence, two: str, more: str, join: str) -> Explanation:
    if missing := _unexplained(feature):
        return Explanation(None, missing)
    *first, last = [str(part.explanation).rstrip(". ") for part in feature.constituents]
    return Explanation(f"{two if len(first) == 1 else more} {', '.join(first)} {join} {last}")


@explainer("constituents", needs={"llm", "constituents"})
async def explain(
    feature: FeatureEvidence,
    llm: LLM,
    *,
    of: str | None = None,
    pair: Pair = "own",
    examples: int = 10,
    part_examples: int = 4,
    reask: int = 1,
    seed: int,
) -> Explanation:
    """One line "g, when h": the model sees f's contexts and, of each constituent, the explanation, the share of its
    coefficient and `part_examples` contexts. One call, two where the answer is unreadable."""
    if missing := _unexplained(feature):
        return Explanation(None, missing)
    if not feature.activating:
        return Explanation(None, failure="no train context in which the feature fires")
    rng = random.Random(f"{seed}:{feature.feature}")
    whole = sum(part.coefficient for part in feature.constituents)
    parts = [
        (part.explanation, round(100 * part.coefficient / whole), spread(part.contexts, part_examples, rng))
        for part in feature.constituents
    ]
    messages = render("explain_composite", examples=spread(feature.activating, examples, rng), parts=parts)
    return await ask(messages, llm, reask)


def _unexplained(feature: FeatureEvidence) -> str | None:
    """Why the constituents cannot be joined, or None."""
    if not feature.constituents:
        return "no constituents to explain it by"
    lacking = [part for part in feature.constituents if not part.explanation]
    missing = [f"constituent {'union ' * part.union}{part.feature}: {part.failure}" for part in lacking]
    return "; ".join(missing) or None
