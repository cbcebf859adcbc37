"""Work in shards: bounded, in order, kept, and worked again where a shard's files were damaged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from autointerp.config import parse_config
from autointerp.engine import executor
from autointerp.engine.executor import (
    Rows,
    Shard,
    each_feature,
    each_shard,
    feature_shards,
    forget_shards,
    merge_parts,
    part_files,
)
from autointerp.engine.session import Session
from autointerp.engine.stage import Job, Use
from autointerp.errors import ConfigError, OutOfBudget
from autointerp.progress import Progress

TABLE = "explanations"
Work = Callable[[int, None], Awaitable[Rows]]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "PART", 4)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with Session(None, tmp_path / "usage.jsonl") as session:  # type: ignore[arg-type]
        yield session


def row(feature: int, to_retry: bool = False) -> Rows:
    return Rows({TABLE: [{"feature": feature, "explanation": f"the word {feature}"}]}, to_retry=to_retry)


def run(session: Session, folder: Path, features: Sequence[int], work: Work, width: int = 3) -> int:
    folder.mkdir(exist_ok=True)
    bar = Progress("x", None, "features")
    job = Job(session, Use("x"), folder, {})
    return each_feature(job, features, lambda: (dict.fromkeys, work), width=width, bar=bar)


def features_of(folder: Path) -> list[int]:
    merge_parts(folder, [TABLE])
    return pq.read_table(folder / f"{TABLE}.parquet")["feature"].to_pylist()


def test_rows_come_back_in_the_order_of_the_features(session: Session, tmp_path: Path) -> None:
    async def work(feature: int, _: None) -> Rows:
        await asyncio.sleep(0 if feature % 2 else 0.001)
        return row(feature, to_retry=feature == 7)

    assert run(session, tmp_path / "a", range(10), work) == 1
    assert features_of(tmp_path / "a") == list(range(10))


def test_a_shard_with_something_to_ask_again_is_worked_again(session: Session, tmp_path: Path) -> None:
    asked: list[int] = []

    async def work(feature: int, _: None) -> Rows:
        asked.append(feature)
        return row(feature, to_retry=feature == 5 and len(asked) < 9)

    assert run(session, tmp_path / "a", range(8), work, width=1) == 1
    assert run(session, tmp_path / "a", range(8), work, width=1) == 0
    assert asked == [0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]


def test_never_more_than_width_at_once_and_as_many_as_that_across_shards(session: Session, tmp_path: Path) -> None:
    now = most = 0

    async def work(feature: int, _: None) -> Rows:
        nonlocal now, most
        now += 1
        most = max(most, now)
        for _turn in range(100):
            if most == 6:
                break
            await asyncio.sleep(0.01)
        now -= 1
        return row(feature)

    run(session, tmp_path / "a", range(16), work, width=6)
    assert most == 6, "a shard holds four features: the next one begins before the first has ended"


def test_after_a_stop_only_the_shards_that_were_not_whole_are_worked_again(session: Session, tmp_path: Path) -> None:
    asked: list[int] = []

    async def stops_at_six(feature: int, _: None) -> Rows:
        asked.append(feature)
        if feature == 6:
            raise OutOfBudget("spent")
        return row(feature)

    with pytest.raises(OutOfBudget):
        run(session, tmp_path / "a", range(10), stops_at_six, width=1)
    assert max(asked) <= 7

    asked.clear()

    async def work(feature: int, _: None) -> Rows:
        asked.append(feature)
        return row(feature)

    run(session, tmp_path / "a", range(10), work, width=1)
    assert asked == [4, 5, 6, 7, 8, 9]
    assert features_of(tmp_path / "a") == list(range(10))


@pytest.mark.parametrize("what", ["file", "record"])
def test_a_shard_that_was_damaged_is_worked_again(session: Session, tmp_path: Path, what: str) -> None:
    asked: list[int] = []

    async def work(feature: int, _: None) -> Rows:
        asked.append(feature)
        return row(feature)

    folder = tmp_path / "a"
    run(session, folder, range(10), work)
    path = part_files(folder, TABLE)[1] if what == "file" else folder / Shard(1, ()).record
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)
    asked.clear()
    run(session, folder, range(10), work)
    assert sorted(asked) == [4, 5, 6, 7]
    assert features_of(folder) == list(range(10))


def test_merged_shards_leave_one_table_and_no_trace(session: Session, tmp_path: Path) -> None:
    async def work(feature: int, _: None) -> Rows:
        return Rows({"scores": [{"feature": feature, "value": 0.5, "metrics": {"f1": 1.0} if feature > 3 else {}}]})

    folder = tmp_path / "a"
    run(session, folder, range(6), work)
    merge_parts(folder, ["scores", "judgements"])
    forget_shards(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["judgements.parquet", "scores.parquet"]
    scores = pq.read_table(folder / "scores.parquet")
    assert scores["f1"].to_pylist() == [None] * 4 + [1.0] * 2
    assert pq.read_table(folder / "judgements.parquet").num_rows == 0


def test_shards_of_text_are_worked_once_and_again_where_a_file_was_cut(session: Session, tmp_path: Path) -> None:
    worked: list[int] = []
    job = Job(session, Use("x"), tmp_path, {})

    def work(shard: Shard) -> list[Path]:
        worked.append(shard.number)
        path = tmp_path / f"shard-{shard.number}"
        path.write_text(str(shard.items))
        return [path]

    def skipped_of(shards: Sequence[Shard]) -> float:
        bar = Progress("x", None, "tokens")
        each_shard(job, shards, lambda: work, lambda shard: shard.items[1] - shard.items[0], bar)
        return bar.skipped

    shards = [Shard(0, (0, 10)), Shard(1, (10, 20)), Shard(2, (20, 25))]
    assert skipped_of(shards) == 0
    (tmp_path / "shard-1").write_text("(10, 2")
    assert skipped_of(shards) == 15
    assert worked == [0, 1, 2, 1]
    assert skipped_of([*shards[:2], Shard(2, (20, 30))]) == 20
    assert worked[4:] == [2], "other rows under an old number"


def test_few_features_are_divided_among_several_workers_and_many_stay_in_large_shards(monkeypatch) -> None:
    monkeypatch.undo()
    assert [len(shard.items) for shard in feature_shards(range(20))] == [16, 4]
    assert len(feature_shards(range(1600))) == 16
    assert {len(shard.items) for shard in feature_shards(range(1 << 14))} == {256}


def test_an_executor_on_ray_without_ray_says_what_to_install(session: Session, monkeypatch) -> None:
    from autointerp.commands.run import workers

    given = {"subject": {"model": "m"}, "corpus": {"source": "s"}, "sae": {"load": "s"}}
    session.config = parse_config({"name": "x", **given, "executor": {"kind": "ray"}})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"ray is not installed: pip install 'autointerp-sae\[ray\]'"):
        workers(session, lambda use: pytest.fail(use))
