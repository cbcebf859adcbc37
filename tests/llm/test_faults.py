"""A few cells of the fault matrix; all of it is benchmarks/faults.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from fault_modes import modes
from faults import matrix

CELLS = [
    ("HTTP 503 twice", "list"),
    ("HTTP 401", "explain"),
    ("a page with HTTP 200", "simulation"),
    ("HTTP 413", "list"),
    ("prose", "explain"),
    ("a fence", "simulation"),
    ("usage n/a", "probability"),
    ("an infinite one", "probability"),
    ("seed refused", "explain"),
]


@pytest.mark.parametrize(("name", "task"), CELLS)
def test_a_fault_changes_no_row_and_passes(name: str, task: str) -> None:
    (mode,) = [mode for mode in modes() if mode.name == name]
    (result,) = matrix([mode], [task])
    assert result["hits"]
    assert not set(result["missed"]) - {"seconds"}, result


def test_there_are_a_hundred_modes_and_more() -> None:
    assert len(modes()) >= 100
