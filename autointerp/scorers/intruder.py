"""Intruder: of a few marked texts, all but one of which the feature fires on as marked, which is the wrong one?

After 2507.08473, which asks without an explanation. The texts and wrong marks are those of fuzzing. The value is the
share of questions answered right; chance is one in as many as are shown. The intruder stands at each place equally
often, and each right text in equally many questions.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

from autointerp.plugins import scorer
from autointerp.records import LLM, Context, Score
from autointerp.scorers.fuzzing import marks
from autointerp.scorers.judging import Item, held_out, rng_of
from autointerp.scorers.picking import Question, check_shown, score_picks, seldom

PROMPTS = ("judge_intruder",)


@scorer("intruder")
async def score(
    explanation: str, examples: Sequence[Context], llm: LLM, *, shown: int = 4, reask: int = 1, seed: int
) -> Score:
    """Ask about each wrongly marked window beside `shown` − 1 rightly marked ones, of other documents.

    The interval counts questions that show windows of the same document as dependent (`picking`).

    Read from the probabilities of the numbers where the model gives them, else from its answer. Where it finds k
    texts equally likely, and the intruder is among them, the answer counts as 1 / k right.
    """
    held_out("intruder", examples)
    check_shown("intruder", shown)
    rng = rng_of(examples, seed)
    questions = _questions(marks(examples, rng), shown, rng)
    lacking = "too few firing windows whose marks could be exchanged"
    return await score_picks(
        explanation, questions, llm, template="judge_intruder", shown=shown, reask=reask, lacking=lacking
    )


def _questions(items: Sequence[Item], shown: int, rng: random.Random) -> list[Question]:
    """One for every wrongly marked item."""
    right = [item for item in items if item.truth]
    wrong = [item for item in items if not item.truth]
    places = [i % shown for i in range(len(wrong))]
    rng.shuffle(places)
    questions, times = [], Counter[int]()
    for intruder, place in zip(wrong, places):
        about = intruder.context
        others = [i for i, item in enumerate(right) if item.context.document != about.document]
        if len(others) >= shown - 1:
            chosen = [right[i] for i in seldom(others, shown - 1, times, rng)]
            texts = [item.text for item in chosen]
            texts.insert(place, intruder.text)
            shows = frozenset(item.context.document for item in chosen) | {about.document}
            questions.append(Question(tuple(texts), place, about.example, "intruder", about.quantile, shows))
    return questions
