"""Files are whole or absent; the corpus on disk gives back what was put in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autointerp.artifacts import Corpus, CorpusInfo, write_atomically
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
