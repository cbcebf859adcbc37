"""Harvest the SAEs of several configs together: one forward pass of the subject over a text serves all of them.

1. What each harvest needs is made, as a run of its own would make it.
2. Harvests that are not done and read the same text with the same subject share passes (`stages.passes`).
3. Each config's own run goes on from there: it finds its shards done. It writes what it would have written alone.
"""

from __future__ import annotations

import gc
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from autointerp.commands.doctor import checked_nodes
from autointerp.commands.learn import Learner
from autointerp.commands.run import run_targets, workers
from autointerp.config import Config, load_config
from autointerp.engine import models
from autointerp.engine.dag import Dag
from autointerp.engine.mirrored import open_store
from autointerp.engine.session import Session
from autointerp.engine.stage import Use, plain
from autointerp.errors import AutointerpError
from autointerp.memory import available, give_back_memory
from autointerp.stages import passes, stage_of, uses

log = logging.getLogger("autointerp")

SHARE = 0.5  # of the memory that is free: what the SAEs of one pass may need


def harvest_together(
    configs: Sequence[str | Path | Config], *, set: Mapping[str, Any] | None = None
) -> list[str | None]:
    """Harvest the SAE of each config; those of one subject and one text share its forward passes.

    Configs are as `run` takes them, and `set` is applied to each. A later run of any of them finds its harvest done,
    with the firings and the key that a harvest of its own would have had. A call that was killed goes on where it was.
    Returns for each config why it could not be harvested, None where it was: one that fails takes no other with it.
    Raises ConfigError for one that cannot be read, before anything is done.
    """
    resolved = [config if isinstance(config, Config) else load_config(config, set) for config in configs]
    share_passes((config, ("harvest",)) for config in resolved)
    failures: list[str | None] = []
    for config in resolved:
        try:
            run_targets(config, ["harvest"])
            failures.append(None)
        except AutointerpError as error:
            failures.append(str(error))
    return failures


def share_passes(asked: Iterable[tuple[Config, Sequence[str]]]) -> None:
    """Make the shards of all harvests that the configs' targets need and that can share a pass. What fails is left to
    the config's own run, which says so again."""
    by_subject: dict[str, list[tuple[Config, Mapping[str, Use]]]] = {}
    for config, targets in asked:
        harvests = _harvests(config, targets)
        if harvests:
            by_subject.setdefault(passes.common(config), []).append((config, harvests))
    import torch

    with tempfile.TemporaryDirectory() as scratch:  # no language model is asked, so nothing comes into the journal
        for group in by_subject.values():
            if sum(len(harvests) for _, harvests in group) > 1:
                with Session(group[0][0], Path(scratch) / "usage.jsonl") as session:
                    _share(session, group)
                del session
                gc.collect()
                torch.cuda.empty_cache()  # other processes may come next


def _harvests(config: Config, targets: Sequence[str]) -> Mapping[str, Use]:
    try:
        used = uses(config, targets)
    except AutointerpError:
        return {}
    return {name: use for name, use in used.items() if passes.shares(use.config(config), use)}


def _share(session: Session, group: Sequence[tuple[Config, Mapping[str, Use]]]) -> None:
    members: dict[str, passes.Member] = {}  # by key: two configs may have the same harvest
    for config, harvests in group:
        try:
            members |= _to_harvest(session, config, harvests)
        except AutointerpError as error:
            passes.leave_out(config, error)
    for together in passes.rounds(members.values(), _room(session)):
        with _locked(together) as left:
            if len(left) > 1:
                log.info("one pass of %s for %d SAEs", session.config.subject.model, len(left))
                try:
                    with workers(session, lambda use: passes.work):
                        passes.work(passes.passing(left, session))
                except AutointerpError as error:
                    log.warning("the pass has ended, each SAE is harvested alone: %s", error)
        give_back_memory()


def _room(session: Session) -> float | None:
    """Bytes that the SAEs of one pass may need; None where nothing tells how much there is."""
    import torch

    free = [each for each in (available(),) if each is not None]
    if models.device(session).startswith("cuda"):
        free.append(torch.cuda.mem_get_info(models.device(session))[0])
    return SHARE * min(free) if free else None


def _to_harvest(root: Session, config: Config, harvests: Mapping[str, Use]) -> dict[str, passes.Member]:
    """The harvests of a config that are not done, by key; what they need is made first."""
    with _own(root, config) as session:
        nodes = checked_nodes(config, session, [*harvests])
        before = Dag([node for node in nodes if node.name not in harvests], open_store())
        before.run(Learner(config, session, before).note)
    dag = Dag(nodes, open_store())
    standings, members = dag.standings(), {}
    for name, use in harvests.items():
        standing, inputs = standings[name], {need: standings[need] for need in use.needs}
        if standing.state == "done" or standing.key is None:
            continue
        if all(dag.is_whole(each) for each in inputs.values()):  # else its own run mends what is not
            members[standing.key] = passes.Member(
                use.config(config),
                use,
                dag.folder(standing).with_name(f"{standing.key}.partial"),
                {plain(need) if use.under else need: dag.folder(each) for need, each in inputs.items()},
            )
    return members


@contextmanager
def _own(root: Session, config: Config) -> Iterator[Session]:
    """A session for one config's stages. In this process what was loaded is shared; a cluster's workers are told of one
    config when they begin."""
    if config.executor.kind == "local":
        yield root.under(config)
        return
    with Session(config, root.journal) as session, workers(session, lambda use: stage_of(use).work):
        yield session


@contextmanager
def _locked(members: Sequence[passes.Member]) -> Iterator[list[passes.Member]]:
    """Those that no other process has harvested meanwhile; none can while we are inside. All processes take the locks
    in one order."""
    kept, left = open_store(), []
    with ExitStack() as locks:
        for member in sorted(members, key=lambda member: member.folder):
            key = member.folder.name.removesuffix(".partial")
            locks.enter_context(kept.writing(member.use.name, key, resumable=True))
            if kept.find(member.use.name, key) is None:
                left.append(member)
        yield left
