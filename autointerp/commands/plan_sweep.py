"""``autointerp plan`` of a sweep: what each variant would do and cost, and all of them together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autointerp.commands.folder import run_folder
from autointerp.commands.plan import Plan, PlannedStage, plan
from autointerp.commands.sweep import read_sweep, variants_in, waits_for
from autointerp.commands.variant import targets


@dataclass(frozen=True)
class SweepPlan:
    variants: Mapping[str, Plan]  # by name, with the seed of one that is trained, in the file's order
    without_union: Sequence[str] = ()  # variants whose union dictionary is yet to be trained, and left out

    @property
    def whole(self) -> Plan:
        """All stages of all variants, and what is wrong with any."""
        plans = [*self.variants.values()]
        problems = dict.fromkeys(problem for each in plans for problem in each.problems)
        machines = next((each.machines for each in plans if each.machines is not None), None)
        return Plan([stage for each in plans for stage in each.stages], [*problems], machines)


def plan_sweep(
    config: str | Path,
    set: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    *,
    machines: tuple[int, int] | None = None,
) -> SweepPlan:
    """The plans of a sweep's variants. Nothing is sent, nothing is written.

    A stage that a variant before it makes is done. SAEs that share passes over the text are counted one by one, and a
    union dictionary that another variant trains is left out. Raises as `plan` does.
    """
    made, configs = read_sweep(config, set)
    variants = variants_in(run_folder(next(iter(configs.values())), out), configs)
    seen: dict[str, str] = {}  # lineage -> variant
    plans: dict[str, Plan] = {}
    without: list[str] = []
    for key, variant in variants.items():
        name = str(variant)
        if others := waits_for(key, variants):
            (union,) = (variants[other].config.sae.load for other in others)
            variant = variant.with_union(union)
            without += [] if union else [name]
        own = plan(variant.config, variant.folder, machines=machines, targets=targets(variant.config, made.metrics))
        plans[name] = replace(own, stages=[*_first(own, name, seen)])
    return SweepPlan(plans, without)


def _first(own: Plan, variant: str, seen: dict[str, str]) -> Iterator[PlannedStage]:
    """The stages, those that another variant makes as done; the others are noted in `seen`."""
    for stage in own.stages:
        if stage.state != "done" and seen.setdefault(stage.lineage, variant) != variant:
            stage = PlannedStage(stage.name, "done", f"by {seen[stage.lineage]}", lineage=stage.lineage)
        yield stage
