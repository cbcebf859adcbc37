"""Progress bar with the time left on a terminal; a line now and then in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

NOT_IN_KEYS = "it shows how far a stage is"

log = logging.getLogger("autointerp")


class Progress:
    """Counts what is done of `total` (None: unknown) and says how long the rest will take."""

    def __init__(self, name: str, total: float | None, unit: str, every: float = 15.0) -> None:
        self.name, self.total, self.unit, self.every = name, total, unit, every
        self.done = 0.0
        self.skipped = 0.0  # found done already: counts as done, not towards the speed
        self.started = self._said = time.monotonic()

    def advance(self, amount: float = 1, *, skipped: bool = False) -> None:
        self.done += amount
        if skipped:
            self.skipped += amount
        self._show()

    def seconds_left(self) -> float | None:
        fresh = self.done - self.skipped
        if self.total is None or fresh <= 0:
            return None
        return (time.monotonic() - self.started) / fresh * max(self.total - self.done, 0)

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._said >= self.every:
            self._said = now
            log.info(self.line())

    def line(self) -> str:
        left = self.seconds_left()
        of = f"{self.done:,.0f}" if self.total is None else f"{self.done:,.0f}/{self.total:,.0f}"
        rate = (self.done - self.skipped) / max(time.monotonic() - self.started, 1e-9)
        tail = "" if left is None else f", {clock(left)} left"
        return f"{self.name}: {of} {self.unit}, {rate:,.3g}/s{tail}"

    def close(self) -> None:
        took = time.monotonic() - self.started
        log.info("%s: %s %s in %s", self.name, f"{self.done:,.0f}", self.unit, clock(took))


class _Bar(Progress):
    def __init__(self, name: str, total: float | None, unit: str) -> None:
        super().__init__(name, total, unit)
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Rich

        self._rich = Rich(
            TextColumn("{task.description:<24}"),
            BarColumn(30),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit if total else "{task.completed:,.0f} " + unit),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            transient=True,
        )
        self._rich.start()
        self._task = self._rich.add_task(name, total=total)

    def _show(self) -> None:
        self._rich.update(self._task, completed=self.done)

    def close(self) -> None:
        self._rich.stop()
        super().close()


@contextmanager
def progress(name: str, total: float | None, unit: str = "") -> Iterator[Progress]:
    """``with progress("harvest", tokens, "tokens") as bar: bar.advance(n)``"""
    bar = _Bar(name, total, unit) if sys.stderr.isatty() and sys.stdout.isatty() else Progress(name, total, unit)
    try:
        yield bar
    finally:
        bar.close()


def clock(seconds: float) -> str:
    """65 -> '1m05s', 3700 -> '1h01m', 9.24 -> '9.2s'."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
