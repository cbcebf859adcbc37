"""Speeds of this machine: what stages took for each unit of their work, kept from run to run.

``speeds.json`` in the cache folder holds the last few values of each speed by its name. A damaged file counts as
empty, and a file that cannot be written is left alone: a speed is worth no failed run.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from autointerp.artifacts import write_atomically
from autointerp.engine.estimate import Amount
from autointerp.engine.models import pick_device
from autointerp.resources import cache_dir

log = logging.getLogger("autointerp")

KEPT = 7  # values of one speed


def speeds_file() -> Path:
    return cache_dir() / "speeds.json"


class Speeds:
    """Speeds by name, each a median of the last values."""

    def __init__(self, values: Mapping[str, list[float]]) -> None:
        self._values = {name: list(numbers) for name, numbers in values.items()}

    @classmethod
    def read(cls, path: Path | None = None) -> Speeds:
        try:
            raw = json.loads((path or speeds_file()).read_text())
        except (OSError, ValueError, RecursionError):
            return cls({})
        if not isinstance(raw, dict):
            return cls({})
        kept = {name: [n for n in numbers if _speed(n)] for name, numbers in raw.items() if isinstance(numbers, list)}
        return cls({name: numbers[-KEPT:] for name, numbers in kept.items() if numbers})

    def of(self, name: str) -> float | None:
        """None where it was never measured."""
        values = self._values.get(name)
        return median(values) if values else None

    def with_values(self, measured: Mapping[str, float]) -> Speeds:
        values = {name: list(numbers) for name, numbers in self._values.items()}
        for name, number in measured.items():
            if _speed(number):
                values[name] = [*values.get(name, []), float(f"{number:.4g}")][-KEPT:]
        return Speeds(values)

    def write(self, path: Path | None = None) -> None:
        text = json.dumps(self._values, indent=1, sort_keys=True, ensure_ascii=False)
        write_atomically(path or speeds_file(), lambda temporary: temporary.write_text(text + "\n"))


def remember(measured: Mapping[str, float], path: Path | None = None) -> None:
    """Add a value to each speed of `measured`; other processes may do so at the same time."""
    from filelock import FileLock, Timeout

    target = path or speeds_file()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock"), timeout=5):
            Speeds.read(target).with_values(measured).write(target)
    except (OSError, Timeout):
        log.debug("%s could not be written", target, exc_info=True)


def _speed(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 < value < 1e12


def likely_device(wanted: str) -> str:
    """The device that `auto` will mean; torch, which takes a second to import, is asked where it is there already."""
    if wanted != "auto":
        return wanted
    if "torch" in sys.modules:
        return pick_device(wanted)
    try:
        cpu_only = version("torch").endswith("+cpu")
    except PackageNotFoundError:
        cpu_only = True
    return "cuda" if not cpu_only and Path("/dev/nvidia0").exists() else "cpu"


# --- the names of speeds ----------------------------------------------------------------------


def of_amount(kind: str, amount: Amount, device: str) -> str:
    """Seconds for each unit of a stage's work."""
    return " · ".join(part for part in (f"{kind}: seconds of {amount.unit}", amount.of, device) if part)


def of_requests(use: str, model: str) -> str:
    """Seconds of a request of one use (without its explainer: ``score/detection``), many being under way."""
    return f"{use}: seconds of a request · {model}"


def of_prompt_tokens(model: str) -> str:
    """Seconds of a prompt token, over all uses of a model."""
    return f"seconds of a prompt token · {model}"


def of_counting(use: str, model: str) -> str:
    """Prompt tokens that the endpoint counted for each that `estimate.rough_counter` did."""
    return f"{use}: tokens counted of a rough token · {model}"


def of_length(use: str, model: str) -> str:
    """Words of an explanation."""
    return f"{use}: words of an explanation · {model}"
