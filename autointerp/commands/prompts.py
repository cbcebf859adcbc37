"""``autointerp prompts``: the exact prompts that a run would send, with token counts; nothing is sent.

An explanation that is not written yet is shown as `UNWRITTEN`. Controls put another explanation into the same prompts
and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from autointerp.commands import rehearsal
from autointerp.commands.folder import run_folder
from autointerp.commands.known import Known
from autointerp.config import Config
from autointerp.engine.dag import Dag
from autointerp.engine.estimate import UNWRITTEN, Sample
from autointerp.engine.mirrored import open_store
from autointerp.engine.session import Session
from autointerp.engine.stage import Use
from autointerp.errors import AutointerpError
from autointerp.records import Message
from autointerp.stages import nodes, stage_of, uses
from autointerp.stages.select import ready


@dataclass(frozen=True)
class PromptView:
    """One prompt. Its tokens are counted by the model's own tokenizer where that is at hand, else roughly."""

    stage: str
    feature: int
    title: str
    messages: list[Message]
    tokens: int


NEEDED = ("corpus", "harvest", "select", "directions", "contexts")


def prompts(config: Config, feature: int | None = None, out: str | Path | None = None) -> Iterator[PromptView]:
    """The prompts for one feature (the first that has contexts, when none is named). Needs the contexts stage done."""
    with Session(config, run_folder(config, out) / "usage.jsonl") as session:
        dag = Dag(nodes(config, session), open_store())
        standings = dag.standings()
        missing = [name for name in NEEDED if standings[name].manifest is None]
        if missing:
            raise AutointerpError(
                f"prompts are made from a run's contexts, and {missing[0]!r} has not run: start `autointerp run` first"
            )
        for standing in standings.values():
            if standing.manifest is not None:
                dag.store.bring(standing.manifest, kept=not standing.node.remade)
        inputs = dag.here(standings)
        features = ready(inputs["select"])
        wanted = features[0] if feature is None else feature
        if wanted not in features:
            raise AutointerpError(f"feature {wanted} is not in this run; it has {', '.join(map(str, features[:10]))} …")
        known = Known(config, session, uses(config), inputs, UNWRITTEN)
        (sample,) = known.real([wanted])
        for use in known.uses.values():
            yield from _views(config, session, use, sample)


def _views(config: Config, session: Session, use: Use, sample: Sample) -> Iterator[PromptView]:
    asks = stage_of(use.name).asks
    asked = asks(config, use) if asks else None
    if asked is None or use.under is not None or getattr(use.given, "control", None) is not None:
        return
    count = rehearsal.counter(asked.llm)
    requests = rehearsal.rehearse(session, use, sample, asked.llm)
    for number, request in enumerate(requests, start=1):
        title = f"{request.kind} {number} of {len(requests)}"
        messages = list(request.messages)
        yield PromptView(use.name, sample.evidence.feature, title, messages, round(count(messages)))
