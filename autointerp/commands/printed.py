"""``autointerp plan`` and ``doctor`` as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autointerp.progress import clock
from autointerp.report.text import aligned

if TYPE_CHECKING:
    from autointerp.commands.checks import Check
    from autointerp.commands.plan import Plan, PlannedStage
    from autointerp.commands.plan_sweep import SweepPlan


def checks_text(seen: Sequence[Check]) -> str:
    rows = [[check.name, check.state, check.text] for check in seen]
    return "\n".join(aligned(["check", "state", "what was seen, or what to do"], rows))


def plan_text(plan: Plan) -> str:
    names = ["stage", "state", "cost", "time", "disk", "why"]
    rows = [[s.name, s.state, s.cost or "", _time(s), _size(s.bytes), s.why or ""] for s in plan.stages]
    if plan.machines is not None:
        names.insert(3, "workers")
        for row, stage in zip(rows, plan.stages):
            row.insert(3, "" if stage.state == "done" else str(stage.workers))
    lines = [*aligned(names, rows), "", *_to_do(plan)]
    return "\n".join([*lines, *(f"wrong: {problem}" for problem in plan.problems)])


def sweep_plan_text(plan: SweepPlan) -> str:
    """A line a variant, with what no variant before it does, and the whole below them."""
    rows = [[name, *_of_variant(own)] for name, own in plan.variants.items()]
    lines = [*aligned(["variant", "stages to do", "LLM calls", "time", "disk"], rows), "", *_to_do(plan.whole)]
    if plan.without_union:
        lines.append(f"not counted: the check against a union yet to be trained ({'; '.join(plan.without_union)})")
    return "\n".join([*lines, *(f"wrong: {problem}" for problem in plan.whole.problems)])


def _of_variant(plan: Plan) -> list[str]:
    left = [stage for stage in plan.stages if stage.state != "done"]
    if not left:
        return ["", "", "", ""]
    calls = "not known" if plan.llm_calls is None else f"{plan.llm_calls:,}" if plan.llm_calls else ""
    return [f"{len(left)} of {len(plan.stages)}", calls, clock(plan.seconds), _size(plan.bytes)]


def _time(stage: PlannedStage) -> str:
    if stage.state == "done":
        return ""
    return f"{clock(stage.seconds)}, {'measured' if stage.measured else 'guessed'}"


def _size(size: float) -> str:
    """What is less than a hundredth of a gigabyte fills no disk."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e7 else ""


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
    if plan.machines is not None:
        each = f"{plan.machines.gpus} GPUs" if plan.machines.gpus else "no GPU"
        rows.append(["on", f"{plan.machines.nodes} nodes of {each}; a stage without shards takes one worker"])
    if plan.bytes:
        rows.append(["disk", f"about {_size(plan.bytes) or 'a few MB'}"])
    return aligned(["to do", ""], rows)
