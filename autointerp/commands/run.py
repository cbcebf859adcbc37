"""``autointerp run``: run the whole DAG of a config, or the stages that are asked for by name."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from autointerp.commands.doctor import checked_nodes
from autointerp.commands.folder import (
    Run,
    describe,
    is_complete,
    previous_stages,
    run_folder,
    write_config,
    write_json,
    write_usage,
)
from autointerp.commands.learn import Learner
from autointerp.commands.live import Live
from autointerp.commands.plan import plan, seconds_per_use
from autointerp.commands.track import RunTracking
from autointerp.config import Config, load_config
from autointerp.engine.dag import Dag, Node
from autointerp.engine.mirrored import open_store
from autointerp.engine.session import Session
from autointerp.engine.stage import Job
from autointerp.engine.store import Manifest
from autointerp.errors import AutointerpError
from autointerp.llm.backends.http import check_library
from autointerp.memory import map_large_blocks
from autointerp.report import write_report
from autointerp.report.at_url import kept_at_url
from autointerp.stages import TABLES, stage_of
from autointerp.stages.tables import copy_tables

log = logging.getLogger("autointerp")


@kept_at_url
def run(
    config: str | Path | Config,
    *,
    set: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    retry_failed: bool = False,
) -> Run:
    """Run the DAG of a config and return the run. What is done already, in this run or another, is not done again.

    With `retry_failed` every failed row is asked for again, whatever its reason. Without it only what may pass is.
    It may be called where an event loop runs, as in a notebook; `arun` lets that loop go on meanwhile. What failed
    altogether is in `Run.total_failures`.
    """
    resolved = config if isinstance(config, Config) else load_config(config, set)
    map_large_blocks()
    folder = run_folder(resolved, out)
    started = time.time()
    whole, before = is_complete(folder), previous_stages(folder)
    with session_in(resolved, folder, retry_failed) as session, RunTracking(resolved, folder) as track:
        checked = checked_nodes(resolved, session)
        live = Live(resolved, folder, open_store())
        dag = Dag(live.watched(track.watched(checked)), live.store, retry_failed=retry_failed)
        live.expect(dag, before, lambda: seconds_per_use(plan(resolved, out, retry_failed=retry_failed)))
        session.on_shard = live.shard_kept
        learner = Learner(resolved, session, dag)

        def ended(node: Node, manifest: Manifest, ran: bool) -> None:
            live.ended(node, manifest, ran)
            learner.note(node, manifest, ran)
            track.ended(node, manifest, ran)

        with live:
            manifests = dag.run(ended)
        keys = {name: stage["key"] for name, stage in live.stages.items()}
        if live.worked or keys != {name: stage.get("key") for name, stage in before.items()} or not whole:
            write_config(folder, resolved)
            copy_tables(dag.store.folder("tables", manifests["tables"].key), folder, TABLES)
            write_usage(folder)
            write_json(folder / "run.json", describe(resolved, live.stages, folder, started))
            write_report(folder, done=True)
            live.finish()
            track.finish()
        else:
            log.info("nothing to do: every stage is done")
    made = Run(folder)
    for failure in made.total_failures:
        log.error("%s", failure)
    return made


async def arun(
    config: str | Path | Config,
    *,
    set: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    retry_failed: bool = False,
) -> Run:
    """`run`, awaited: the caller's event loop goes on meanwhile."""
    return await asyncio.to_thread(run, config, set=set, out=out, retry_failed=retry_failed)


def run_targets(
    config: str | Path | Config,
    targets: Sequence[str],
    *,
    set: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
) -> dict[str, Path]:
    """Run the stages `targets` and what they need; returns the folder of each in the store.

    ``run_targets("demo", ["sae", "evaluate"])``. No table is written: `out` is the folder that is locked meanwhile.
    Raises ConfigError for a stage that the config does not have.
    """
    resolved = config if isinstance(config, Config) else load_config(config, set)
    with session_in(resolved, run_folder(resolved, out)) as session:
        dag = Dag(checked_nodes(resolved, session, targets), open_store(), targets=targets)
        manifests = dag.run(Learner(resolved, session, dag).note)
    return {name: dag.store.folder(name, manifests[name].key) for name in targets}


@contextmanager
def session_in(config: Config, folder: Path, retry_failed: bool = False) -> Iterator[Session]:
    """The session of a run in `folder`, which no other process may work in meanwhile."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (
            FileLock(folder / ".lock", timeout=0),
            Session(config, folder / "usage.jsonl", retry_failed=retry_failed) as session,
            workers(session, lambda use: stage_of(use).work),
        ):
            yield session
    except Timeout:
        raise AutointerpError(f"another process is running in {folder}: wait for it, or give --out") from None


def workers(session: Session, work_of: Callable[[str], Callable[[Job], None]]) -> AbstractContextManager[None]:
    """Inside, the shards of the session's stages are worked where its config says. `work_of`: a use's work, by name."""
    if session.config.executor.kind == "local":
        return nullcontext()
    check_library("ray")
    from autointerp.engine.cluster.driver import on_cluster

    return on_cluster(session, work_of)
