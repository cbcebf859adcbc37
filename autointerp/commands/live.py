"""While a run goes on: its progress, and its tables and report as they grow.

1. `Live.watched` wraps the DAG's nodes, so that it hears where each stage writes; `Live.ended` hears what came of it.
2. From the first stage that has work to do, a thread counts the journal's new requests and writes progress.json, every
   few seconds.
3. A shard that is kept, or a stage that ended, wakes another thread. From the first scored shard on it assembles the
   tables from what lies there, in a folder of its own, puts them into the run's folder, and writes the report. It rests
   for `REST` seconds at least, and for `SHARE` times as long as that took, so that a long run pays less than 5 %.
4. A run that ends removes progress.json; one that fails or is stopped leaves it, so that readers can say so.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, TypeAlias

from autointerp.artifacts import write_atomically
from autointerp.commands.folder import write_config
from autointerp.config import Config, LLMConfig
from autointerp.engine.dag import Dag, Done, Node
from autointerp.engine.store import Manifest, Store
from autointerp.errors import ConfigError
from autointerp.llm.registry import prices
from autointerp.memory import give_back_memory
from autointerp.progress import FILE, Asked, RunProgress, standing_of
from autointerp.report import write_report
from autointerp.stages import TABLES, stage_of, uses
from autointerp.stages.tables import assemble, sources
from autointerp.tables import concat, write_stream

log = logging.getLogger("autointerp")

Cost: TypeAlias = Callable[[float, float], float]  # of prompt and answer tokens

REST = 20.0  # seconds between two refreshes of the tables, at least
SHARE = 20.0  # and so many times what the last one took
_HIDDEN = ".tables-"
TICK = 2.0  # seconds between two looks at the journal
UNPLANNED = 5  # looks before the planner is asked: a short run needs no plan


class Live:
    """Use as a context manager around `Dag.run`; it shows the run's progress meanwhile."""

    def __init__(self, config: Config, folder: Path, store: Store) -> None:
        self.stages: dict[str, dict[str, Any]] = {}  # those that are over, as run.json has them
        self.progress = RunProgress(())
        self.store, self._folder = store, folder
        self._started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._journal = JournalTail(folder / "usage.jsonl", prices_of(config))
        self._tables = LiveTables(config, folder)
        self._folders: dict[str, Path] = {}  # use -> where its files are
        self._planner: Callable[[], Mapping[str, float]] | None = None
        self.worked = False  # whether any stage had work to do
        self._writing = Lock()
        self._shown: Callable[[], None] = lambda: None
        self._wanted, self._over = Event(), Event()
        self._open = ExitStack()
        self._threads: list[Thread] = []

    def watched(self, nodes: Sequence[Node]) -> list[Node]:
        """`nodes` with work that says when it begins, and where."""
        self.progress.stages = [node.name for node in nodes]
        return [replace(node, work=self._watched(node)) for node in nodes]

    def _watched(self, node: Node) -> Callable[[Path, Mapping[str, Path]], Done]:
        def work(folder: Path, inputs: Mapping[str, Path]) -> Done:
            self.begun(node.name, folder)
            return node.work(folder, inputs)

        return work

    def expect(
        self, dag: Dag, before: Mapping[str, Any], planner: Callable[[], Mapping[str, float]] | None = None
    ) -> None:
        """How long the stages of `dag` will take: nothing where they are done, else what they took before (`before`:
        the stages of an earlier run.json). A run that lasts asks `planner` for seconds by stage, in a thread."""
        known = {name: float(stage["seconds"]) for name, stage in before.items() if stage.get("seconds")}
        done = {name: 0.0 for name, standing in dag.standings().items() if standing.state == "done"}
        self.progress.expected, self._planner = known | done, planner

    def begun(self, stage: str, folder: Path) -> None:
        self.worked = True
        self.progress.begin(stage)
        if stage_of(stage).resumable:
            self._folders[stage] = folder
        self._write_standing()
        self._shown()

    def ended(self, node: Node, manifest: Manifest, ran: bool) -> None:
        """For `Dag.run`."""
        self.stages[node.name] = {
            "key": manifest.key,
            "status": "ran" if ran else "cached",
            "seconds": manifest.seconds,
            **({"to_retry": manifest.to_retry} if manifest.to_retry else {}),
            "facts": dict(manifest.facts),
        }
        self._folders.pop(node.name, None)
        if (folder := self.store.folder(node.name, manifest.key)).is_dir():  # a mirror may have it alone
            self._folders[node.name] = folder
        self.progress.end(node.name, manifest.seconds if ran else 0.0)
        if ran:
            self._write_standing()
        if self._tables.written is not None:
            self._wanted.set()

    def shard_kept(self) -> None:
        """For `Session.on_shard`: returns at once."""
        stage = self.progress.stage or ""
        if stage.startswith("score/") or self._tables.written is not None:
            self._wanted.set()

    def __enter__(self) -> Live:
        self._shown = self._open.enter_context(self.progress.shown())
        self._threads = [Thread(target=work, daemon=True) for work in (self._tell, self._refresh)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """A refresh that is under way may end, for a few seconds; what it has written by then is whole."""
        self._over.set()
        self._wanted.set()
        for thread in self._threads:
            thread.join(None if kind is None else 5.0)
        self._open.close()
        self._tables.close()
        if self.worked:
            self._write_standing(stopped=kind is not None)

    def finish(self) -> None:
        """The run's folder holds everything: readers need not be told of a run that goes on."""
        (self._folder / FILE).unlink(missing_ok=True)

    # --- threads

    def _tell(self) -> None:
        for tick in count():
            if self._over.wait(TICK):
                return
            if tick == UNPLANNED and self.worked and self._planner is not None:
                Thread(target=self._plan, args=(self._planner,), daemon=True).start()
            if self.worked:
                self._write_standing()
                self._shown()

    def _plan(self, planner: Callable[[], Mapping[str, float]]) -> None:
        """The planner's seconds, but for the stages that were found done."""
        try:
            planned = planner()
        except Exception:  # an estimate is worth no failed run
            log.debug("the run's time could not be planned", exc_info=True)
            return
        expected = self.progress.expected
        self.progress.expected = expected | {name: s for name, s in planned.items() if expected.get(name) != 0.0}

    def _refresh(self) -> None:
        while not self._over.is_set():
            self._wanted.wait()
            while not self._over.is_set() and (rest := self._tables.rest()) > 0:
                self._over.wait(min(rest, TICK))
            if self._over.is_set():
                return
            self._wanted.clear()
            self.refresh()

    def refresh(self) -> bool:
        """Write the tables and the report so far; False where they could not be, as while a stage merges its files."""
        self._write_standing(tables=time.time())
        return self._tables.refresh(dict(self._folders), self._over.is_set)

    def _write_standing(self, stopped: bool = False, tables: float | None = None) -> None:
        with self._writing, suppress(OSError):  # a full disk ends the run where a result is lost, not here
            self.progress.asked = self._journal.read()
            standing = standing_of(self.progress, self._started, tables or self._tables.written, self.stages)
            replace(standing, stopped=stopped).write(self._folder)


class LiveTables:
    """The tables and the report of a run that goes on.

    What was assembled is kept in a hidden folder until the next time: a table whose files have not changed is not made
    again. Tables are linked, not copied, into the run's folder, each whole or as it was.
    """

    def __init__(self, config: Config, folder: Path, now: Callable[[], float] = time.monotonic) -> None:
        self.written: float | None = None  # when they were, seconds since 1970
        self._config, self._folder, self._now = config, folder, now
        self._written_by: Mapping[str, Sequence[str]] = uses(config)["tables"].given  # stage -> tables
        self._marks: dict[str, list[tuple[str, int, int]]] = {}  # table -> path, size and time of each of its files
        self._earlier: Path | None = None
        self._ended, self._took = float("-inf"), 0.0
        for left in folder.glob(f"{_HIDDEN}*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        self._hidden = tempfile.TemporaryDirectory(prefix=_HIDDEN, dir=folder, ignore_cleanup_errors=True)
        self._usage = LiveUsage(folder, Path(self._hidden.name))

    def rest(self) -> float:
        """Seconds until the next refresh may begin."""
        return self._ended + max(REST, SHARE * self._took) - self._now()

    def refresh(self, folders: Mapping[str, Path], stop: Callable[[], bool] = lambda: False) -> bool:
        """Whether the tables were written. Files that come and go meanwhile are no error: the next refresh has them."""
        import pyarrow as pa

        begun = self._now()
        try:
            in_place = all(folder.is_dir() for folder in folders.values())  # none is being renamed
            return in_place and "select" in folders and self._refresh(folders, stop)
        except (OSError, pa.ArrowException, KeyError, ValueError):
            log.debug("the tables so far could not be written", exc_info=True)
            return False
        finally:
            give_back_memory()
            self._ended = self._now()
            self._took = self._ended - begun

    def _refresh(self, folders: Mapping[str, Path], stop: Callable[[], bool]) -> bool:
        tables = self._written_by
        out = Path(tempfile.mkdtemp(dir=self._hidden.name))
        marks = {table: [_mark(file) for file in files] for table, files in sources(folders, tables).items()}
        for table in marks:
            _keep(self._unchanged(table, marks) or _only_file(table, folders, tables), out / f"{table}.parquet")
        assemble(self._config, folders, tables, out)
        if stop():
            return False
        self._place(out, marks)
        if self._earlier is not None:
            shutil.rmtree(self._earlier, ignore_errors=True)
        self._earlier, self._marks, self.written = out, marks, time.time()
        write_config(self._folder, self._config)
        self._usage.write()
        if not stop():
            write_report(self._folder)
        return True

    def _unchanged(self, table: str, marks: Mapping[str, Any]) -> Path | None:
        made_of_others = table not in marks or table in ("features", "composites")
        if self._earlier is None or made_of_others or self._marks.get(table) != marks.get(table):
            return None
        return self._earlier / f"{table}.parquet"

    def _place(self, out: Path, marks: Mapping[str, Any]) -> None:
        """Link what is new into the run's folder; a table of an earlier config that is not made any more goes."""
        for table in TABLES:
            file, target = out / f"{table}.parquet", self._folder / f"{table}.parquet"
            if not file.exists():
                target.unlink(missing_ok=True)
            elif self._unchanged(table, marks) is None or not target.exists():
                write_atomically(target, lambda temporary, file=file: _link(file, temporary))

    def close(self) -> None:
        self._hidden.cleanup()


def _mark(file: Path) -> tuple[str, int, int]:
    status = file.stat()
    return str(file), status.st_size, status.st_mtime_ns


def _only_file(table: str, folders: Mapping[str, Path], tables: Mapping[str, Sequence[str]]) -> Path | None:
    """The one whole file that a table consists of, where that is so and the file can be read."""
    import pyarrow.parquet as pq

    files = sources(folders, {kind: [name for name in names if name == table] for kind, names in tables.items()})
    if table == "composites" or len(files.get(table, ())) != 1:
        return None
    pq.read_metadata(files[table][0])  # raises where it is being written
    return files[table][0]


def _keep(file: Path | None, to: Path) -> None:
    if file is not None and file.exists():
        _link(file, to)


def _link(file: Path, to: Path) -> None:
    """A second name for a file that nobody changes in place; a copy where the file system has no such thing."""
    to.unlink(missing_ok=True)
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)


# --- requests ---------------------------------------------------------------------------------


class JournalRows:
    """The rows of a journal of requests in the order of their writing; each is given once."""

    def __init__(self, path: Path, *, from_now: bool = False) -> None:
        self._path = path
        self._at = path.stat().st_size if from_now and path.exists() else 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The whole lines after the last one that was given."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._at)
                for line in file:
                    if not line.endswith(b"\n"):  # being written
                        return
                    self._at += len(line)
                    with suppress(ValueError):  # torn by a kill
                        yield json.loads(line)
        except FileNotFoundError:
            return


class LiveUsage:
    """usage.parquet so far: each time the journal's new rows become another part."""

    def __init__(self, folder: Path, hidden: Path) -> None:
        self._folder, self._hidden = folder, hidden
        self._rows, self._parts = JournalRows(folder / "usage.jsonl"), 0

    def write(self) -> None:
        write_stream(self._hidden / f"usage-{self._parts:06d}.parquet", "usage", self._rows, group=1 << 12)
        self._parts += 1
        parts = sorted(self._hidden.glob("usage-*.parquet"))
        write_atomically(self._folder / "usage.parquet", lambda path: concat(parts, "usage", path))


class JournalTail:
    """Adds up the rows that are written to a journal of requests from now on."""

    WINDOW = 60.0  # seconds over which tokens a second are taken

    def __init__(self, path: Path, cost: Mapping[str, Cost | None], now: Callable[[], float] = time.monotonic) -> None:
        self._rows, self._cost, self._now = JournalRows(path, from_now=True), cost, now
        self._asked = Asked()
        self._recent: deque[tuple[float, int]] = deque([(now(), 0)])  # time, tokens until then

    def read(self) -> Asked:
        for row in self._rows:
            self._add(row)
        now = self._now()
        self._recent.append((now, self._asked.tokens))
        while len(self._recent) > 2 and now - self._recent[0][0] > self.WINDOW:
            self._recent.popleft()
        then, tokens = self._recent[0]
        speed = (self._asked.tokens - tokens) / (now - then) if now > then else None
        self._asked = replace(self._asked, tokens_per_second=speed)
        return self._asked

    def _add(self, row: Mapping[str, Any]) -> None:
        seen = self._asked
        if row["cached"]:
            self._asked = replace(seen, from_cache=seen.from_cache + 1)
            return
        tokens_in, tokens_out = row["prompt_tokens"], row["completion_tokens"]
        cost = self._cost.get(row["model"])
        self._asked = replace(
            seen,
            requests=seen.requests + 1,
            failed=seen.failed + (row["outcome"] != "ok"),
            tokens=seen.tokens + tokens_in + tokens_out,
            cost=None if seen.cost is None or cost is None else seen.cost + cost(tokens_in, tokens_out),
        )


def prices_of(config: Config) -> dict[str, Cost | None]:
    """What prompt and answer tokens cost with each model of the config; None where its prices are not known."""
    costs: dict[str, Cost | None] = {}
    for llm in _llms(config):
        try:
            known = prices(llm)
        except ConfigError:  # told by whoever opens it
            known = None
        for name in {llm.model, llm.model.partition(":")[2] or llm.model}:
            costs[name] = None if known is None else known.cost
    return costs


def _llms(config: Config) -> Iterator[LLMConfig]:
    semantic = config.composites.semantic
    plugins = (*config.explainers, *config.scorers, *config.controls)
    for llm in (config.llm, *(plugin.llm for plugin in plugins), semantic.llm if semantic else None):
        if llm is not None:
            yield llm
