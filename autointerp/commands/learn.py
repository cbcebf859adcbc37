"""What a run teaches for the next plan: each stage's speed, and how its models count tokens and write.

`Learner.note` is called at the end of each stage. What it learns goes into ``speeds.json`` (`engine.speeds`); a run
never fails for it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from autointerp.commands import rehearsal
from autointerp.commands.known import Known
from autointerp.config import Config
from autointerp.engine import speeds
from autointerp.engine.dag import Dag, Node
from autointerp.engine.estimate import Asks, rough_counter
from autointerp.engine.session import Session
from autointerp.engine.stage import Use, plain
from autointerp.engine.store import Manifest
from autointerp.stages import stage_of, uses

log = logging.getLogger("autointerp")

ENOUGH = 5  # requests from which a speed is learned
SAMPLE = 500  # rows that are kept of a stage's requests
COMPARED = 6  # features whose requests are counted again


class Learner:
    def __init__(self, config: Config, session: Session, dag: Dag) -> None:
        self.config, self.session, self.dag = config, session, dag
        self.uses: Mapping[str, Use] = {}
        self._inputs: dict[str, Path] = {}
        self._read = _size(session.journal)

    def note(self, node: Node, manifest: Manifest, ran: bool) -> None:
        """Learn from a stage that has ended."""
        folder = self.dag.store.folder(node.name, manifest.key)
        if folder.is_dir():  # a mirror may have it alone
            self._inputs[node.name] = folder
        seen = self._new_requests(node.name if ran else None)
        if not ran or manifest.facts.get("resumed"):
            return
        try:
            speeds.remember(self._learned(node.name, manifest.seconds, seen))
        except Exception:  # whatever it is, the run's own work is done
            log.debug("nothing was learned from %s", node.name, exc_info=True)

    def _learned(self, name: str, seconds: float, seen: _Requests) -> dict[str, float]:
        self.uses = self.uses or uses(self.config, tuple(self.dag.nodes))
        use, declared = self.uses[name], stage_of(name)
        known = Known(self.config, self.session, self.uses, self._inputs, "")
        asks = declared.asks(use.config(self.config), use) if declared.asks else None
        if asks is not None:
            return self._of_requests(use, asks, known, seconds, seen)
        if declared.amount is None:
            return {}
        amount = declared.amount(use.config(self.config), use, known.sizes)
        device = speeds.likely_device(self.config.subject.device)
        return {speeds.of_amount(declared.kind, amount, device): seconds / amount.number} if amount.number else {}

    def _of_requests(self, use: Use, asks: Asks, known: Known, seconds: float, seen: _Requests) -> dict[str, float]:
        if seen.asked < max(ENOUGH, seen.made / 2):  # most of the time went elsewhere
            return {}
        model, kind = rehearsal.named(asks.llm), _kind(use)
        learned = {speeds.of_requests(kind, model): seconds / seen.asked}
        if seen.prompt_tokens:
            learned[speeds.of_prompt_tokens(model)] = seconds / seen.prompt_tokens
        if rehearsal.own_folder(asks.llm) is None and asks.about == "features":
            learned |= self._of_counting(use, asks, known, seen.sample)
        if use.name.startswith("explain/"):
            learned |= _of_length(use, asks, self._inputs[use.name])
        return learned

    def _of_counting(self, use: Use, asks: Asks, known: Known, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """How many tokens the endpoint counted in prompts, for each that we count in the same ones."""
        counted: dict[int, list[int]] = {}
        for row in rows:
            if row["outcome"] == "ok" and row["prompt_tokens"]:
                counted.setdefault(row["feature"], []).append(row["prompt_tokens"])
        theirs = ours = 0.0
        for sample in known.real(sorted(counted)[:COMPARED]):
            requests = rehearsal.rehearse(self.session, use, sample, asks.llm)
            numbers = counted[sample.evidence.feature]
            if len(requests) == len(numbers):  # no question was asked again
                theirs += sum(numbers)
                ours += sum(rough_counter(request.messages) for request in requests)
        return {speeds.of_counting(_kind(use), asks.llm.model): theirs / ours} if ours else {}

    def _new_requests(self, stage: str | None) -> _Requests:
        """What the journal says of a stage's requests since this was last called; of None nothing."""
        seen = _Requests()
        try:
            with open(self.session.journal, "rb") as file:
                file.seek(self._read)
                for line in file:
                    self._read += len(line)
                    seen.add(line, stage)
        except OSError:
            pass
        return seen


@dataclass
class _Requests:
    """A stage's requests, added up; the rows themselves of the first ones alone."""

    made: int = 0
    asked: int = 0  # not answered from the cache
    prompt_tokens: int = 0
    sample: list[Mapping[str, Any]] = field(default_factory=list)

    def add(self, line: bytes, stage: str | None) -> None:
        try:
            row = json.loads(line)
        except ValueError:
            return
        if stage is None or row.get("stage") != stage:
            return
        self.made += 1
        if len(self.sample) < SAMPLE:
            self.sample.append(row)
        if not row["cached"]:
            self.asked += 1
            self.prompt_tokens += row["prompt_tokens"] or 0


def _kind(use: Use) -> str:
    """Without the explainer and the control: ``score/detection``."""
    return "/".join(plain(use.name).split("/")[:2])


def _of_length(use: Use, asks: Asks, folder: Path) -> dict[str, float]:
    """Words of an explanation."""
    import pyarrow.parquet as pq

    column = pq.read_table(folder / "explanations.parquet", columns=["explanation"]).column(0)
    lengths = [len(text.split()) for text in column.to_pylist() if text]
    return {speeds.of_length(use.name, asks.llm.model): fmean(lengths)} if lengths else {}


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
