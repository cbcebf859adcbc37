"""What changes a stage's key: the code that its work runs, also in helpers and constants, and nothing else."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from autointerp.hashing import function_digest

BASE = '''
COUNT = 3
OTHER = 9

def helper(x):
    """Says nothing."""
    return x + COUNT

def work(x):
    return [helper(y) for y in x]

def apart():
    return OTHER
'''


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("COUNT = 3", "COUNT = 4", False),
        ("x + COUNT", "x - COUNT", False),
        ("helper(y) for", "helper(y) * 2 for", False),
        ("OTHER = 9", "OTHER = 8", True),
        ("Says nothing", "Says something", True),
        ("return OTHER", "return None", True),
        ("    return x", "    # why\n    return x", True),
    ],
)
def test_a_function_stands_for_the_helpers_and_constants_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str, same: bool
) -> None:
    import autointerp

    found = []
    for number, source in enumerate((BASE, BASE.replace(before, after))):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "probe.py").write_text(source)
        monkeypatch.setattr(autointerp, "__path__", [str(folder)])
        importlib.invalidate_caches()
        found.append(function_digest(importlib.import_module("autointerp.probe").work))
        del sys.modules["autointerp.probe"]
    assert (found[0] == found[1]) is same
