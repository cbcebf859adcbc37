"""Surprisal: does the explanation make the texts in which the feature fires more likely, and others less?

A judge that gives the probabilities of prompt tokens is asked for a text in which the explanation holds, and for any
text. How much likelier a held-out text is under the first than under the second, in nats, is the evidence that the
feature fires in it: a log likelihood ratio, for which the judge has to answer no question. After 2410.13928.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from autointerp.errors import ConfigError
from autointerp.plugins import scorer
from autointerp.prompting import render
from autointerp.records import LLM, Context, Score
from autointerp.scorers.judging import Item, Verdict, held_out, rng_of, summarise

PROMPTS = ("surprisal",)


@scorer("surprisal")
async def score(explanation: str, examples: Sequence[Context], llm: LLM, *, windows: int = 100, seed: int) -> Score:
    """Average precision of the nats that the explanation gives to each of up to `windows` windows.

    The likelihood under no explanation is the same for all explanations of a window, and asked for once.
    ``nats_firing`` and ``nats_silent`` are the means over either kind. Raises ConfigError for a model that gives no
    probabilities of prompt tokens.
    """
    held_out("surprisal", examples)
    if "slots" not in llm.capabilities:
        raise ConfigError(
            f"surprisal needs probabilities of prompt tokens, which {llm.model!r} does not give: take a model that"
            " runs here, or a vLLM server"
        )
    rng = rng_of(examples, seed)
    chosen = list(examples) if len(examples) <= windows else rng.sample(examples, windows)
    items = [Item.window(context) for context in chosen]
    verdicts = list(await asyncio.gather(*(_gain(explanation, item.text, llm) for item in items)))
    summed = summarise(items, verdicts, answers=False)
    metrics = {
        f"nats_{name}": _mean(
            [v[0] for item, v in zip(items, verdicts) if item.truth is fires and isinstance(v, tuple)]
        )
        for name, fires in (("firing", True), ("silent", False))
    }
    return replace(summed, metrics={**summed.metrics, **metrics})


async def _gain(explanation: str, text: str, llm: LLM) -> Verdict:
    """How many nats likelier the text is with the explanation."""
    told, free = await asyncio.gather(
        *(llm.weigh(render("surprisal", explanation=given), text) for given in (explanation, None))
    )
    if told.logprob is None or free.logprob is None:
        return told.failure or free.failure or "the judge gave no probabilities"
    return told.logprob - free.logprob, None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
