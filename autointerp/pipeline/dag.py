"""The DAG: what a stage is, which stages are done, and running the others in order.

A stage's key is the hash of its name, its code, its own section of the config, and the *content* of
its inputs; so an upstream stage that runs again and writes the same bytes stales nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Literal

from autointerp.hashing import digest
from autointerp.pipeline.store import Manifest, Store
from autointerp.progress import clock

log = logging.getLogger("autointerp")


@dataclass
class Job:
    """What a stage's work is given: where to write, its inputs' folders, and what it may tell of itself."""

    folder: Path
    inputs: Mapping[str, Path]
    to_retry: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    name: str
    work: Callable[[Job], None]
    section: Mapping[str, Any]  # all of the config, and of the world outside, that the work depends on
    needs: tuple[str, ...] = ()
    code: str = ""  # digest of the code that does the work
    resumable: bool = False  # the work goes on from files it left when it was killed


State = Literal["done", "retry", "stale", "to do"]


@dataclass(frozen=True)
class Standing:
    """Where a stage stands. The key is known once all inputs are there."""

    stage: Stage
    state: State
    why: str | None
    key: str | None
    manifest: Manifest | None


class Dag:
    def __init__(self, stages: list[Stage], store: Store) -> None:
        self.stages = {stage.name: stage for stage in stages}
        self.store = store
        order = TopologicalSorter({s.name: s.needs for s in stages}).static_order()
        self.order = [self.stages[name] for name in order]

    def standings(self, previous: Mapping[str, str] | None = None) -> dict[str, Standing]:
        """Every stage's standing, in order. `previous`: the keys of an earlier run of the same name."""
        found: dict[str, Standing] = {}
        for stage in self.order:
            found[stage.name] = self._standing(stage, found, previous or {})
        return found

    def _standing(self, stage: Stage, found: Mapping[str, Standing], previous: Mapping[str, str]) -> Standing:
        waiting = [name for name in stage.needs if found[name].manifest is None]
        ran = stage.name in previous
        if waiting:
            others = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
            why = f"after {waiting[0]}{others}"
            return Standing(stage, "stale" if ran else "to do", why, None, None)
        key = self._key(stage, {name: found[name].manifest.content for name in stage.needs})  # type: ignore[union-attr]
        manifest = self.store.find(stage.name, key)
        if manifest is None:
            why = "its section of the config, its inputs or its code changed" if ran else None
            if self.store.folder(stage.name, key).with_name(f"{key}.partial").exists() and stage.resumable:
                why = "begun; goes on where it was"
            return Standing(stage, "stale" if ran else "to do", why, key, None)
        if manifest.to_retry:
            return Standing(stage, "retry", f"{manifest.to_retry} failed for a reason that may pass", key, manifest)
        return Standing(stage, "done", None, key, manifest)

    @staticmethod
    def _key(stage: Stage, contents: Mapping[str, str]) -> str:
        return digest([stage.name, stage.code, dict(stage.section), dict(contents)])

    def run(self, on_stage: Callable[[Stage, Manifest, bool], None] | None = None) -> dict[str, Manifest]:
        """Run what is not done; returns every stage's manifest. `on_stage` hears of each: (stage, manifest, ran)."""
        done: dict[str, Standing] = {}
        for number, stage in enumerate(self.order, start=1):
            standing = self._standing(stage, done, {})
            ran = standing.state != "done"
            if ran:
                log.info("[%d/%d] %s", number, len(self.order), stage.name)
                manifest = self._execute(stage, standing, done)
                log.info("[%d/%d] %s: done in %s", number, len(self.order), stage.name, clock(manifest.seconds))
                standing = Standing(stage, "done", None, manifest.key, manifest)
            done[stage.name] = standing
            assert standing.manifest is not None
            if on_stage:
                on_stage(stage, standing.manifest, ran)
        return {name: standing.manifest for name, standing in done.items()}  # type: ignore[misc]

    def _execute(self, stage: Stage, standing: Standing, done: Mapping[str, Standing]) -> Manifest:
        assert standing.key is not None
        with self.store.writing(stage.name, standing.key, resumable=stage.resumable) as folder:
            already = self.store.find(stage.name, standing.key)
            if already is not None and not already.to_retry:  # another process finished it while this one waited
                return already
            inputs = {name: self.store.folder(name, done[name].key or "") for name in stage.needs}
            job = Job(folder, inputs)
            started = time.monotonic()
            stage.work(job)
            return self.store.complete(stage.name, standing.key, time.monotonic() - started, job.to_retry, job.facts)
