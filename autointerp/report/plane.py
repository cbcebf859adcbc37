"""The plane of a subspace, drawn with its members: a week as a circle; as text, and as places for a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_letters
from typing import Any

WIDTH, HEIGHT = 45, 19  # characters, which are twice as high as wide


@dataclass(frozen=True)
class Member:
    feature: int
    x: float  # -1 to 1, as y
    y: float
    mark: str  # a letter, + where there are more than these


def members_of(row: Mapping[str, Any]) -> list[Member]:
    """The members of the subspace that a row of composites.parquet is in, in the order of their angle; none where it is
    in none, or an earlier version wrote it."""
    features, flat = row.get("members") or [], row.get("places") or []
    if len(flat) != 2 * len(features):
        return []
    largest = max((abs(number) for number in flat), default=1.0) or 1.0
    placed = [(f, x / largest, y / largest) for f, x, y in zip(features, flat[::2], flat[1::2])]
    placed.sort(key=lambda each: (-math.atan2(each[2], each[1]), each[0]))  # clockwise from the left
    marks = [*ascii_letters, *"+" * len(placed)]
    return [Member(f, x, y, mark) for (f, x, y), mark in zip(placed, marks)]


def title_of(row: Mapping[str, Any]) -> str:
    shape = ", a circle" if row.get("circular") else ""
    return f"subspace of rank {row['rank']:.0f}{shape}: {len(row['members'])} latents"


def drawn(members: Sequence[Member]) -> list[str]:
    """Lines of text with each member's mark at its place, · at the origin; # where several fall on one place."""
    lines = [[" "] * WIDTH for _ in range(HEIGHT)]
    lines[HEIGHT // 2][WIDTH // 2] = "·"
    for member in members:
        row = round((1 - member.y) / 2 * (HEIGHT - 1))
        column = round((1 + member.x) / 2 * (WIDTH - 1))
        taken = lines[row][column] not in " ·"
        lines[row][column] = "#" if taken else member.mark
    whole = ["".join(line).rstrip() for line in lines]
    while whole and not whole[-1]:
        whole.pop()
    return whole[next((i for i, line in enumerate(whole) if line), 0) :]
