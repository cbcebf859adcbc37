"""Ask a judge whether one explanation entails another."""

from __future__ import annotations

from dataclasses import dataclass

from autointerp.answers import parse_yes_no, read_yes_no
from autointerp.prompting import REPEAT_TEMPERATURE, render
from autointerp.records import LLM

REASK = 1


@dataclass(frozen=True)
class Entailment:
    """P(yes), 1 or 0 from a judge that gives no probabilities; None with the reason where it could not be read."""

    probability: float | None
    failure: str | None = None


async def entails(whole: str, part: str, llm: LLM) -> Entailment:
    """Whether what fits the description `whole` also fits `part`, by a judge who knows no more than the two."""
    messages = render("judge_entails", whole=whole, part=part)
    if "choices" in llm.capabilities:
        heard = read_yes_no(await llm.choose(messages, ("Yes", "No")))
        return Entailment(None, heard) if isinstance(heard, str) else Entailment(heard[1])
    failure = "not asked"
    for attempt in range(1 + REASK):
        answer = await llm.complete(
            messages, max_tokens=20, attempt=attempt, temperature=REPEAT_TEMPERATURE * (attempt > 0)
        )
        if answer.text is None:
            return Entailment(None, answer.failure or "the judge gave no answer")
        verdict = parse_yes_no(answer.text)
        if isinstance(verdict, bool):
            return Entailment(float(verdict))
        failure = verdict
    return Entailment(None, failure)
