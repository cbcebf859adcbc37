"""The files of benchmarks/, which are programs and no package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def benchmark() -> Callable[[str], Any]:
    """A file of benchmarks/ by its name."""

    def load(name: str) -> Any:
        file = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", file)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look for it there
        spec.loader.exec_module(module)
        return module

    return load
