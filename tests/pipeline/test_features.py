"""Work on many features: bounded, in order, and kept in parts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from autointerp.errors import OutOfBudget
from autointerp.pipeline import features as module
from autointerp.engine.executor import Rows, in_parts, parts
from autointerp.progress import Progress


def nothing(features: Sequence[int]) -> dict[int, None]:
    return dict.fromkeys(features)


def bar() -> Progress:
    return Progress("x", None, "features")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART", 4)


async def test_rows_come_back_in_the_order_of_the_features(tmp_path: Path) -> None:
    async def work(feature: int, _: None) -> Rows:
        await asyncio.sleep(0 if feature % 2 else 0.001)
        return Rows({"t": [{"feature": feature}]}, to_retry=feature == 7)

    await in_parts(tmp_path, range(10), nothing, work, width=3, bar=bar())
    found = list(parts(tmp_path))
    assert [row["feature"] for part in found for row in part.tables["t"]] == list(range(10))
    assert sum(part.to_retry for part in found) == 1


async def test_a_part_with_something_to_ask_again_is_worked_again(tmp_path: Path) -> None:
    asked: list[int] = []

    async def work(feature: int, _: None) -> Rows:
        asked.append(feature)
        return Rows({"t": [{"feature": feature}]}, to_retry=feature == 5 and len(asked) < 8)

    await in_parts(tmp_path, range(8), nothing, work, width=1, bar=bar())
    await in_parts(tmp_path, range(8), nothing, work, width=1, bar=bar())
    assert asked == [0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]
    assert sum(part.to_retry for part in parts(tmp_path)) == 0


async def test_never_more_than_width_at_once(tmp_path: Path) -> None:
    now = most = 0

    async def work(feature: int, _: None) -> Rows:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return Rows()

    await in_parts(tmp_path, range(8), nothing, work, width=3, bar=bar())
    assert most == 3


async def test_after_a_stop_only_the_parts_that_were_not_whole_are_worked_again(tmp_path: Path) -> None:
    asked: list[int] = []

    async def stops_at_six(feature: int, _: None) -> Rows:
        asked.append(feature)
        if feature == 6:
            raise OutOfBudget("spent")
        return Rows({"t": [{"feature": feature}]})

    with pytest.raises(OutOfBudget):
        await in_parts(tmp_path, range(10), nothing, stops_at_six, width=1, bar=bar())
    assert max(asked) <= 7

    asked.clear()

    async def work(feature: int, _: None) -> Rows:
        asked.append(feature)
        return Rows({"t": [{"feature": feature}]})

    await in_parts(tmp_path, range(10), nothing, work, width=1, bar=bar())
    assert asked == [4, 5, 6, 7, 8, 9]
    assert [r["feature"] for p in parts(tmp_path) for r in p.tables["t"]] == list(range(10))
