"""Intruder: of a few marked texts, all but one of which the feature fires on as marked, which is the wrong one?

The texts and wrong marks are those of fuzzing. The value is the share of questions answered right; chance is one in
as many as are shown, and the intruder stands at each place equally often.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from autointerp import stats
from autointerp.errors import ConfigError
from autointerp.plugins import scorer
from autointerp.prompting import REPEAT_TEMPERATURE, render
from autointerp.records import LLM, Context, Judgement, Score
from autointerp.scorers.fuzzing import marks
from autointerp.scorers.judging import Item, held_out, rng_of

PROMPTS = ("judge_intruder",)
Answer = tuple[int, ...] | str  # the places said, from 0 (several where the judge wavers), or why there is none


@scorer("intruder")
async def score(
    explanation: str, examples: Sequence[Context], llm: LLM, *, shown: int = 4, reask: int = 1, seed: int
) -> Score:
    """Ask about each wrongly marked window beside `shown` − 1 rightly marked ones, of other documents.

    Read from the probabilities of the numbers where the model gives them, else from its answer. Where it finds k
    texts equally likely, and the intruder is among them, the answer counts as 1 / k right.
    """
    held_out("intruder", examples)
    if not 2 <= shown <= 9:
        raise ConfigError(f"intruder: shown is {shown}: 2 to 9 texts can be told by one digit")
    rng = rng_of(examples, seed)
    questions = _questions(marks(examples, rng), shown, rng)
    answers = await asyncio.gather(*(_answer(explanation, q, llm, reask) for q, _ in questions))
    judgements = tuple(_judgement(q, place, answer) for (q, place), answer in zip(questions, answers))
    right = [j.probability for j in judgements if j.probability is not None]
    unscored = len(judgements) - len(right)
    if not right:
        why = next((a for a in answers if isinstance(a, str)), "too few firing windows whose marks could be exchanged")
        return Score(None, None, None, 0, unscored, None, {}, judgements, f"no question could be answered: {why}")
    value, chance = sum(right) / len(right), 1 / shown
    low, high = stats.share_interval(sum(right), len(right)) or (None, None)
    corrected = stats.chance_corrected(value, chance)
    metrics = {
        "accuracy": value,
        "corrected_low": stats.chance_corrected(low, chance),
        "corrected_high": stats.chance_corrected(high, chance),
    }
    return Score(
        value, low, high, len(right), unscored, chance, metrics, judgements, chance=chance, corrected=corrected
    )


def _questions(items: Sequence[Item], shown: int, rng: random.Random) -> list[tuple[list[Item], int]]:
    """For every wrongly marked item the texts of one question and the intruder's place in it."""
    right = [item for item in items if item.truth]
    wrong = [item for item in items if not item.truth]
    places = [i % shown for i in range(len(wrong))]
    rng.shuffle(places)
    questions: list[tuple[list[Item], int]] = []
    for intruder, place in zip(wrong, places):
        others = [item for item in right if item.context.document != intruder.context.document]
        if len(others) >= shown - 1:
            texts = rng.sample(others, shown - 1)
            questions.append(([*texts[:place], intruder, *texts[place:]], place))
    return questions


async def _answer(explanation: str, question: Sequence[Item], llm: LLM, reask: int) -> Answer:
    messages = render("judge_intruder", explanation=explanation, texts=[item.text for item in question])
    numbers = [str(number) for number in range(1, len(question) + 1)]
    if "choices" in llm.capabilities:
        heard = await llm.choose(messages, numbers)
        if heard.probabilities is None:
            return heard.failure or "the judge gave no probabilities"
        best = max(heard.probabilities)
        return tuple(place for place, p in enumerate(heard.probabilities) if p == best)
    failure = "not asked"
    for attempt in range(1 + reask):
        answer = await llm.complete(
            messages, max_tokens=20, attempt=attempt, temperature=REPEAT_TEMPERATURE * (attempt > 0)
        )
        if answer.text is None:
            return answer.failure or "the judge gave no answer"
        digits = {character for character in answer.text if character.isdigit()}
        if len(digits) == 1 and digits <= set(numbers):
            return (int(digits.pop()) - 1,)
        failure = f"the answer names no one text: {answer.text[:60]!r}"
    return failure


def _judgement(question: Sequence[Item], place: int, answer: Answer) -> Judgement:
    intruder = question[place]
    where = (intruder.context.example, "intruder", intruder.context.quantile, 1.0)
    text = "\n".join(item.text for item in question)
    if isinstance(answer, str):
        return Judgement(*where, None, status="failed", failure=answer, text=text)
    credit = (place in answer) / len(answer)
    return Judgement(*where, float(credit == 1), credit, text=text)
