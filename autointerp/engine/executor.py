"""The executor: work in shards that survive a kill, shards of text in turn, features with many requests at a time.

A shard's files lie in the stage's folder. It is done when its record, ``.shards/00012.json``, is there: the record
holds the hash of each file, so that a file that was damaged since is seen and the shard is worked again.

`Executor` says who works the shards: this process (`Here`), or others (`engine.on_ray`). What a stage needs for that
work it makes in `prepare`, which no process calls that works none.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from autointerp.artifacts import write_atomically
from autointerp.engine.store import RECORDS
from autointerp.hashing import digest
from autointerp.llm.again import Which, again
from autointerp.memory import give_back_memory
from autointerp.tables import concat, write_rows

if TYPE_CHECKING:
    from autointerp.engine.stage import Job
    from autointerp.progress import Progress

T = TypeVar("T")

PART = 256  # features a shard at most: what a kill can cost in work beside the requests, which are kept one by one
PARTS, FEWEST = 16, 16  # of few features so many shards, each of so many features at least: several workers share them


@dataclass(frozen=True)
class Shard:
    """A part of a stage's work that is kept when it is done: rows of text, or features."""

    number: int
    items: Sequence[int]  # features, or the first row and the one after the last

    @property
    def record(self) -> str:
        return f"{RECORDS}/{self.number:05d}.json"


@dataclass
class Rows:
    """What one feature adds to the stage's tables, how many of its requests may succeed later, and how many of its rows
    have a failure in the place of a result."""

    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    to_retry: int = 0
    failed: int = 0


Seen = Callable[[Shard, bool], None]  # a shard that is done, and whether it was done before


class Executor(Protocol):
    """Who works a stage's shards."""

    def whole(self, job: Job) -> bool:
        """Have another process do all of a stage's work that has no shards; False where this one does it."""
        ...

    def elsewhere(self, job: Job, shards: Sequence[Shard], seen: Seen) -> bool:
        """Have other processes work the shards that are not done, and wait; False where this one does."""
        ...

    def draw(self, job: Job, shards: Sequence[Shard], seen: Seen) -> Iterator[Shard]:
        """The shards that this process works, one by one."""
        ...

    def kept(self, shard: Shard) -> None:
        """The record of a shard that was drawn is written."""
        ...

    def over(self) -> None:
        """All shards that were drawn are kept. A process that works shards alone goes no further: it raises."""
        ...


class Here:
    """This process works all shards that are not done."""

    def whole(self, job: Job) -> bool:
        return False

    def elsewhere(self, job: Job, shards: Sequence[Shard], seen: Seen) -> bool:
        return False

    def draw(self, job: Job, shards: Sequence[Shard], seen: Seen) -> Iterator[Shard]:
        for shard in shards:
            if is_done(job.folder, shard):
                seen(shard, True)
            else:
                yield shard

    def kept(self, shard: Shard) -> None: ...

    def over(self) -> None: ...


HERE = Here()


def each_shard(
    job: Job,
    shards: Sequence[Shard],
    prepare: Callable[[], Callable[[Shard], Sequence[Path]]],
    size: Callable[[Shard], float],
    bar: Progress,
) -> None:
    """Work every shard that is not done, by what `prepare` makes: it returns the files that it wrote, and advances
    `bar` by the shard's `size` meanwhile."""
    executor: Executor = job.session.executor or HERE

    def seen(shard: Shard, skipped: bool) -> None:
        bar.advance(size(shard), skipped=skipped)

    if executor.elsewhere(job, shards, seen):
        return
    work: Callable[[Shard], Sequence[Path]] | None = None
    for shard in executor.draw(job, shards, seen):
        work = work or prepare()
        record(job.folder, shard, work(shard), {})
        executor.kept(shard)
    executor.over()


def is_done(folder: Path, shard: Shard) -> bool:
    """Whether the shard's record is there, is of these items, has nothing to retry, and its files are whole."""
    about = _read(folder / shard.record)
    if about is None or about.get("items") != list(shard.items) or about.get("to_retry"):
        return False
    try:
        return all(_sha256(folder / name) == sha256 for name, sha256 in about["files"].items())
    except OSError:
        return False


def record(folder: Path, shard: Shard, files: Sequence[Path], about: Mapping[str, Any]) -> None:
    hashes = {str(file.relative_to(folder)): _sha256(file) for file in files}
    (folder / RECORDS).mkdir(exist_ok=True)
    about = {"items": list(shard.items), "files": hashes, **about}
    text = json.dumps(about | {"check": digest(about)})
    write_atomically(folder / shard.record, lambda path: path.write_text(text))


def records(folder: Path) -> Iterator[dict[str, Any]]:
    """Of the shards that are done, in order."""
    for path in sorted((folder / RECORDS).glob("[0-9]*.json")):
        about = _read(path)
        if about is not None:
            yield about


def forget_shards(folder: Path) -> None:
    """Remove the shards' files, which were merged into others, and the records."""
    for about in records(folder):
        for name in about["files"]:
            (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / RECORDS, ignore_errors=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        about = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(about, dict):
        return None
    check = about.pop("check", None)
    return about if check == digest(about) else None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- features, many requests at a time --------------------------------------------------------


Read = Callable[[Sequence[int]], Mapping[int, T]]
Work = Callable[[int, T], Awaitable[Rows]]


def feature_shards(features: Sequence[int], most: int | None = None) -> list[Shard]:
    """The division hangs on the number of features alone, not on who works them: so do the files' row groups."""
    step = min(most or PART, max(FEWEST, -(-len(features) // PARTS)))
    return [Shard(n, list(features[start : start + step])) for n, start in enumerate(range(0, len(features), step))]


def each_feature(
    job: Job,
    features: Sequence[int],
    prepare: Callable[[], tuple[Read[T], Work[T]]],
    *,
    width: int,
    bar: Progress,
) -> int:
    """Call `work` for every feature, `width` at a time, and keep its rows in ``part-N.TABLE.parquet``; returns how
    many requests may succeed later.

    `prepare` makes `read` and `work`. `read` fetches what the features of one shard need, so that memory does not grow
    with their number; the next shard's features begin as soon as all of one have begun, so that requests stay in
    flight.
    """
    shards, session = feature_shards(features), job.session
    executor: Executor = session.executor or HERE

    def seen(shard: Shard, skipped: bool) -> None:
        bar.advance(len(shard.items), skipped=skipped)
        give_back_memory()
        if session.on_shard is not None and not skipped:
            session.on_shard()

    if not executor.elsewhere(job, shards, seen):
        drawn = executor.draw(job, shards, seen)
        session.wait(_each_feature(job, drawn, executor, *prepare(), width, bar))
        executor.over()
    return sum(about.get("to_retry", 0) for about in records(job.folder))


async def _each_feature(
    job: Job, drawn: Iterator[Shard], executor: Executor, read: Read[T], work: Work[T], width: int, bar: Progress
) -> None:
    session = job.session
    gate = asyncio.Semaphore(width)
    ended_by: list[BaseException] = []  # what ended the run, if anything did

    async def feature_rows(feature: int, given: T, left: list[int], begun: asyncio.Event) -> Rows:
        async with gate:
            left.remove(feature)
            if not left:
                begun.set()
            if ended_by:
                raise ended_by[0]
            try:
                rows = await _rows(lambda: work(feature, given), session.retry_failed)
            except BaseException as error:
                ended_by.append(error)
                raise
        bar.advance()
        return rows

    async def whole_shard(shard: Shard, given: Mapping[int, T], begun: asyncio.Event) -> None:
        left = list(shard.items)
        tasks = [asyncio.create_task(feature_rows(f, given[f], left, begun)) for f in shard.items]
        try:
            rows = await asyncio.gather(*tasks)
        finally:
            await _end(tasks)
        await _whole(_keep, job.folder, shard, rows)
        await _whole(executor.kept, shard)
        if session.on_shard is not None:
            await _whole(session.on_shard)

    under_way: set[asyncio.Task[Any]] = set()
    try:
        while (shard := await asyncio.to_thread(next, drawn, None)) is not None:
            begun = asyncio.Event()
            given = await asyncio.to_thread(read, shard.items)
            under_way.add(asyncio.create_task(whole_shard(shard, given, begun)))
            all_begun = asyncio.create_task(begun.wait())
            ended, under_way = await asyncio.wait({all_begun, *under_way}, return_when=asyncio.FIRST_COMPLETED)
            while not all_begun.done():
                _raise_from(ended)
                ended, under_way = await asyncio.wait({all_begun, *under_way}, return_when=asyncio.FIRST_COMPLETED)
            _raise_from(ended - {all_begun})
            under_way.discard(all_begun)
        await asyncio.gather(*under_way)
    finally:
        await _end(under_way)


async def _rows(work: Callable[[], Awaitable[Rows]], retry_failed: bool) -> Rows:
    """What a feature adds; with `retry_failed` made again while rows of it failed: of fresh answers in the place of
    those that said nothing or could not be read and, where each could, of fresh answers alone."""
    rows = await work()
    which: Sequence[Which] = ("unread", "all") if retry_failed else ()
    for answers in which:
        if not rows.failed:
            break
        with again(answers) as renewed:
            rows = await work()
        if renewed.asked:
            break
    return rows


async def _whole(call: Callable[..., None], *given: Any) -> None:
    """In a thread, to its end also where the run stops meanwhile: nobody else may write these files before."""
    task = asyncio.create_task(asyncio.to_thread(call, *given))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def _raise_from(tasks: set[Any]) -> None:
    for task in tasks:
        task.result()


async def _end(tasks: Any) -> None:
    """One failed (the budget is spent, the endpoint is down): the others end too; their answers are kept."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _keep(folder: Path, shard: Shard, rows: Sequence[Rows]) -> None:
    """Write a shard's rows, a file a table, and its record."""
    files = []
    for table in dict.fromkeys(name for each in rows for name in each.tables):
        path = folder / f"part-{shard.number:05d}.{table}.parquet"
        lines = [line for each in rows for line in each.tables.get(table, ())]
        metrics = dict.fromkeys(name for line in lines for name in line.get("metrics", ()))
        written = [line | line.get("metrics", {}) for line in lines]
        write_atomically(path, lambda temporary, t=table, w=written, m=metrics: write_rows(temporary, t, w, m))
        files.append(path)
    record(folder, shard, files, {"to_retry": sum(each.to_retry for each in rows)})


def part_files(folder: Path, table: str) -> list[Path]:
    """The files of a table that the shards of a stage have written so far, in order."""
    return sorted(folder.glob(f"part-*.{table}.parquet"))


def merge_parts(folder: Path, tables: Sequence[str]) -> None:
    """Each table's parts as one file; a table without a row is written empty."""
    for table in tables:
        concat(part_files(folder, table), table, folder / f"{table}.parquet")
