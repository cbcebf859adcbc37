"""The DAG: which stages are done, stale or to do, and running the others in order.

1. A stage's key is the hash of its name, its code, its own section of the config, and the *content* of its inputs;
   so an upstream stage that runs again and writes the same bytes stales nothing.
2. A stage whose key is in the store is done.
3. What a running stage reads is checked against its manifest; an artifact that is damaged is set aside and made
   again before the stage goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Literal

from autointerp.engine.store import Manifest, Store
from autointerp.errors import AutointerpError
from autointerp.hashing import digest
from autointerp.memory import give_back_memory
from autointerp.progress import clock

NOT_IN_KEYS = "it decides when a stage runs, not what the stage writes"

log = logging.getLogger("autointerp")

FAILED = ("failed", "unscored_examples")  # facts of a stage that count its rows without a result
REPAIRS = 3  # times that a stage's artifact is made again in one run before that is an error


@dataclass
class Done:
    """What a node's work tells of itself."""

    to_retry: int = 0
    facts: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Node:
    """One stage of one config, as the DAG sees it. `work` is given the folder to write into and its inputs'."""

    name: str
    work: Callable[[Path, Mapping[str, Path]], Done]
    section: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    code: str = ""  # digest of the code that does the work
    resumable: bool = False
    remade: bool = False  # a mirror has its manifest alone: its files are quicker made again than fetched
    codes: Mapping[str, str] | None = None  # parts of `code`, so that a plan can say what changed


State = Literal["done", "retry", "stale", "to do"]


@dataclass(frozen=True)
class Standing:
    """Where a node stands. The key is known once all inputs are there."""

    node: Node
    state: State
    why: str | None
    key: str | None
    manifest: Manifest | None


class Dag:
    def __init__(
        self, nodes: Sequence[Node], store: Store, *, targets: Sequence[str] = (), retry_failed: bool = False
    ) -> None:
        """`targets`: whose files are wanted at the end; without it those that no other node reads. `retry_failed`: a
        stage with failed rows is not done, whatever their reason."""
        self._retry_failed = retry_failed
        self.nodes = {node.name: node for node in nodes}
        self._targets = set(targets) or self.nodes.keys() - {name for node in nodes for name in node.needs}
        self.store = store
        order = TopologicalSorter({node.name: node.needs for node in nodes}).static_order()
        self.order = [self.nodes[name] for name in order]
        self._repairs: dict[str, int] = {}

    def standings(self, previous: Mapping[str, str] | None = None) -> dict[str, Standing]:
        """Every node's standing, in order. `previous`: the keys of an earlier run of the same name."""
        standings: dict[str, Standing] = {}
        for node in self.order:
            standings[node.name] = self._standing(node, standings, previous or {})
        return standings

    def lineages(self, standings: Mapping[str, Standing]) -> dict[str, str]:
        """Of every node a digest of what makes its artifact: the key, where that is known, else its own parts and its
        inputs' lineages. Nodes of two DAGs with one lineage make the same, once."""
        lineages: dict[str, str] = {}
        for node in self.order:
            inputs = {name: lineages[name] for name in node.needs}
            key = standings[node.name].key
            lineages[node.name] = digest(
                [node.name, key] if key else [node.name, node.code, dict(node.section), inputs]
            )
        return lineages

    def folder(self, standing: Standing) -> Path:
        return self.store.folder(standing.node.name, standing.key or "")

    def here(self, standings: Mapping[str, Standing]) -> dict[str, Path]:
        """The folders of what is done and lies on this machine, as does all that it was made of: nothing is fetched."""
        folders: dict[str, Path] = {}
        for node in self.order:
            folder = self.folder(standings[node.name])
            needed = {name for name in node.needs if not self.nodes[name].remade}
            if standings[node.name].manifest and folder.is_dir() and folders.keys() >= needed:
                folders[node.name] = folder
        return folders

    def _standing(self, node: Node, before: Mapping[str, Standing], previous: Mapping[str, str]) -> Standing:
        waiting = [name for name in node.needs if before[name].manifest is None]
        ran = node.name in previous
        if waiting:
            others = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
            why = f"after {waiting[0]}{others}"
            return Standing(node, "stale" if ran else "to do", why, None, None)
        key = self._key(node, {name: before[name].manifest.content for name in node.needs})  # type: ignore[union-attr]
        manifest = self.store.find(node.name, key)
        if manifest is None:
            why = self._changed(node, previous[node.name], before) if ran else None
            if self.store.begun(node.name, key) and node.resumable:
                why = "begun; goes on where it was"
            return Standing(node, "stale" if ran else "to do", why, key, None)
        if manifest.to_retry:
            return Standing(node, "retry", f"{manifest.to_retry} failed for a reason that may pass", key, manifest)
        if failed := self.to_ask_again(manifest):
            return Standing(node, "retry", f"{failed} failed and are asked for again", key, manifest)
        return Standing(node, "done", None, key, manifest)

    def _changed(self, node: Node, earlier: str, before: Mapping[str, Standing]) -> str:
        """What the key of the earlier artifact was made of, against what it is made of now."""
        made = self.store.find(node.name, earlier)
        if made is None or not made.parts:
            return "its section of the config, its inputs or its code changed"
        now = self._parts(node, {name: before[name].manifest.content for name in node.needs})  # type: ignore[union-attr]
        changed = [part for part in sorted({*now, *made.parts}) if now.get(part) != made.parts.get(part)]
        return f"changed: {', '.join(changed[:4])}{' …' if len(changed) > 4 else ''}" if changed else "made again"

    def to_ask_again(self, manifest: Manifest) -> int:
        """How many of an artifact's items are tried again: those that may pass, or all that failed."""
        if self._retry_failed:
            return manifest.to_retry + sum(manifest.facts.get(name) or 0 for name in FAILED)
        return manifest.to_retry

    @staticmethod
    def _key(node: Node, contents: Mapping[str, str]) -> str:
        return digest([node.name, node.code, dict(node.section), dict(contents)])

    @staticmethod
    def _parts(node: Node, contents: Mapping[str, str]) -> dict[str, str]:
        """The key's parts by name: code by module, config by key, inputs by stage."""
        code = {f"code of {module}": value for module, value in (node.codes or {"this stage": node.code}).items()}
        config = {f"config {key}": digest(value) for key, value in node.section.items()}
        return code | config | {f"input {name}": content for name, content in contents.items()}

    def run(self, on_stage: Callable[[Node, Manifest, bool], None] | None = None) -> dict[str, Manifest]:
        """Run what is not done; returns every node's manifest. `on_stage` hears of each: (node, manifest, ran)."""
        standings: dict[str, Standing] = {}
        ran: dict[str, bool] = {}
        with self.store.sharing():
            for node in self.order:
                self._ensure(node, standings, ran)
                manifest = standings[node.name].manifest
                assert manifest is not None
                if not ran[node.name]:
                    self.store.share(manifest, kept=not node.remade)
                if on_stage:
                    on_stage(node, manifest, ran[node.name])
        return {name: standing.manifest for name, standing in standings.items()}  # type: ignore[misc]

    def _ensure(self, node: Node, standings: dict[str, Standing], ran: dict[str, bool]) -> None:
        """Bring `node` to done, its inputs having been: one that is damaged is made again first, and one that another
        process has replaced since is taken as it is."""
        while True:
            standing = self._standing(node, standings, {})
            ran.setdefault(node.name, False)
            if standing.state == "done":
                standings[node.name] = standing
                if node.name in self._targets and not self._brought(standing):
                    continue
                return
            lacking = [name for name in node.needs if not self.is_whole(standings[name])]
            if not lacking:
                break
            for name in lacking:
                now = self._standing(self.nodes[name], standings, {})
                if now.manifest is not None:  # what it lacks may be asked again by the next run, not by each in turn
                    standings[name] = now
                    continue
                self._repairs[name] = self._repairs.get(name, 0) + 1
                if self._repairs[name] > REPAIRS:
                    raise AutointerpError(
                        f"{name} was damaged again after it was made: the disk that holds {self.store.root} loses data"
                    )
                self._ensure(self.nodes[name], standings, ran)
        number = self.order.index(node) + 1
        log.info("[%d/%d] %s", number, len(self.order), node.name)
        manifest = self._execute(node, standing, standings)
        log.info("[%d/%d] %s: done in %s", number, len(self.order), node.name, clock(manifest.seconds))
        standings[node.name] = Standing(node, "done", None, manifest.key, manifest)
        ran[node.name] = True

    def _brought(self, standing: Standing) -> bool:
        """Whether an artifact is on this machine, from the mirror where it was there alone."""
        assert standing.manifest is not None
        return self.store.bring(standing.manifest, kept=not standing.node.remade)

    def is_whole(self, standing: Standing) -> bool:
        """Whether this very artifact is here, and what its manifest says; one that is damaged is set aside."""
        if standing.manifest is None or not self._brought(standing):
            return False
        wrong = self.store.verify(standing.manifest)
        if wrong is not None:
            self.store.set_aside(standing.node.name, standing.manifest.key, wrong)
        return wrong is None

    def _execute(self, node: Node, standing: Standing, before: Mapping[str, Standing]) -> Manifest:
        assert standing.key is not None
        with self.store.writing(node.name, standing.key, resumable=node.resumable) as folder:
            already = self.store.find(node.name, standing.key)
            if already is not None and not self.to_ask_again(
                already
            ):  # another process finished it while this one waited
                return already
            inputs = {name: self.folder(before[name]) for name in node.needs}
            contents = {name: before[name].manifest.content for name in node.needs}  # type: ignore[union-attr]
            started = time.monotonic()
            done = node.work(folder, inputs)
            give_back_memory()
            made = self.store.complete(
                node.name,
                standing.key,
                time.monotonic() - started,
                done.to_retry,
                done.facts or {},
                self._parts(node, contents),
            )
        self.store.share(made, made=True, kept=not node.remade)
        return made
