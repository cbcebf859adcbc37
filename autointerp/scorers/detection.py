"""The detection scorer: shown a text without marks, can a judge tell whether the feature fires in it?

The question is that of 2410.13928. The value is the area under precision-recall (average precision); `chance` and
`corrected` stand beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autointerp.plugins import scorer
from autointerp.records import LLM, Context, Score
from autointerp.scorers.judging import Asking, Item, Mode, Pairs, ask, calibration_pairs, held_out, summarise

PROMPTS = ("judge_one", "judge_list")


async def pairs(
    explanation: str,
    examples: Sequence[Context],
    llm: LLM,
    *,
    most: int,
    seed: int,
    **how: Any,
) -> Pairs:
    """(truth, evidence) of up to `most` windows, judged as `score` judges: for other features' scores."""
    return await calibration_pairs(
        explanation, [Item.window(example) for example in examples], llm, Asking(seed=seed, **how), most
    )


@scorer("detection", needs={"llm", "calibration", "natural_rate"}, pairs=pairs)
async def score(
    explanation: str,
    examples: Sequence[Context],
    llm: LLM,
    *,
    mode: Mode = "auto",
    batch: int = 25,
    reask: int = 1,
    stop_width: float | None = None,
    calibration: Pairs = (),
    natural_rate: float | None = None,
    seed: int,
) -> Score:
    """Judge every held-out example, and say how well the judgements rank those in which the feature fires.

    How the judge is asked: `judging.Asking`. `calibration` and `natural_rate`: `judging.summarise`.
    """
    held_out("detection", examples)
    items = [Item.window(example) for example in examples]
    how = Asking(mode=mode, batch=batch, reask=reask, stop_width=stop_width, seed=seed)
    verdicts = await ask(explanation, items, llm, how)
    return summarise(items, verdicts, calibration=calibration, natural_rate=natural_rate)
