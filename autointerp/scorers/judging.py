"""What scorers with a judge share: asking one by one or in lists, reading, and the summary as a Score.

1. A scorer makes `Item`s: a text as the judge sees it, whether the property is there, and whose example it is.
2. `ask` has the judge answer Yes or No about each, as `Verdict`s: evidence, or the reason for silence.
3. `summarise` turns items and verdicts into a `Score`. Scorers without a judge start here, with evidence of their own.

The value is the area under precision-recall (average precision), which passes the sanity checks of 2506.05774. Its
chance, by permutation of the labels, stands beside it, and the value corrected for it is the headline.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from autointerp import stats
from autointerp.answers import parse_labels, read_yes_no
from autointerp.errors import AutointerpError, ConfigError
from autointerp.prompting import REPEAT_TEMPERATURE, plain, render
from autointerp.records import LLM, Context, Judgement, Score

Mode = Literal["auto", "each", "list"]
Pairs = Sequence[tuple[bool, float]]  # of calibration: whether the property is there, and the judge's evidence

# What is heard of one item: (evidence for Yes, P(Yes) where the judge gives it), or the reason for silence.
Verdict = tuple[float, float | None] | str

USUAL_YES = (0.05, 0.95)  # a judge whose yes-rate lies outside answers by habit: precision and recall say nothing


@dataclass(frozen=True, slots=True)
class Item:
    """A text to judge."""

    context: Context  # the held-out window that it is made of
    text: str  # as the judge sees it
    truth: bool  # whether the property is there
    kind: str  # as its judgement's

    @classmethod
    def window(cls, context: Context) -> Item:
        """The window as it stands, without a mark."""
        return cls(context, plain(context), context.fires, context.kind)


@dataclass(frozen=True, slots=True)
class Asking:
    """How a judge is asked: the templates, which take (explanation, text) and (explanation, texts), and the mode.

    ``each`` asks about one item at a time and reads P(Yes) from the next-token probabilities: graded, never
    unreadable, cheap where the shared prefix is cached (in-process, vLLM). ``list`` asks for `batch` shuffled
    items in one answer; what is unreadable is asked `reask` times more and then left unscored with the reason.
    ``auto`` takes ``each`` from models that run here. No unscored item counts as right, wrong or 0.
    """

    one: str = "judge_one"
    many: str = "judge_list"
    mode: Mode = "auto"
    batch: int = 25
    reask: int = 1
    seed: int = 0


def held_out(scorer: str, examples: Sequence[Context]) -> None:
    """Raises AutointerpError where an example is of the train split, which the explainer may have seen."""
    if any(example.split != "test" for example in examples):
        raise AutointerpError(f"{scorer} was given train contexts, which the explainer may have seen")


async def ask(explanation: str, items: Sequence[Item], llm: LLM, how: Asking) -> list[Verdict]:
    """The judge's verdict on each item, in their order. ConfigError where the model cannot be asked in this mode."""
    if how.mode == "each" and "choices" not in llm.capabilities:
        raise ConfigError(f"a judge in mode 'each' needs token probabilities, which {llm.model!r} does not give")
    if how.mode == "each" or (how.mode == "auto" and {"choices", "slots"} <= llm.capabilities):
        return list(await asyncio.gather(*(_ask_one(explanation, item, llm, how) for item in items)))
    shuffled = list(range(len(items)))
    random.Random(f"{how.seed}:{items[0].context.feature if items else ''}").shuffle(shuffled)
    parts = [shuffled[i : i + how.batch] for i in range(0, len(shuffled), how.batch)]
    answers = await asyncio.gather(*(_ask_list(explanation, [items[i] for i in part], llm, how) for part in parts))
    by_place = {i: verdict for part, answer in zip(parts, answers) for i, verdict in zip(part, answer)}
    return [by_place[i] for i in range(len(items))]


async def calibration_pairs(explanation: str, contexts: Sequence[Context], llm: LLM, how: Asking) -> Pairs:
    """(truth, evidence) of windows judged as detection judges them, for `summarise`; silence is left out.

    Meant for train windows, and for scores of other features than the one they are of.
    """
    items = [Item.window(context) for context in contexts]
    verdicts = await ask(explanation, items, llm, how)
    return [(item.truth, verdict[0]) for item, verdict in zip(items, verdicts) if not isinstance(verdict, str)]


async def _ask_one(explanation: str, item: Item, llm: LLM, how: Asking) -> Verdict:
    return read_yes_no(await llm.choose(render(how.one, explanation=explanation, text=item.text), ("Yes", "No")))


async def _ask_list(explanation: str, items: Sequence[Item], llm: LLM, how: Asking) -> list[Verdict]:
    verdicts: list[Verdict] = ["not asked"] * len(items)
    waiting = list(range(len(items)))
    for attempt in range(1 + how.reask):
        numbers = [str(number) for number in range(1, len(waiting) + 1)]
        schema = {
            "type": "object",
            "properties": {number: {"type": "integer", "enum": [0, 1]} for number in numbers},
            "required": numbers,
            "additionalProperties": False,
        }
        answer = await llm.complete(
            render(how.many, explanation=explanation, texts=[items[i].text for i in waiting]),
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


# --- the summary ------------------------------------------------------------------------------


def summarise(
    items: Sequence[Item],
    verdicts: Sequence[Verdict],
    *,
    calibration: Pairs = (),
    natural_rate: float | None = None,
    answers: bool = True,
) -> Score:
    """The average precision of the evidence, its 95 % interval over documents, chance, and the further metrics.

    `calibration` holds (truth, evidence) pairs of the same judge on other features: precision, recall and F1 are
    given at ½ and, suffixed ``_calibrated``, at ½ of the probability scaled by them. `natural_rate` is the share
    of windows of running text in which the feature fires: precision and average precision at it are suffixed
    ``_natural`` and come from firing and random windows alone. Scores by quantile, q1 the weakest, are AUROC and
    recall of its firing examples. ``corrected_low`` and ``corrected_high`` are the interval against the base rate.
    Without `answers` the evidence only ranks (a cosine, a place): nothing says Yes, and a judgement's prediction is
    the evidence.
    """
    judgements = tuple(_judgement(item, verdict, answers) for item, verdict in zip(items, verdicts))
    heard = [(item, v, j) for item, v, j in zip(items, verdicts, judgements) if not isinstance(v, str)]
    truth, evidence = [item.truth for item, _, _ in heard], [verdict[0] for _, verdict, _ in heard]
    unscored = len(items) - len(heard)
    base_rate = sum(truth) / len(truth) if truth else None
    interval = stats.average_precision_interval(truth, evidence, documents=[i.context.document for i, _, _ in heard])
    if interval is None or base_rate is None:
        why = Counter(verdict for verdict in verdicts if isinstance(verdict, str)).most_common(1)
        lacking = "no example" if not truth else "no silent example" if all(truth) else "no firing example"
        failure = f"{lacking} could be judged" + (f": {why[0][0]}" if why else "")
        return Score(None, None, None, len(heard), unscored, base_rate, {}, judgements, failure)
    low, high = interval
    yes = [j.prediction == 1 for _, _, j in heard] if answers else []
    value = stats.average_precision(truth, evidence)
    chance = stats.average_precision_chance(truth, evidence)
    metrics: dict[str, float | None] = {
        "auprc": value,
        "corrected_low": stats.chance_corrected(low, base_rate),
        "corrected_high": stats.chance_corrected(high, base_rate),
        "auroc": stats.auroc(truth, evidence),
        **_by_kind([item for item, _, _ in heard], evidence),
        **_by_quantile([item for item, _, _ in heard], evidence, yes),
    }
    yes_rate = error = None
    if answers:
        sure = [float(answer) if j.probability is None else j.probability for answer, (_, _, j) in zip(yes, heard)]
        yes_rate, error = stats.yes_rate(sure), stats.probability_error(truth, sure)
        metrics |= {
            **stats.binary_metrics(truth, yes),
            **{f"{name}_chance": of_chance for name, of_chance in stats.binary_chance(truth, yes).items()},
            **_calibrated(truth, evidence, calibration),
            **_natural([item for item, _, _ in heard], evidence, yes, natural_rate),
        }
    return Score(
        *(value, low, high, len(heard), unscored, base_rate, metrics, judgements),
        chance=chance,
        corrected=stats.chance_corrected(value, chance),
        yes_rate=yes_rate,
        ece=error,
    )


def failed(items: Sequence[Item], why: str) -> Score:
    """A score without a value, for one reason."""
    judgements = tuple(_judgement(item, why, True) for item in items)
    return Score(None, None, None, 0, len(items), None, {}, judgements, why)


def _judgement(item: Item, verdict: Verdict, answers: bool) -> Judgement:
    context = item.context
    shown = None if item.text == plain(context) else item.text
    place = (context.example, item.kind, context.quantile, float(item.truth))
    if isinstance(verdict, str):
        return Judgement(*place, None, status="failed", failure=verdict, text=shown)
    evidence, probability = verdict
    if not answers:
        return Judgement(*place, evidence, text=shown)
    if probability is None:
        return Judgement(*place, float(evidence >= 0.5), text=shown)
    return Judgement(*place, float(probability >= 0.5), probability, text=shown)


def _by_kind(items: Sequence[Item], evidence: Sequence[float]) -> dict[str, float | None]:
    """Silent windows drawn at random apart from near misses, each against all firing ones."""
    metrics: dict[str, float | None] = {}
    for kind in ("random", "near"):
        among = [i for i, item in enumerate(items) if item.truth or item.kind == kind]
        truth, score = [items[i].truth for i in among], [evidence[i] for i in among]
        present = not all(truth)
        value = stats.average_precision(truth, score) if present else None
        chance = stats.average_precision_chance(truth, score) if present else None
        metrics |= {
            f"auprc_{kind}": value,
            f"base_rate_{kind}": sum(truth) / len(truth) if present else None,
            f"chance_{kind}": chance,
            f"corrected_{kind}": stats.chance_corrected(value, chance),
        }
    return metrics


def _by_quantile(items: Sequence[Item], evidence: Sequence[float], yes: Sequence[bool]) -> dict[str, float | None]:
    truth, quantiles = [item.truth for item in items], [item.context.quantile for item in items]
    metrics: dict[str, float | None] = {}
    for quantile, value in stats.by_quantile(truth, evidence, quantiles).items():
        metrics[f"auroc_q{quantile + 1}"] = value
        answered = [y for y, t, q in zip(yes, truth, quantiles) if t and q == quantile]
        if answered:
            metrics[f"recall_q{quantile + 1}"] = sum(answered) / len(answered)
    return metrics


def _calibrated(truth: Sequence[bool], evidence: Sequence[float], pairs: Pairs) -> dict[str, float | None]:
    fitted = stats.fit_calibration([t for t, _ in pairs], [e for _, e in pairs]) if pairs else None
    if fitted is None:
        return {}
    probability = fitted.probability(evidence)
    at_half = stats.binary_metrics(truth, probability >= 0.5)
    return {
        **{f"{name}_calibrated": value for name, value in at_half.items()},
        "yes_rate_calibrated": stats.yes_rate(probability),
        "ece_calibrated": stats.probability_error(truth, probability),
    }


def _natural(
    items: Sequence[Item], evidence: Sequence[float], yes: Sequence[bool], rate: float | None
) -> dict[str, float | None]:
    if rate is None:
        return {}
    firing = [i for i, item in enumerate(items) if item.truth]
    silent = [i for i, item in enumerate(items) if not item.truth and item.kind == "random"]
    precision, _ = stats.natural_precision([yes[i] for i in firing], [yes[i] for i in silent], rate)
    return {
        "natural_rate": rate,
        "precision_natural": precision,
        "auprc_natural": stats.natural_average_precision(
            [evidence[i] for i in firing], [evidence[i] for i in silent], rate
        ),
    }
