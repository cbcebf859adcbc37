"""The explainer revise: an explanation is tried on train windows, and asked for again beside what it gets wrong there.

1. The train windows are dealt as best_of deals them: half are shown, half validate. No scorer sees either.
2. The explainer `base` writes a first explanation from the half that is shown.
3. The model judges that half by it, as the scorer detection does. Firing windows that it ranks too low and silent
   ones that it ranks too high are its mistakes; a new explanation is asked for beside them, `rounds` times.
4. What detects best on the validation windows is kept, the earlier where two tie.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from autointerp.explainers.best_of import Base, better, deal, write
from autointerp.explainers.default import ask, spread
from autointerp.explainers.words import naming, on_whole_words, token_uses, typical_words
from autointerp.plugins import explainer
from autointerp.prompting import render
from autointerp.records import LLM, Context, Explanation, FeatureEvidence
from autointerp.scorers.judging import Asking, Item, Mode
from autointerp.scorers.judging import ask as judge

PROMPTS = ("explain", "explain_words", "explain_revise", "judge_one", "judge_list")


@explainer("revise")
async def explain(
    feature: FeatureEvidence,
    llm: LLM,
    *,
    base: Base = "whole_words",
    rounds: int = 1,
    mistakes: int = 4,
    examples: int = 12,
    words: int = 0,
    mode: Mode = "auto",
    batch: int = 25,
    reask: int = 1,
    seed: int,
) -> Explanation:
    """A first explanation and up to `rounds` revisions; none is asked for where nothing was wrong.

    At most `mistakes` firing windows that were missed, and as many silent ones that were not, stand in a request. The
    judge is this explainer's language model; `mode` and `batch` are detection's, `words` is whole_words' own option.
    """
    shown, held = deal(feature, seed)
    how = Asking(mode=mode, batch=batch, reask=reask, seed=seed)
    options = {"examples": examples, "words": words, "reask": reask, "seed": seed}
    written = [await write(base, shown, llm, options)]
    windows = [*shown.activating, *shown.random, *shown.near]
    rng = random.Random(f"{seed}:{feature.feature}:revise")
    for _ in range(rounds):
        text = written[-1].text
        if text is None:
            break
        missed, mistaken = await _mistakes(text, windows, llm, how)
        if not missed and not mistaken:
            break
        right = [context for context in shown.activating if context not in missed]
        messages = render(
            "explain_revise",
            explanation=text,
            examples=[on_whole_words(context) for context in spread(right, mistakes, rng)],
            missed=[on_whole_words(context) for context in missed[:mistakes]],
            mistaken=mistaken[:mistakes],
        )
        revised = await ask(messages, llm, reask)
        written.append(naming(revised, typical_words(token_uses(feature), words)) if words else revised)
    return await better(written, held, llm, how)


async def _mistakes(
    text: str, windows: Sequence[Context], llm: LLM, how: Asking
) -> tuple[list[Context], list[Context]]:
    """Firing windows on the wrong side of the judge's best threshold, and silent ones, the worst first."""
    verdicts = await judge(text, [Item.window(window) for window in windows], llm, how)
    heard = [(verdict, window) for verdict, window in zip(verdicts, windows) if isinstance(verdict, tuple)]
    ranked = sorted(((evidence, window) for (evidence, _), window in heard), key=lambda pair: pair[0])
    usual = 0.5 if any(probability is None for (_, probability), _ in heard) else 0.0  # labels, or log odds
    yes_from = best_threshold([window.fires for _, window in ranked], [evidence for evidence, _ in ranked], usual)
    missed = [window for evidence, window in ranked if window.fires and evidence < yes_from]
    mistaken = [window for evidence, window in reversed(ranked) if not window.fires and evidence >= yes_from]
    return missed, mistaken


def best_threshold(truth: Sequence[bool], evidence: Sequence[float], usual: float) -> float:
    """The evidence from which a Yes is most often right, both kinds counting the same; `usual` where all is equal.

    A judge that says Yes to nearly everything still ranks: what it ranks wrong are its mistakes, not what it says.
    """
    firing = max(1, sum(truth))
    silent = max(1, len(truth) - sum(truth))

    def right(threshold: float) -> float:
        pairs = list(zip(truth, evidence))
        rightly = sum(fires and e >= threshold for fires, e in pairs) / firing
        return rightly + sum(not fires and e < threshold for fires, e in pairs) / silent

    return max(sorted(set(evidence))[1:], key=right, default=usual)
