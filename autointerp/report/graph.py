"""The stages of a run as a picture: each stands to the right of those that it reads, with the time that it took."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

from autointerp.config import parse_config
from autointerp.errors import AutointerpError
from autointerp.progress import clock
from autointerp.report.folder import RunFolder
from autointerp.stages import uses

BOX = (158, 38)
_GAP = (34, 12)
_EDGE = 6
_LETTERS = 23  # of a name that fit into a box


@dataclass(frozen=True)
class Box:
    name: str  # as it fits
    full: str
    state: str  # ran, cached, under way or waiting
    time: str
    says: str
    key: str
    after: tuple[str, ...]  # the stages that it reads, those left out that these read in turn
    share: float  # of the longest time
    x: float
    y: float


@dataclass(frozen=True)
class Graph:
    boxes: list[Box]
    lines: list[str]  # paths of an SVG
    width: float
    height: float
    box: tuple[int, int] = BOX


def graph_of(run: RunFolder) -> Graph:
    """Without boxes where nothing is known of the run's stages. Where its config is not understood any more the stages
    that ran stand in a row, without lines."""
    stages: Mapping[str, Mapping[str, Any]] = run.info.get("stages") or {}
    after = _direct(_reads(run, stages))
    column: dict[str, int] = {}
    for name in TopologicalSorter(after).static_order():
        column[name] = 1 + max((column[other] for other in after[name]), default=-1)
    places: dict[str, tuple[float, float]] = {}
    filled: dict[int, int] = {}
    for name in after:
        row = filled[column[name]] = filled.get(column[name], -1) + 1
        places[name] = (_EDGE + column[name] * (BOX[0] + _GAP[0]), _EDGE + row * (BOX[1] + _GAP[1]))
    longest = max((stage.get("seconds") or 0.0 for stage in stages.values()), default=0.0)
    under_way = run.standing.stage if run.standing is not None else None
    boxes = [
        _box(name, stages.get(name), name == under_way, tuple(after[name]), longest, places[name]) for name in after
    ]
    width = max((x for x, _ in places.values()), default=0) + BOX[0] + _EDGE
    height = max((y for _, y in places.values()), default=0) + BOX[1] + _EDGE
    return Graph(boxes, list(_lines(after, places)), width, height)


def _reads(run: RunFolder, stages: Mapping[str, Any]) -> dict[str, list[str]]:
    """Stage -> the stages that it reads, in the order of the stages."""
    try:
        known = {name: use.needs for name, use in uses(parse_config(dict(run.config))).items()} if run.config else {}
    except (AutointerpError, ImportError):  # a config of another version, a plug-in that is not here
        known = {}
    if not set(stages) <= set(known):
        return {name: [] for name in stages}
    here = set(known) if run.standing is not None else set(stages)  # a run that is done waits for nothing
    return {name: list(dict.fromkeys(_nearest(known, here, name))) for name in known if name in here}


def _nearest(known: Mapping[str, Sequence[str]], here: Collection[str], name: str) -> Iterator[str]:
    """What a stage reads; for one that is not `here`, as in a run of an earlier version, what that one reads."""
    for other in known[name]:
        yield from [other] if other in here else _nearest(known, here, other) if other in known else []


def _direct(reads: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Without the lines that longer ways make needless."""
    above: dict[str, set[str]] = {}
    for name in TopologicalSorter(reads).static_order():
        above[name] = set(reads[name]).union(*(above[other] for other in reads[name]))
    return {
        name: [other for other in others if not any(other in above[third] for third in others)]
        for name, others in reads.items()
    }


def _box(
    name: str,
    stage: Mapping[str, Any] | None,
    now: bool,
    after: tuple[str, ...],
    longest: float,
    place: tuple[float, float],
) -> Box:
    seconds = (stage or {}).get("seconds")
    state = "under way" if now else str(stage.get("status") or "ran") if stage else "waiting"
    time = state if seconds is None else clock(seconds)
    says = f"{name}: {state}" + ("" if seconds is None else f", {time} when it ran")
    short = name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"
    share = (seconds or 0.0) / longest if longest else 0.0
    return Box(short, name, state, time, says, str((stage or {}).get("key") or "")[:16], after, share, *place)


def _lines(after: Mapping[str, list[str]], places: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    for name, others in after.items():
        x, y = places[name]
        for other in others:
            from_x, from_y = places[other][0] + BOX[0], places[other][1] + BOX[1] / 2
            right, down = x - from_x, y + BOX[1] / 2 - from_y
            yield f"M{from_x} {from_y}c{right / 2} 0 {right / 2} {down} {right} {down}"
