"""``autointerp plan`` and ``doctor`` as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autointerp.progress import clock
from autointerp.report.text import aligned

if TYPE_CHECKING:
    from autointerp.commands.checks import Check
    from autointerp.commands.plan import Plan, PlannedStage


def checks_text(seen: Sequence[Check]) -> str:
    rows = [[check.name, check.state, check.text] for check in seen]
    return "\n".join(aligned(["check", "state", "what was seen, or what to do"], rows))


def plan_text(plan: Plan) -> str:
    rows = [[stage.name, stage.state, stage.cost or "", _time(stage), stage.why or ""] for stage in plan.stages]
    lines = [*aligned(["stage", "state", "cost", "time", "why"], rows), "", *_to_do(plan)]
    return "\n".join([*lines, *(f"wrong: {problem}" for problem in plan.problems)])


def _time(stage: PlannedStage) -> str:
    if stage.state == "done":
        return ""
    return f"{clock(stage.seconds)}, {'measured' if stage.measured else 'guessed'}"


def _to_do(plan: Plan) -> list[str]:
    """What the part to do will cost, a line a figure."""
    if all(stage.state == "done" for stage in plan.stages):
        return ["nothing to do"]
    how = {"known": "", "at most": "at most ", "guessed": "about "}[plan.certainty]
    calls = "not known before the SAE is there" if plan.llm_calls is None else f"{how}{plan.llm_calls:,}"
    rows = [["LLM calls", calls]]
    if plan.llm_calls != 0:
        rows += [["prompt tokens", f"{how}{plan.prompt_tokens:,}"]]
        rows += [["answer tokens", f"at most {plan.completion_tokens:,}"]]
    if plan.money is None:
        rows.append(["money", "the price is not known: set llm.price_in and llm.price_out"])
    elif plan.money:  # a model of one's own costs nothing
        rows.append(["money", f"at most ${plan.money:,.2f}"])
    source = "as measured on this machine" if plan.measured else "a rough guess: its speed was not measured here"
    rows.append(["time", f"about {clock(plan.seconds)}, {source}"])
    return aligned(["to do", ""], rows)
