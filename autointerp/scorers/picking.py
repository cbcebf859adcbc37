"""Which of a few numbered options is meant? What intruder and the scorers of the output side share.

1. A scorer makes `Question`s: options, the place of the one to be picked, and what its judgement says.
2. `pick` asks about one of them: by the probabilities of the numbers where the model gives them, else by its answer.
3. `score_picks` makes a `Score`: the share of questions answered right. Chance is one in as many as are shown.

An option that looks like the one to be picked spoils every question that shows it. So each stands in equally many
(`seldom`), and the interval takes questions that show the same for dependent (`stats.dependent_share_interval`). Where
the looks of options spread 0 to 2 times as much as the noise of one look, it holds the truth in 94 to 99 % of 10 or 25
questions about four texts; one for independent questions does in 81 to 98 %.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from autointerp import stats
from autointerp.answers import spoken, too_little
from autointerp.errors import ConfigError
from autointerp.prompting import REPEAT_TEMPERATURE, on_one_line, render
from autointerp.records import LLM, Judgement, OutputEffects, Score

Answer = tuple[int, ...] | str  # the places said, from 0 (several where the judge wavers), or why there is none


@dataclass(frozen=True)
class Question:
    """`example`, `kind` and `quantile` are its judgement's."""

    options: tuple[str, ...]
    place: int  # of the option that is to be picked
    example: int
    kind: str
    quantile: int | None = None
    shows: frozenset[int] = frozenset()  # what stands in it and may stand in others, by number


async def pick(explanation: str, question: Question, llm: LLM, template: str, reask: int) -> Answer:
    """The judge's pick. The template takes (explanation, texts)."""
    messages = render(template, explanation=explanation, texts=question.options)
    numbers = [str(number) for number in range(1, len(question.options) + 1)]
    if "choices" in llm.capabilities:
        heard = await llm.choose(messages, numbers)
        if heard.probabilities is None:
            return heard.failure or "the judge gave no probabilities"
        if why := too_little([heard], "the numbers"):
            return why
        best = max(heard.probabilities)
        return tuple(place for place, p in enumerate(heard.probabilities) if p == best)
    failure = "not asked"
    for attempt in range(1 + reask):
        answer = await llm.complete(
            messages, max_tokens=20, attempt=attempt, temperature=REPEAT_TEMPERATURE * (attempt > 0)
        )
        if answer.text is None:
            return answer.failure or "the judge gave no answer"
        said, unread = spoken(answer.text)
        digits = {character for character in said if character.isdigit()}
        if len(digits) == 1 and digits <= set(numbers):
            return (int(digits.pop()) - 1,)
        failure = unread or f"the answer names no one text: {said[:60]!r}"
    return failure


def check_shown(scorer: str, shown: int) -> None:
    if not 2 <= shown <= 9:
        raise ConfigError(f"{scorer}: shown is {shown}: 2 to 9 texts can be told by one digit")


async def score_picks(
    explanation: str,
    questions: Sequence[Question],
    llm: LLM,
    *,
    template: str,
    shown: int,
    reask: int,
    lacking: str,
) -> Score:
    """Ask all `questions` and sum up. Where the judge finds k options equally likely, the right one among them, the
    answer counts as 1 / k right. `lacking`: why there may be no question."""
    answers = await asyncio.gather(*(pick(explanation, each, llm, template, reask) for each in questions))
    judgements = tuple(map(_judgement, questions, answers))
    right = [j.probability for j in judgements if j.probability is not None]
    unscored = len(judgements) - len(right)
    if not right:
        why = next((answer for answer in answers if isinstance(answer, str)), lacking)
        return Score(None, None, None, 0, unscored, None, {}, judgements, f"no question could be answered: {why}")
    value, chance = sum(right) / len(right), 1 / shown
    shown_by = [question.shows for question, j in zip(questions, judgements) if j.probability is not None]
    low, high = stats.dependent_share_interval(right, shown_by) or (None, None)
    metrics = {
        "accuracy": value,
        "corrected_low": stats.chance_corrected(low, chance),
        "corrected_high": stats.chance_corrected(high, chance),
    }
    corrected = stats.chance_corrected(value, chance)
    return Score(
        value, low, high, len(right), unscored, chance, metrics, judgements, chance=chance, corrected=corrected
    )


def seldom(places: Sequence[int], count: int, times: Counter[int], rng: random.Random) -> list[int]:
    """`count` of `places`, those that stand in fewest questions so far, by lot among equals; `times` is brought on."""
    chosen = sorted(rng.sample(places, len(places)), key=times.__getitem__)[:count]
    times.update(chosen)
    return chosen


def _judgement(question: Question, answer: Answer) -> Judgement:
    where = (question.example, question.kind, question.quantile, 1.0)
    text = "\n".join(question.options)
    if isinstance(answer, str):
        return Judgement(*where, None, status="failed", failure=answer, text=text)
    credit = (question.place in answer) / len(answer)
    return Judgement(*where, float(credit == 1), credit, text=text)


# --- the output side --------------------------------------------------------------------------


def about_effects(
    effects: OutputEffects, *, kind: str, questions: int, shown: int, part: int, rng: random.Random
) -> list[Question]:
    """`questions` questions: a draw of `part` of the feature's own effects among draws of `shown` − 1 other features'.

    The own stands at each place equally often. None where the feature has no effect, or too few others have one.
    Questions that show the same other feature are dependent; that all show the same own effects is not counted, so the
    interval of their score is for further draws from these and for further other features.
    """
    if not effects.own or len(effects.others) < shown - 1:
        return []
    apart = [other for other in effects.others if not {*other} & {*effects.own}]
    others = apart if len(apart) >= shown - 1 else effects.others
    places = [i % shown for i in range(questions)]
    rng.shuffle(places)
    made, times = [], Counter[int]()
    for number, place in enumerate(places):
        chosen = seldom(range(len(others)), shown - 1, times, rng)
        options = [_draw(others[other], part, rng) for other in chosen]
        options.insert(place, _draw(effects.own, part, rng))
        made.append(Question(tuple(options), place, number, kind, shows=frozenset(chosen)))
    return made


def _draw(effects: Sequence[str], part: int, rng: random.Random) -> str:
    drawn = rng.sample(effects, min(part, len(effects)))
    return " | ".join(on_one_line(" ".join(each.split())) for each in drawn)
