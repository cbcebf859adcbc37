"""What scorers with a judge share: asking one by one or in lists, reading, and the summary as a Score.

1. A scorer makes `Item`s: a text as the judge sees it, whether the property is there, and whose example it is.
2. `ask` has the judge answer Yes or No about each, as `Verdict`s: evidence, or the reason for silence. With a
   `stop_width` it asks part by part and stops when the interval is as narrow as that.
3. `calibration_pairs` asks about train windows in the same way, for a threshold that means something.
4. `summarise` turns items and verdicts into a `Score`. Scorers without a judge start here, with evidence of their own.

The value is the area under precision-recall (average precision), which passes the sanity checks of 2506.05774. Its
chance, by permutation of the labels, stands beside it, and the value corrected for it is the headline.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from autointerp import stats
from autointerp.answers import parse_labels, read_yes_no
from autointerp.errors import AutointerpError, ConfigError
from autointerp.prompting import REPEAT_TEMPERATURE, plain, render
from autointerp.records import LLM, Context, Judgement, RandomWindows, Score

Mode = Literal["auto", "each", "list"]
Pairs = Sequence[tuple[bool, float]]  # of calibration: whether the property is there, and the judge's evidence

# What is heard of one item: (evidence for Yes, P(Yes) where the judge gives it), or the reason for silence.
Heard = tuple[float, float | None] | str
Verdict = Heard | None  # None: the judge was not asked, since the interval was narrow enough without it

LEAST_PARTS = 8  # parts of a sequential judging: the first is as large as the others, or a list


@dataclass(frozen=True, slots=True)
class Item:
    """A text to judge."""

    context: Context  # the held-out window that it is made of
    text: str  # as the judge sees it
    truth: bool  # whether the property is there
    kind: str  # as its judgement's
    pair: int | None = None  # number of the two that have one truth and are alike, where items come in such pairs

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
    `stop_width`: of a 95 % interval that is narrow enough to stop asking; None asks about every item.
    """

    one: str = "judge_one"
    many: str = "judge_list"
    mode: Mode = "auto"
    batch: int = 25
    reask: int = 1
    stop_width: float | None = None
    seed: int = 0


def held_out(scorer: str, examples: Sequence[Context]) -> None:
    """Raises AutointerpError where an example is of the train split, which the explainer may have seen."""
    if any(example.split != "test" for example in examples):
        raise AutointerpError(f"{scorer} was given train contexts, which the explainer may have seen")


def rng_of(examples: Sequence[Context], seed: int) -> random.Random:
    """The draws of one feature: the same for every explanation of it."""
    return random.Random(f"{seed}:{examples[0].feature if examples else ''}")


async def ask(explanation: str, items: Sequence[Item], llm: LLM, how: Asking) -> list[Verdict]:
    """The judge's verdict on each item, in their order. ConfigError where the model cannot be asked in this mode."""
    if how.mode == "each" and "choices" not in llm.capabilities:
        raise ConfigError(f"a judge in mode 'each' needs token probabilities, which {llm.model!r} does not give")
    one_by_one = how.mode == "each" or (how.mode == "auto" and {"choices", "slots"} <= llm.capabilities)
    rng = rng_of([item.context for item in items[:1]], how.seed)
    asked = _ask_each if one_by_one else _ask_lists
    if how.stop_width is None:
        order = rng.sample(range(len(items)), len(items))
        parts = [order]
    else:
        order = in_proportion(items, rng)
        size = max(-(-len(items) // LEAST_PARTS), 1) if one_by_one else how.batch
        parts = [order[i : i + size] for i in range(0, len(order), size)]
    verdicts: list[Verdict] = [None] * len(items)
    for part in parts:
        for i, verdict in zip(part, await asked(explanation, [items[i] for i in part], llm, how)):
            verdicts[i] = verdict
        if how.stop_width is not None and _narrow(items, verdicts, how.stop_width):
            break
    return verdicts


def in_proportion(items: Sequence[Item], rng: random.Random) -> list[int]:
    """Places of the items in an order every beginning of which holds each kind and quintile in its share."""
    strata: dict[tuple[object, ...], list[int]] = {}
    for place in rng.sample(range(len(items)), len(items)):
        item = items[place]
        strata.setdefault((item.truth, item.kind, item.context.quantile), []).append(place)
    at = {
        place: (rank + rng.random()) / len(members) for members in strata.values() for rank, place in enumerate(members)
    }
    return sorted(at, key=at.__getitem__)


def _narrow(items: Sequence[Item], verdicts: Sequence[Verdict], width: float) -> bool:
    heard = [(item, verdict) for item, verdict in zip(items, verdicts) if isinstance(verdict, tuple)]
    interval = _interval([item for item, _ in heard], [verdict[0] for _, verdict in heard])
    return interval is not None and interval[1] - interval[0] <= width


def _interval(items: Sequence[Item], evidence: Sequence[float]) -> tuple[float, float] | None:
    """Of the average precision, over documents; of items in pairs the wider limits of that and of one over pairs."""
    truth, alike = [item.truth for item in items], [[item.context.document for item in items]]
    if all(item.pair is not None for item in items):
        alike.append([item.pair or 0 for item in items])
    limits = [stats.average_precision_interval(truth, evidence, documents=each) for each in alike]
    known = [each for each in limits if each is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if len(known) == len(limits) else None


def _chance(items: Sequence[Item], evidence: Sequence[float]) -> float | None:
    truth, pairs = [item.truth for item in items], [item.pair for item in items]
    if None in pairs:
        return stats.average_precision_chance(truth, evidence)
    return stats.clustered_chance(truth, evidence, pairs)


async def calibration_pairs(explanation: str, items: Sequence[Item], llm: LLM, how: Asking, most: int) -> Pairs:
    """(truth, evidence) of up to `most` items, half of them true where there are as many; silence is left out.

    Meant for train windows, and for scores of other features than the one they are of: `summarise` takes them.
    """
    rng = rng_of([item.context for item in items[:1]], how.seed)
    true, false = ([item for item in items if item.truth == truth] for truth in (True, False))
    each = most // 2
    drawn = [*rng.sample(true, min(each, len(true))), *rng.sample(false, min(each, len(false)))]
    verdicts = await ask(explanation, drawn, llm, replace(how, stop_width=None))
    return [(item.truth, verdict[0]) for item, verdict in zip(drawn, verdicts) if isinstance(verdict, tuple)]


async def _ask_each(explanation: str, items: Sequence[Item], llm: LLM, how: Asking) -> list[Heard]:
    return list(await asyncio.gather(*(_ask_one(explanation, item, llm, how) for item in items)))


async def _ask_lists(explanation: str, items: Sequence[Item], llm: LLM, how: Asking) -> list[Heard]:
    parts = [items[i : i + how.batch] for i in range(0, len(items), how.batch)]
    answers = await asyncio.gather(*(_ask_list(explanation, part, llm, how) for part in parts))
    return [verdict for answer in answers for verdict in answer]


async def _ask_one(explanation: str, item: Item, llm: LLM, how: Asking) -> Heard:
    return read_yes_no(await llm.choose(render(how.one, explanation=explanation, text=item.text), ("Yes", "No")))


async def _ask_list(explanation: str, items: Sequence[Item], llm: LLM, how: Asking) -> list[Heard]:
    verdicts: list[Heard] = ["not asked"] * len(items)
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
    """The average precision of the evidence, its 95 % interval over documents (None where a class lies in too few),
    chance, and the further metrics. Of items in pairs, chance permutes the labels of pairs, and the limits are the
    wider of those over documents and over pairs.

    `calibration` holds (truth, evidence) pairs of the same judge on other features: precision, recall and F1 are
    given at ½ and, suffixed ``_calibrated``, at ½ of the probability scaled by them; these are None where the judge's
    evidence does not tell the pairs' true examples from the others. `natural_rate` is the share
    of windows of running text in which the feature fires: precision and average precision at it are suffixed
    ``_natural`` and come from firing and random windows alone. Scores by quantile, q1 the weakest, are AUROC and
    recall of its firing examples. ``corrected_low`` and ``corrected_high`` are the interval against the base rate.
    ``n_saved`` counts the items that were not asked about. Without `answers` the evidence only ranks (a cosine, a
    place): nothing says Yes, and a judgement's prediction is the evidence.
    """
    asked = [(item, _heard(verdict)) for item, verdict in zip(items, verdicts) if verdict is not None]
    judgements = tuple(_judgement(item, verdict, answers) for item, verdict in asked)
    heard = [(item, verdict, j) for (item, verdict), j in zip(asked, judgements) if not isinstance(verdict, str)]
    truth, evidence = [item.truth for item, _, _ in heard], [verdict[0] for _, verdict, _ in heard]
    unscored = len(asked) - len(heard)
    base_rate = sum(truth) / len(truth) if truth else None
    if base_rate in (None, 0.0, 1.0):
        why = Counter(verdict for _, verdict in asked if isinstance(verdict, str)).most_common(1)
        lacking = "no example" if not truth else "no silent example" if all(truth) else "no firing example"
        failure = f"{lacking} could be judged" + (f": {why[0][0]}" if why else "")
        return Score(None, None, None, len(heard), unscored, base_rate, {}, judgements, failure)
    judged = [item for item, _, _ in heard]
    low, high = _interval(judged, evidence) or (None, None)
    yes = [j.prediction == 1 for _, _, j in heard] if answers else []
    value = stats.average_precision(truth, evidence)
    chance = _chance(judged, evidence)
    metrics: dict[str, float | None] = {
        "auprc": value,
        "corrected_low": stats.chance_corrected(low, base_rate),
        "corrected_high": stats.chance_corrected(high, base_rate),
        "auroc": stats.auroc(truth, evidence),
        **_by_kind(judged, evidence),
        **_by_quantile(judged, evidence, yes),
    }
    if len(asked) < len(items):
        metrics["n_saved"] = float(len(items) - len(asked))
    yes_rate = error = None
    if answers:
        sure = [float(answer) if j.probability is None else j.probability for answer, (_, _, j) in zip(yes, heard)]
        yes_rate, error = stats.yes_rate(sure), stats.probability_error(truth, sure)
        metrics |= {
            **stats.binary_metrics(truth, yes),
            **{f"{name}_chance": of_chance for name, of_chance in stats.binary_chance(truth, yes).items()},
        }
        told = {"": yes}
        if calibration:
            scaled = _scaled(evidence, calibration)
            told["_calibrated"] = [p >= 0.5 for p in scaled]
            metrics |= _calibrated(truth, scaled)
        metrics |= _natural(judged, evidence, told, natural_rate)
    return Score(
        *(value, low, high, len(heard), unscored, base_rate, metrics, judgements),
        chance=chance,
        corrected=stats.chance_corrected(value, chance),
        yes_rate=yes_rate,
        ece=error,
    )


def counted(score: Score, random_windows: RandomWindows | None, evidence: Callable[[Sequence[str]], float]) -> Score:
    """`score` with precision, recall and average precision counted on windows of running text: ``_counted``.

    `evidence` of a window's tokens is a Yes from ½ on. For scorers without a model, who can read a thousand windows.
    """
    if random_windows is None or score.value is None:
        return score
    fires = list(random_windows.fires)
    read = [evidence(tokens) for tokens in random_windows.tokens]
    at_half = stats.binary_metrics(fires, [value >= 0.5 for value in read])
    metrics: dict[str, float | None] = {
        "n_counted": float(len(fires)),
        "n_firing_counted": float(sum(fires)),
        "precision_counted": at_half["precision"],
        "recall_counted": at_half["recall"],
        "auprc_counted": stats.average_precision(fires, read),
    }
    return replace(score, metrics={**score.metrics, **metrics})


def failed(items: Sequence[Item], why: str) -> Score:
    """A score without a value, for one reason."""
    judgements = tuple(_judgement(item, why, True) for item in items)
    return Score(None, None, None, 0, len(items), None, {}, judgements, why)


def _heard(verdict: Heard) -> Heard:
    return "its evidence is not a number" if isinstance(verdict, tuple) and math.isnan(verdict[0]) else verdict


def _judgement(item: Item, verdict: Heard, answers: bool) -> Judgement:
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


def _scaled(evidence: Sequence[float], pairs: Pairs) -> list[float]:
    """P(true) of the evidence by the calibration pairs; empty where these do not tell, so that no answer is made up."""
    fitted = stats.fit_calibration([t for t, _ in pairs], [e for _, e in pairs])
    return fitted.probability(evidence).tolist() if fitted is not None and fitted.tells else []


def _calibrated(truth: Sequence[bool], scaled: Sequence[float]) -> dict[str, float | None]:
    """Their columns, each None where nothing could be scaled."""
    known = truth if scaled else []
    at_half = stats.binary_metrics(known, [p >= 0.5 for p in scaled])
    return {
        **{f"{name}_calibrated": value for name, value in at_half.items()},
        "yes_rate_calibrated": stats.yes_rate(scaled),
        "ece_calibrated": stats.probability_error(known, scaled),
    }


def _natural(
    items: Sequence[Item], evidence: Sequence[float], answers: Mapping[str, Sequence[bool]], rate: float | None
) -> dict[str, float | None]:
    """Reweighted to running text; `answers` by the suffix of their columns, which are None where there are none."""
    if rate is None:
        return {}
    firing = [i for i, item in enumerate(items) if item.truth]
    silent = [i for i, item in enumerate(items) if not item.truth and item.kind == "random"]
    metrics: dict[str, float | None] = {
        "natural_rate": rate,
        "auprc_natural": stats.natural_average_precision(
            [evidence[i] for i in firing], [evidence[i] for i in silent], rate
        ),
    }
    for suffix, yes in answers.items():
        hits, misses = ([yes[i] for i in those] if yes else [] for those in (firing, silent))
        precision, recall = stats.natural_precision(hits, misses, rate)
        metrics |= {f"precision_natural{suffix}": precision, f"recall_natural{suffix}": recall}
    return metrics
