"""The explainer best_of: several explanations, of which the one that detects best on train windows is kept.

1. The train windows are dealt by document: half are shown to the explainers, half validate. No scorer sees either.
2. The explainers `bases` write in turn, each time from another draw of the windows that are shown.
3. The model judges every validation window by each explanation, as the scorer detection does. The highest average
   precision wins; of equal ones the first.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from autointerp.explainers import default, whole_words
from autointerp.plugins import explainer
from autointerp.records import LLM, Context, Explanation, FeatureEvidence
from autointerp.scorers.judging import Asking, Item, Mode, calibration_pairs
from autointerp.stats import average_precision

PROMPTS = ("explain", "explain_words", "judge_one", "judge_list")
Base = Literal["default", "whole_words"]


@explainer("best_of")
async def explain(
    feature: FeatureEvidence,
    llm: LLM,
    *,
    candidates: int = 4,
    bases: tuple[Base, ...] = ("whole_words", "default"),
    examples: int = 12,
    words: int = 0,
    mode: Mode = "auto",
    batch: int = 25,
    reask: int = 1,
    seed: int,
) -> Explanation:
    """`candidates` explanations, each judged on the validation windows.

    Each of `bases` is shown `examples` windows; `words` is whole_words' own option. The judge is this explainer's
    language model, which is the scorers' as long as neither has one of its own. `mode` and `batch` are detection's.
    """
    shown, held = deal(feature, seed)
    written = []
    for turn in range(candidates):
        options = {"examples": examples, "words": words, "reask": reask, "seed": seed + turn}
        written.append(await write(bases[turn % len(bases)], shown, llm, options))
    return await better(written, held, llm, Asking(mode=mode, batch=batch, reask=reask, seed=seed))


async def write(base: Base, feature: FeatureEvidence, llm: LLM, options: Mapping[str, Any]) -> Explanation:
    """What an explainer that this one builds on says of the feature."""
    if base == "whole_words":
        return await whole_words.explain(feature, llm, **options)
    return await default.explain(feature, llm, **{name: v for name, v in options.items() if name != "words"})


def deal(feature: FeatureEvidence, seed: int) -> tuple[FeatureEvidence, list[Context]]:
    """The evidence with half of its windows, and the windows of the other half; a document's stay together.

    Each kind is dealt in turn, firing windows from strong to weak, so that both halves have some of each quantile.
    A feature with firing windows of one document alone is shown whole, and nothing validates.
    """
    rng = random.Random(f"{seed}:{feature.feature}:deal")
    kinds = {"activating": feature.activating, "random": feature.random, "near": feature.near}
    shown: dict[int, bool] = {}  # by document
    for windows in kinds.values():
        turn = True
        for context in sorted(windows, key=lambda context: (-(context.quantile or 0), rng.random())):
            if context.document not in shown:
                shown[context.document] = turn
                turn = not turn
    held = [context for windows in kinds.values() for context in windows if not shown[context.document]]
    if not any(context.fires for context in held):
        return feature, []
    kept = {kind: tuple(c for c in windows if shown[c.document]) for kind, windows in kinds.items()}
    return replace(feature, **kept), held


async def better(written: Sequence[Explanation], held: Sequence[Context], llm: LLM, how: Asking) -> Explanation:
    """Of the explanations that are one the best on `held`, with all values in `raw`; else the first, with why."""
    texts = list(dict.fromkeys(each.text for each in written if each.text))
    if len(texts) < 2 or not held:
        return next((each for each in written if each.text), written[0])
    values = [await _detects(text, held, llm, how) for text in texts]
    ranks = [-1.0 if value is None else value for value in values]
    best = ranks.index(max(ranks))
    lines = [f"{'no value' if value is None else f'{value:.3f}'}  {text}" for value, text in zip(values, texts)]
    return Explanation(texts[best], raw="\n".join([f"average precision on {len(held)} train windows:", *lines]))


async def _detects(text: str, windows: Sequence[Context], llm: LLM, how: Asking) -> float | None:
    """How well the explanation ranks the windows that fire; None where those that could be judged are of one kind."""
    items = [Item.window(window) for window in windows]
    pairs = await calibration_pairs(text, items, llm, how, 2 * len(items))  # so many that all are drawn
    truth = [fires for fires, _ in pairs]
    return average_precision(truth, [evidence for _, evidence in pairs]) if len(set(truth)) == 2 else None
