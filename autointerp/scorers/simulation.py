"""The simulation scorer: predict the activation of every token from the explanation; correlate with the true ones.

The idea is of Bills et al. 2023 (neuron explainer): Pearson over the tokens of all sequences pooled. Ours are
held-out windows spread over the quantiles, with as many silent ones, near misses among them.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from autointerp import stats
from autointerp.answers import parse_activations, too_little
from autointerp.errors import ConfigError
from autointerp.plugins import scorer
from autointerp.prompting import REPEAT_TEMPERATURE, SCALE, on_one_line, render
from autointerp.records import LLM, Context, Judgement, Score
from autointerp.scorers.judging import held_out, rng_of

PROMPTS = ("simulate_slots", "simulate_json")
Mode = Literal["auto", "slots", "json"]

# Answers at a slot must differ in their first token, and "10" begins as "1" does in most tokenizers: 0 to 9 it is.
DIGITS = tuple("0123456789")
# What each slot is filled with when the next one is read. "unknown", as in the neuron explainer, is what a small model
# then expects everywhere, and no digit; "0" is what most tokens have.
FILLER = "0"


@scorer("simulation")
async def score(
    explanation: str,
    examples: Sequence[Context],
    llm: LLM,
    *,
    mode: Mode = "auto",
    sequences: int = 50,
    reask: int = 1,
    seed: int,
) -> Score:
    """Pearson correlation of predicted and true activations over all tokens of up to `sequences` windows pooled.

    ``slots`` reads the expected digit at every token in one forward pass a window, the model's turn being filled
    with "0"; ``json`` has the model write [token, number] pairs, each checked against the token sent. ``auto``
    takes ``slots`` where the model can. A window whose answer does not line up is unscored, with the reason.
    A judgement's truths are in the feature's own units, its predictions from 0 to 10. A prediction that is the same
    for all tokens scores 0 by definition and is shown as ``constant`` = 1. Fewer than 10 sequences give no interval.
    """
    held_out("simulation", examples)
    if mode == "slots" and "slots" not in llm.capabilities:
        raise ConfigError(f"simulation in mode 'slots' needs prompt probabilities, which {llm.model!r} does not give")
    slots = mode == "slots" or (mode == "auto" and "slots" in llm.capabilities)
    chosen = _choose(examples, sequences, seed)
    heard = await asyncio.gather(
        *(_by_slots(explanation, e, llm) if slots else _by_json(explanation, e, llm, reask) for e in chosen)
    )
    return _summary(chosen, heard)


def _choose(examples: Sequence[Context], n: int, seed: int) -> list[Context]:
    """Half firing, taken in turn from every quantile; half silent, near misses and random ones in turn."""
    rng = rng_of(examples, seed)
    firing = _in_turn([e for e in examples if e.fires], lambda e: e.quantile, rng)[: n - n // 2]
    silent = _in_turn([e for e in examples if not e.fires], lambda e: e.kind, rng)[: n // 2]
    return firing + silent


def _in_turn(examples: list[Context], group: Callable[[Context], object], rng: random.Random) -> list[Context]:
    piles: dict[object, list[Context]] = {}
    for example in rng.sample(examples, len(examples)):
        piles.setdefault(group(example), []).append(example)
    deepest = max(map(len, piles.values()), default=0)
    return [pile[turn] for turn in range(deepest) for pile in piles.values() if turn < len(pile)]


# The prediction for each token of one window, from 0 to 10, or the reason for silence.
Prediction = tuple[float, ...] | str


async def _by_slots(explanation: str, example: Context, llm: LLM) -> Prediction:
    messages = render("simulate_slots", explanation=explanation, tokens=example.tokens)
    segments = [("\n" if i else "") + on_one_line(token) + "\t" for i, token in enumerate(example.tokens)]
    slots = await llm.fill(messages, segments, FILLER, DIGITS)
    if len(slots) != len(example.tokens):
        return f"{len(slots)} predictions for {len(example.tokens)} tokens"
    if why := too_little(slots, "the digits"):
        return why
    values: list[float] = []
    for slot in slots:
        if slot.probabilities is None:
            return slot.failure or "the judge gave no probabilities"
        values.append(sum(i * p for i, p in enumerate(slot.probabilities)) * SCALE / (len(DIGITS) - 1))
    return tuple(values)


async def _by_json(explanation: str, example: Context, llm: LLM, reask: int) -> Prediction:
    tokens_json = json.dumps(example.tokens, ensure_ascii=False)
    messages = render("simulate_json", explanation=explanation, tokens_json=tokens_json)
    failure = "not asked"
    for attempt in range(1 + reask):
        answer = await llm.complete(
            messages,
            max_tokens=60 + 16 * len(example.tokens),
            schema=_PAIRS,
            attempt=attempt,
            temperature=REPEAT_TEMPERATURE * (attempt > 0),
        )
        if answer.text is None:  # the client has repeated what may pass
            return answer.failure or "the judge gave no answer"
        read = parse_activations(answer.text, example.tokens)
        if read.values is not None:
            return read.values
        failure = read.failure or failure
    return failure


_PAIR = {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "number"}]}}
_PAIRS = {
    "type": "object",
    "properties": {"pairs": {"type": "array", "items": _PAIR}},
    "required": ["pairs"],
    "additionalProperties": False,
}


def _summary(examples: Sequence[Context], heard: Sequence[Prediction]) -> Score:
    judgements = tuple(_judgement(example, prediction) for example, prediction in zip(examples, heard))
    scored = [(e, p) for e, p in zip(examples, heard) if not isinstance(p, str)]
    truths, predictions = [e.activations for e, _ in scored], [p for _, p in scored]
    unscored = len(examples) - len(scored)
    base_rate = sum(e.fires for e, _ in scored) / len(scored) if scored else None

    def failed(why: str) -> Score:
        return Score(None, None, None, len(scored), unscored, base_rate, {}, judgements, why)

    if not scored:
        why = Counter(p for p in heard if isinstance(p, str)).most_common(1)
        return failed("no sequence could be simulated" + (f": {why[0][0]}" if why else ""))
    truth, prediction = [a for t in truths for a in t], [a for p in predictions for a in p]
    if len(set(truth)) == 1:
        return failed(f"the true activation is the same for all {len(truth)} tokens: no correlation is defined")
    constant = len(set(prediction)) == 1
    value = 0.0 if constant else stats.pearson(truth, prediction)
    if value is None:
        return failed("the predictions or the true activations vary too little for a correlation")
    each = [r for t, p in zip(truths, predictions) if (r := stats.pearson(t, p)) is not None]
    within = [(t, p) for (e, _), t, p in zip(scored, truths, predictions) if e.fires]
    metrics: dict[str, float | None] = {
        "pearson": value,
        "cosine": stats.cosine(truth, prediction),
        # Only where it fires: a silent window is easy to predict.
        "pearson_firing": stats.pearson([a for t, _ in within for a in t], [a for _, p in within for a in p]),
        "pearson_per_context": sum(each) / len(each) if each else None,
        "n_tokens": float(len(truth)),
        "constant": float(constant),
    }
    silent = [pair for (e, _), *pair in zip(scored, truths, predictions) if not e.fires]
    for quantile in sorted({e.quantile for e, _ in scored if e.quantile is not None}):
        own = [pair for (e, _), *pair in zip(scored, truths, predictions) if e.quantile == quantile]
        of_both = ([a for pair in (*own, *silent) for a in pair[i]] for i in (0, 1))
        metrics[f"pearson_q{quantile + 1}"] = 0.0 if constant else stats.pearson(*of_both)
    interval = stats.pooled_pearson_interval(
        truths, predictions, strata=[e.fires for e, _ in scored], documents=[e.document for e, _ in scored]
    )
    low, high = interval or (None, None)
    return Score(value, low, high, len(scored), unscored, base_rate, metrics, judgements, chance=0.0, corrected=value)


def _judgement(example: Context, prediction: Prediction) -> Judgement:
    place = (example.example, example.kind, example.quantile, example.peak)
    if isinstance(prediction, str):
        return Judgement(*place, None, truths=example.activations, status="failed", failure=prediction)
    peak = max(prediction, default=0.0)
    return Judgement(*place, peak, truths=example.activations, predictions=prediction)
