"""Files are whole or absent; the corpus on disk gives back what was put in."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.artifacts import Corpus, CorpusInfo, Firings, FiringsInfo, save_shard, write_atomically
from autointerp.progress import Progress, clock


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fails(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, fails)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"
    write_atomically(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"


@given(rows=st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9), min_size=1, max_size=9))
def test_rows_and_the_row_of_each_position_come_back(tmp_path_factory: pytest.TempPathFactory, rows) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    offsets = np.cumsum([0, *map(len, rows)])
    info = CorpusInfo("s", "t", None, 9, int(offsets[-1]), len(rows), len(rows), "")
    many = np.arange(len(rows))
    Corpus.save(folder, info, np.concatenate([np.array(row) for row in rows]), offsets, many, many * 0)
    corpus = Corpus(folder)
    assert [corpus.row(i).tolist() for i in many] == rows
    assert corpus.row_of(np.arange(offsets[-1])).tolist() == [i for i, row in enumerate(rows) for _ in row]
    assert corpus.info == info


def test_progress_leaves_what_was_done_before_out_of_its_speed() -> None:
    bar = Progress("x", 100, "tokens")
    bar.advance(50, skipped=True)
    assert bar.seconds_left() is None
    bar.started -= 10.0  # as if ten seconds had passed
    bar.advance(25)
    assert bar.seconds_left() == pytest.approx(10, rel=0.1)
    assert "75/100 tokens" in bar.line()


@pytest.mark.parametrize(("seconds", "said"), [(9.24, "9.2s"), (65, "1m05s"), (3700, "1h01m")])
def test_clock(seconds: float, said: str) -> None:
    assert clock(seconds) == said


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 400_000), st.floats(2.0**-20, 1e6, width=32)), max_size=6), min_size=1),
    st.integers(0, 2**40),
)
def test_firings_come_back_as_they_were_written(tmp_path_factory, latents: list[list[tuple[int, float]]], start: int):
    folder = tmp_path_factory.mktemp("firings")
    kept = [sorted(dict(entries).items()) for entries in latents]
    flat = [entry for entries in kept for entry in entries]
    indptr = np.cumsum([0, *map(len, kept)])
    position = np.array([where for where, _ in flat], np.int32)
    activation = np.array([value for _, value in flat], np.float32)
    save_shard(folder / "shard-00000.safetensors", indptr, position, activation, start=start)
    np.save(folder / "counts.npy", np.diff(indptr))
    np.save(folder / "peaks.npy", np.zeros(len(latents), np.float32))
    (folder / "firings.json").write_text(json.dumps(asdict(FiringsInfo(len(latents), 1, 1, "h", False))))
    back = Firings(folder).of(list(range(len(latents))))
    for latent, entries in enumerate(kept):
        assert back[latent][0].tolist() == [start + where for where, _ in entries]
        expected = np.array([value for _, value in entries], np.float32)
        with np.errstate(over="ignore"):
            half = expected.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(back[latent][1], np.where(np.isinf(half), expected, half))


def test_a_firing_takes_four_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    position = np.sort(rng.choice(500_000, (64, 8_000)), axis=1).astype(np.int32)
    indptr = np.arange(0, position.size + 1, 8_000)
    path = tmp_path / "shard-00000.safetensors"
    save_shard(path, indptr, position.ravel(), rng.random(position.size).astype(np.float16))
    assert path.stat().st_size <= 4.5 * position.size
