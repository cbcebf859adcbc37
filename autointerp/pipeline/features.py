"""Work on many features at once, in parts that survive a kill."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from autointerp.artifacts import write_atomically
from autointerp.progress import Progress

T = TypeVar("T")

PART = 256  # features a part: what a kill can cost in work beside the requests, which are kept one by one


@dataclass
class Rows:
    """What one feature adds to the stage's tables, and how many of its requests may succeed later."""

    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    to_retry: int = 0


async def in_parts(
    folder: Path,
    features: Sequence[int],
    read: Callable[[Sequence[int]], Mapping[int, T]],
    work: Callable[[int, T], Awaitable[Rows]],
    *,
    width: int,
    bar: Progress,
) -> None:
    """Call `work` for every feature, `width` at a time, and keep its rows in ``folder/part-N.json``.

    `read` fetches what the features of one part need, so that memory does not grow with their number.
    """
    for number, start in enumerate(range(0, len(features), PART)):
        some = features[start : start + PART]
        path = folder / f"part-{number:05d}.json"
        if path.exists() and not json.loads(path.read_text())["to_retry"]:
            bar.advance(len(some), skipped=True)
            continue
        given = read(some)
        rows = await _gather(some, lambda feature, given=given: work(feature, given[feature]), width, bar)
        merged = Rows()
        for one in rows:
            merged.to_retry += one.to_retry
            for table, lines in one.tables.items():
                merged.tables.setdefault(table, []).extend(lines)
        text = json.dumps({"tables": merged.tables, "to_retry": merged.to_retry})
        write_atomically(path, lambda temporary, text=text: temporary.write_text(text))


def parts(folder: Path) -> Iterator[Rows]:
    for path in sorted(folder.glob("part-*.json")):
        yield Rows(**json.loads(path.read_text()))


def forget_parts(folder: Path) -> None:
    for path in folder.glob("part-*.json"):
        path.unlink()


async def _gather(
    features: Sequence[int], work: Callable[[int], Awaitable[Rows]], width: int, bar: Progress
) -> list[Rows]:
    gate = asyncio.Semaphore(width)

    async def one(feature: int) -> Rows:
        async with gate:
            rows = await work(feature)
        bar.advance()
        return rows

    tasks = [asyncio.create_task(one(feature)) for feature in features]
    try:
        return await asyncio.gather(*tasks)
    finally:
        # One failed (the budget is spent, the endpoint is down): the others end too; their answers are kept.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
