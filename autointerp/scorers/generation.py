"""Generation: does the feature fire in texts that a model writes from the explanation?

Detection can be passed by an explanation that is too wide for its feature; generation cannot, for it asks whether what
the explanation names is enough (sensitivity, 2509.23717). Chance is the share of texts about anything in which the
feature fires: where it fires in all of these there is no room above chance, and the corrected value is 0 by
definition.

The texts written from an explanation count as independent: the interval is Wilson's. Chance is an estimate from as
many texts, the same ones for all features. The interval of the corrected value is widened by its error; that of a mean
over features is not, though they share it.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Awaitable, Callable, Sequence

from autointerp import stats
from autointerp.answers import spoken
from autointerp.plugins import scorer
from autointerp.prompting import REPEAT_TEMPERATURE, render
from autointerp.records import LLM, Context, Judgement, Score

PROMPTS = ("generate",)
PerText = Sequence[Sequence[float]]
Activations = Callable[[list[str]], PerText | Awaitable[PerText]]

_LINE = re.compile(r"^\s*[0-9]{1,3}[.):]\s*(\S.*)$", re.MULTILINE)


@scorer("generation", needs={"llm", "activations"})
async def score(
    explanation: str,
    examples: Sequence[Context],
    llm: LLM,
    *,
    activations: Activations | None = None,
    texts: int = 20,
    threshold: float = 0.0,
    reask: int = 2,
) -> Score:
    """Share of `texts` written from the explanation in which the feature's largest activation is above `threshold`.

    `activations` maps texts to the feature's activation on each of their tokens. Texts are asked for again, up to
    `reask` times, until there are enough; those about anything are the same for all features, so they are asked for
    once. The held-out `examples` are not used.
    """
    if activations is None:
        return Score(None, None, None, 0, 0, None, failure="nothing to run texts through the subject and the SAE")
    written, failure = await _write(explanation, texts, llm, reask)
    neutral, neutral_failure = await _write(None, texts, llm, reask)
    if not written or not neutral:
        why = failure if not written else neutral_failure
        return Score(None, None, None, 0, texts, None, failure=f"no text was written: {why}")
    read = activations([*written, *neutral])
    peaks = [max(tokens, default=0.0) for tokens in (await read if inspect.isawaitable(read) else read)]
    judgements = tuple(
        Judgement(i, "generated" if own else "neutral", None, float(own), float(peak > threshold), text=text)
        for i, (own, peak, text) in enumerate(
            zip([True] * len(written) + [False] * len(neutral), peaks, [*written, *neutral])
        )
    )
    hits, false = (sum(peak > threshold for peak in part) for part in (peaks[: len(written)], peaks[len(written) :]))
    value, chance = hits / len(written), false / len(neutral)
    low, high = stats.share_interval(hits, len(written)) or (None, None)
    corrected, corrected_low, corrected_high = _corrected(hits, len(written), false, len(neutral))
    truth = [True] * len(written) + [False] * len(neutral)
    metrics = {
        "sensitivity": value,
        "auprc": stats.average_precision(truth, peaks),
        "auroc": stats.auroc(truth, peaks),
        "corrected_low": corrected_low,
        "corrected_high": corrected_high,
    }
    return Score(
        *(value, low, high, len(written), texts - len(written), len(written) / len(truth), metrics, judgements),
        chance=chance,
        corrected=corrected,
    )


def _corrected(hits: int, n: int, false: int, m: int) -> tuple[float, float | None, float | None]:
    """(value − chance) / (1 − chance) of `hits` of `n` texts against `false` of `m`, with a 95 % interval.

    Each limit moves by what its share's own limits (Wilson) move it, the two added in squares (Zou and Donner 2008).
    0 without an interval where the chance is 1.
    """
    value, chance = hits / n, false / m
    own, other = stats.share_interval(hits, n), stats.share_interval(false, m)
    if chance >= 1 or own is None or other is None:
        return 0.0, None, None

    def at(share: float, by_chance: float) -> float:
        return (share - by_chance) / (1 - by_chance)

    middle = at(value, chance)
    below = math.hypot(middle - at(own[0], chance), middle - at(value, other[1]))
    above = math.hypot(at(own[1], chance) - middle, at(value, other[0]) - middle)
    return middle, middle - below, min(middle + above, 1.0)


async def _write(explanation: str | None, count: int, llm: LLM, reask: int) -> tuple[list[str], str]:
    """Up to `count` distinct texts, and why there are not more."""
    texts: dict[str, None] = {}
    failure = "not asked"
    for attempt in range(1 + reask):
        answer = await llm.complete(
            render("generate", explanation=explanation, count=count),
            max_tokens=60 * count,
            attempt=attempt,
            temperature=REPEAT_TEMPERATURE,
        )
        if answer.text is None:
            return list(texts), answer.failure or "the model gave no answer"
        said, unread = spoken(answer.text)
        failure = unread or "the answer holds no numbered line"
        lines = [line.strip() for line in _LINE.findall(said)]
        texts |= dict.fromkeys(lines[:-1] if answer.truncated else lines)
        if len(texts) >= count:
            break
    return list(texts)[:count], failure
