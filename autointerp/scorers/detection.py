"""The detection scorer: shown a text without marks, can a judge tell whether the feature fires in it?

The value is the area under precision-recall (average precision), which passes the sanity checks of 2506.05774; with
the examples' base rate beside it, for that is what a judge gets who knows nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from autointerp import stats
from autointerp.answers import parse_labels, read_yes_no
from autointerp.errors import AutointerpError, ConfigError
from autointerp.plugins import scorer
from autointerp.prompting import REPEAT_TEMPERATURE, render
from autointerp.records import LLM, Context, Judgement, Score

PROMPTS = ("judge_one", "judge_list")
Mode = Literal["auto", "each", "list"]


@scorer("detection")
async def score(
    explanation: str,
    examples: Sequence[Context],
    llm: LLM,
    *,
    mode: Mode = "auto",
    batch: int = 25,
    reask: int = 1,
    seed: int,
) -> Score:
    """Judge every held-out example, and say how well the judgements rank those in which the feature fires.

    ``each`` asks about one example at a time and reads P(Yes) from the next-token probabilities: graded, never
    unreadable, cheap where the shared prefix is cached (in-process, vLLM). ``list`` asks for `batch` shuffled
    examples in one answer; what is unreadable is asked `reask` times more and then left unscored with the reason.
    ``auto`` takes ``each`` from models that run here. No unscored example counts as right, wrong or 0.
    """
    if any(example.split != "test" for example in examples):
        raise AutointerpError("detection was given train contexts, which the explainer may have seen")
    if mode == "each" and "choices" not in llm.capabilities:
        raise ConfigError(f"detection in mode 'each' needs token probabilities, which {llm.model!r} does not give")
    if mode == "each" or (mode == "auto" and {"choices", "slots"} <= llm.capabilities):
        verdicts = await asyncio.gather(*(_judge_one(explanation, example, llm) for example in examples))
    else:
        shuffled = list(range(len(examples)))
        random.Random(f"{seed}:{examples[0].feature if examples else ''}").shuffle(shuffled)
        parts = [shuffled[i : i + batch] for i in range(0, len(shuffled), batch)]
        answers = await asyncio.gather(
            *(_judge_list(explanation, [examples[i] for i in part], llm, reask) for part in parts)
        )
        by_place = {i: verdict for part, answer in zip(parts, answers) for i, verdict in zip(part, answer)}
        verdicts = [by_place[i] for i in range(len(examples))]
    return _summary(examples, verdicts, seed)


# What is heard of one example: (evidence for Yes, P(Yes) where the judge gives it), or the reason for silence.
Verdict = tuple[float, float | None] | str


async def _judge_one(explanation: str, example: Context, llm: LLM) -> Verdict:
    messages = render("judge_one", explanation=explanation, example=example)
    return read_yes_no(await llm.choose(messages, ("Yes", "No")))


async def _judge_list(explanation: str, examples: Sequence[Context], llm: LLM, reask: int) -> list[Verdict]:
    verdicts: list[Verdict] = ["not asked"] * len(examples)
    waiting = list(range(len(examples)))
    for attempt in range(1 + reask):
        numbers = [str(number) for number in range(1, len(waiting) + 1)]
        schema = {
            "type": "object",
            "properties": {number: {"type": "integer", "enum": [0, 1]} for number in numbers},
            "required": numbers,
            "additionalProperties": False,
        }
        messages = render("judge_list", explanation=explanation, examples=[examples[i] for i in waiting])
        answer = await llm.complete(
            messages,
            max_tokens=40 + 10 * len(waiting),
            schema=schema,
            attempt=attempt,
            temperature=REPEAT_TEMPERATURE * (attempt > 0),
        )
        if answer.text is None:  # the client has repeated what may pass
            for i in waiting:
                verdicts[i] = answer.failure or "the judge gave no answer"
            break
        labels = parse_labels(answer.text, len(waiting), truncated=answer.truncated)
        for number, i in enumerate(waiting, start=1):
            verdicts[i] = (labels.values[number], None) if number in labels.values else labels.failures[number]
        waiting = [i for i in waiting if isinstance(verdicts[i], str)]
        if not waiting:
            break
    return verdicts


def _summary(examples: Sequence[Context], verdicts: Sequence[Verdict], seed: int) -> Score:
    judgements = tuple(_judgement(example, verdict) for example, verdict in zip(examples, verdicts))
    scored = [(e, v, j) for e, v, j in zip(examples, verdicts, judgements) if not isinstance(v, str)]
    truth = [example.fires for example, _, _ in scored]
    evidence = [verdict[0] for _, verdict, _ in scored]
    unscored = len(examples) - len(scored)
    base_rate = sum(truth) / len(truth) if truth else None
    interval = stats.average_precision_interval(truth, evidence, seed=seed)
    if interval is None:
        why = Counter(verdict for verdict in verdicts if isinstance(verdict, str)).most_common(1)
        lacking = "no example" if not truth else "no silent example" if all(truth) else "no firing example"
        failure = f"{lacking} could be judged" + (f": {why[0][0]}" if why else "")
        return Score(None, None, None, len(scored), unscored, base_rate, {}, judgements, failure)
    metrics: dict[str, float | None] = {
        "auprc": stats.average_precision(truth, evidence),
        **stats.binary_metrics(truth, [judgement.prediction == 1 for _, _, judgement in scored]),
        "auroc": stats.auroc(truth, evidence),
    }
    for kind in ("random", "near"):  # hard negatives apart from easy ones
        among = [i for i, (example, _, _) in enumerate(scored) if example.fires or example.kind == kind]
        some = any(not truth[i] for i in among)
        metrics[f"auprc_{kind}"] = (
            stats.average_precision([truth[i] for i in among], [evidence[i] for i in among]) if some else None
        )
        metrics[f"base_rate_{kind}"] = sum(truth) / len(among) if some else None
    low, high = interval
    return Score(metrics["auprc"], low, high, len(scored), unscored, base_rate, metrics, judgements)


def _judgement(example: Context, verdict: Verdict) -> Judgement:
    place = (example.example, example.kind, example.quantile, float(example.fires))
    if isinstance(verdict, str):
        return Judgement(*place, None, status="failed", failure=verdict)
    evidence, probability = verdict
    decided = evidence if probability is None else float(probability >= 0.5)
    return Judgement(*place, decided, probability)
