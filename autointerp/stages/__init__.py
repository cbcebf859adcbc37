"""The stages, in the order in which a plan lists them, and the DAG's nodes that a config makes of them.

Another stage is one file here, which holds its ``STAGE``, and one line in `IN_ORDER`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from autointerp.engine import keys
from autointerp.engine.dag import Done, Node
from autointerp.engine.stage import Job, Stage, Use, plain
from autointerp.errors import ConfigError
from autointerp.registry import did_you_mean
from autointerp.stages import branches, tables

if TYPE_CHECKING:
    from autointerp.config import Config
    from autointerp.engine.session import Session

NOT_IN_KEYS = "it lists the stages; each stage's key is its own"

IN_ORDER = (
    "corpus",
    "activations",
    "outliers",
    "sae",
    "harvest",
    "composites",
    "reencode",
    "causal",
    "select",
    "directions",
    "near",
    "histograms",
    "contexts",
    "evaluate",
    "explain",
    "calibrate",
    "score",
    "semantic",
)
_BEFORE: tuple[Stage, ...] = tuple(import_module(f"{__name__}.{name}").STAGE for name in IN_ORDER)
STAGES: tuple[Stage, ...] = (
    *_BEFORE,
    Stage(
        "tables",
        "the tables of the run's folder",
        partial(tables.uses_of, _BEFORE),
        tables.work,
        amount=tables.amount,
    ),
)
_UNION = {"composites": "harvest", "explain": "explain"}  # before this stage, the union's branch up to that one
BY_KIND = {stage.kind: stage for stage in STAGES}
TABLES: tuple[str, ...] = (
    "features",
    *dict.fromkeys(name for stage in STAGES if stage.kind != "evaluate" for name in stage.tables),
    *(f"control_{name}" for name in tables.OF_BRANCHES.values()),
    *tables.OF_UNION,
)


def stage_of(use: str) -> Stage:
    """The declaration of which ``score/detection/default`` is a use."""
    return BY_KIND[plain(use).split("/")[0]]


def uses(config: Config, targets: Sequence[str] = ("tables",)) -> dict[str, Use]:
    """The uses of stages that `targets` need, by name, in the order of the stages.

    Plug-ins and their options are checked here, before anything runs; where no target needs a stage that uses them,
    they are not looked at. Raises ConfigError.
    """
    known: dict[str, Use] = {}
    for stage in STAGES:
        if stage.kind == "tables":
            known |= branches.uses_of(_BEFORE, config)
        elif stage.kind in _UNION:
            known |= branches.uses_of_union(_BEFORE, config, _UNION[stage.kind])
        known |= stage.named(config)
        if set(known).issuperset(targets) and "tables" not in targets:
            break
    return {name: known[name] for name in _needed(known, targets)}


def _needed(known: Mapping[str, Use], targets: Sequence[str]) -> Iterator[str]:
    wanted: set[str] = set()
    waiting = list(targets)
    while waiting:
        name = waiting.pop()
        if name not in known:
            raise ConfigError(f"this config has no stage {name!r}{did_you_mean(name, known)}")
        if name not in wanted:
            wanted.add(name)
            waiting += known[name].needs
    return (name for name in known if name in wanted)


def nodes(config: Config, session: Session, targets: Sequence[str] = ("tables",)) -> list[Node]:
    """The DAG's nodes for `targets`: each use with its stage's work and the code that this can reach."""
    made = []
    for use in uses(config, targets).values():
        stage = stage_of(use.name)
        codes = dict(keys.reached(stage.work))
        for plugin in use.plugins:
            codes |= {f"{plugin.__name__} ({module})": value for module, value in keys.reached(plugin).items()}
        work = partial(_run, session, stage, use)
        code = keys.digest(codes)
        made.append(Node(use.name, work, use.section, use.needs, code, stage.resumable, stage.remade, codes))
    return made


def _run(session: Session, stage: Stage, use: Use, folder: Path, inputs: Mapping[str, Path]) -> Done:
    if use.under is not None:  # its work knows nothing of branches
        session, inputs = session.under(use.under), {plain(name): path for name, path in inputs.items()}
    job = Job(session, use, folder, inputs)
    resumed = any(folder.iterdir())
    if not (stage.apart and session.executor is not None and session.executor.whole(job)):
        stage.work(job)
    if resumed:
        job.facts["resumed"] = True  # its seconds are those of the last part of the work
    return Done(job.to_retry, job.facts)
