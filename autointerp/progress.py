"""Progress of a stage and of the whole run, with the time left: on a terminal, in a notebook, in a log, in a file.

1. A stage counts what it has done in a `Progress`, which it gets from `progress`.
2. A run keeps a `RunProgress`: its stages, the seconds that each is expected to take, and what was asked of language
   models. While it is `shown`, the stages' counts are part of it.
3. Both are shown as bars on a terminal and in a notebook, and as a line now and then in a log.
4. `Standing` is the same as a file, progress.json in the run's folder. It is there while the run goes on; a run that
   was stopped leaves it behind.
"""

from __future__ import annotations

import html
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

NOT_IN_KEYS = "it shows how far a stage is"

log = logging.getLogger("autointerp")

FILE = "progress.json"
SILENT = 60.0  # seconds after which a run that writes no progress.json any more is taken for stopped


@dataclass(frozen=True)
class Line:
    """What is shown of a stage or of a run: a name, the share that is done (None: unknown), and figures."""

    name: str
    share: float | None
    text: str


class Progress:
    """Counts what is done of `total` (None: unknown) and says how long the rest will take."""

    def __init__(self, name: str, total: float | None, unit: str) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = 0.0
        self.skipped = 0.0  # was there already: counts as done, not towards the speed
        self.started = time.monotonic()
        self.on_advance: Callable[[], None] = lambda: None

    def advance(self, amount: float = 1, *, skipped: bool = False) -> None:
        self.done += amount
        if skipped:
            self.skipped += amount
        self.on_advance()

    def seconds_left(self) -> float | None:
        fresh = self.done - self.skipped
        if self.total is None or fresh <= 0:
            return None
        return (time.monotonic() - self.started) / fresh * max(self.total - self.done, 0)

    def share(self) -> float | None:
        return min(self.done / self.total, 1.0) if self.total else None

    def count(self) -> str:
        """120/400 features"""
        total = "" if self.total is None else f"/{self.total:,.0f}"
        return f"{self.done:,.0f}{total} {self.unit}".rstrip()

    def figures(self) -> str:
        """120/400 features, 3.1/s, 1m30s left"""
        left = self.seconds_left()
        rate = (self.done - self.skipped) / max(time.monotonic() - self.started, 1e-9)
        return f"{self.count()}, {rate:,.3g}/s" + ("" if left is None else f", {clock(left)} left")

    def line(self) -> str:
        return f"{self.name}: {self.figures()}"

    def lines(self) -> list[Line]:
        return [Line(self.name, self.share(), self.figures())]

    def close(self) -> None:
        took = time.monotonic() - self.started
        log.info("%s: %s %s in %s", self.name, f"{self.done:,.0f}", self.unit, clock(took))


# --- the whole run ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What a run has asked of language models since it began or was taken up again."""

    requests: int = 0  # that an endpoint had to answer
    from_cache: int = 0
    failed: int = 0
    tokens: int = 0  # of the requests, prompts and answers
    cost: float | None = 0.0  # in the unit of the prices; None where a price is not known
    tokens_per_second: float | None = None  # over the last minute

    def figures(self) -> list[str]:
        """1,204 requests, 3 failed, $0.41, 812 tokens/s; nothing where nothing was asked."""
        if not self.requests and not self.from_cache:
            return []
        parts = [f"{self.requests:,} requests"]
        parts += [f"{self.from_cache:,} from cache"] if self.from_cache else []
        parts += [f"{self.failed:,} failed"] if self.failed else []
        parts += [f"${self.cost:,.2f}"] if self.cost else []
        return parts + ([f"{self.tokens_per_second:,.0f} tokens/s"] if self.tokens_per_second else [])


class RunProgress:
    """How far a run is over all its stages.

    `seconds` holds what each stage is expected to take, 0 for one that is done. A stage that is not in it is expected
    to take as long as stages of its kind took in this run; where there is none the time left is a lower bound.
    Estimates are corrected as the run goes: where the stages of a kind took twice as long as expected, so will the
    others of this kind.
    """

    def __init__(self, stages: Sequence[str], seconds: Mapping[str, float] | None = None) -> None:
        self.stages = list(stages)
        self.expected = dict(seconds or {})
        self.took: dict[str, float] = {}  # of the stages that are over; 0 for one that was done already
        self.stage: str | None = None
        self.bar: Progress | None = None
        self.asked = Asked()
        self.begun = 0.0

    def begin(self, stage: str) -> None:
        self.stage, self.bar, self.begun = stage, None, time.monotonic()

    def end(self, stage: str, seconds: float) -> None:
        self.took[stage] = seconds
        if stage == self.stage:
            self.stage = self.bar = None

    def seconds_left(self) -> tuple[float | None, bool]:
        """Over all stages that are not over, and whether it is known of every one of them."""
        known = [self._left(stage) for stage in self.stages if stage not in self.took]
        values = [seconds for seconds in known if seconds is not None]
        return (sum(values) if values or not known else None), len(values) == len(known)

    def _left(self, stage: str) -> float | None:
        if stage != self.stage:
            return self._expects(stage)
        left = self.bar.seconds_left() if self.bar else None
        if left is None and (expected := self._expects(stage)) is not None:
            left = max(expected - (time.monotonic() - self.begun), 0.0)
        return left

    def _expects(self, stage: str) -> float | None:
        kind = stage.split("/")[0]
        seen = {name: seconds for name, seconds in self.took.items() if name.split("/")[0] == kind and seconds}
        if self.stage and self.stage != stage and self.stage.split("/")[0] == kind and self.bar:
            left = self.bar.seconds_left()
            seen |= {} if left is None else {self.stage: time.monotonic() - self.begun + left}
        if (expected := self.expected.get(stage)) is None:
            return sum(seen.values()) / len(seen) if seen else None
        both = [name for name in seen if self.expected.get(name)]
        if not both:
            return expected
        return expected * sum(seen[name] for name in both) / sum(self.expected[name] for name in both)

    def figures(self) -> str:
        """stage 12 of 16, 1h02m left, 1,204 requests, $0.41, 812 tokens/s"""
        left, whole = self.seconds_left()
        parts = [f"stage {min(len(self.took) + 1, len(self.stages))} of {len(self.stages)}"]
        parts += [] if left is None else [f"{'' if whole else 'at least '}{clock(left)} left"]
        return ", ".join(parts + self.asked.figures())

    def lines(self) -> list[Line]:
        left, whole = self.seconds_left()
        spent = sum(self.took.values()) + (time.monotonic() - self.begun if self.stage else 0.0)
        share = spent / max(spent + left, 1e-9) if whole and left is not None else len(self.took) / len(self.stages)
        bars = self.bar.lines() if self.bar else [Line(self.stage, None, "")] if self.stage else []
        return [*bars, Line("run", share, self.figures())]

    @contextmanager
    def shown(self) -> Iterator[Callable[[], None]]:
        """Show it while the block runs; yields what refreshes it. What `progress` counts inside is shown with it."""
        display = _display(self.lines)
        token = _run.set((self, display))
        try:
            yield display.update
        finally:
            _run.reset(token)
            display.close()


_run: ContextVar[tuple[RunProgress, _Display] | None] = ContextVar("autointerp_run_progress", default=None)


@contextmanager
def progress(name: str, total: float | None, unit: str = "") -> Iterator[Progress]:
    """``with progress("harvest", tokens, "tokens") as bar: bar.advance(n)``"""
    bar, run = Progress(name, total, unit), _run.get()
    display = run[1] if run else _display(bar.lines)
    bar.on_advance = display.update
    if run:
        run[0].bar = bar
    try:
        yield bar
    finally:
        if not run:
            display.close()
        bar.close()


# --- displays ---------------------------------------------------------------------------------


class _Display(Protocol):
    def update(self) -> None:
        """Something changed; called often, from any thread."""

    def close(self) -> None: ...


class _InLog:
    """A line every `every` seconds."""

    def __init__(self, lines: Callable[[], list[Line]], every: float = 15.0) -> None:
        self._lines, self._every, self._lock = lines, every, Lock()
        self._last = time.monotonic()

    def update(self) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._last < self._every:
                return
            self._last = now
        log.info("; ".join(f"{line.name}: {line.text}" if line.text else line.name for line in self._lines()))

    def close(self) -> None:
        pass


class _OnTerminal:
    """Bars below what is logged; rich redraws them by itself."""

    def __init__(self, lines: Callable[[], list[Line]]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._lines = lines
        self._live = Live(
            get_renderable=self._picture, console=Console(stderr=True), transient=True, redirect_stdout=False
        )
        self._live.start()

    def _picture(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        for line in self._lines():
            bar = ProgressBar(100, 100 * (line.share or 0.0), 24, pulse=line.share is None)
            grid.add_row(line.name, bar, line.text)
        return grid

    def update(self) -> None:
        pass

    def close(self) -> None:
        self._live.stop()


class _InNotebook:
    """Bars in the cell's output, drawn anew each second; they need nothing but IPython."""

    def __init__(self, lines: Callable[[], list[Line]], every: float = 1.0) -> None:
        from IPython.display import display

        self._lines, self._every, self._lock = lines, every, Lock()
        self._last = time.monotonic()
        self._handle: Any = display(Bars(lines()), display_id=True)

    def update(self) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._last < self._every:
                return
            self._last = now
        self._handle.update(Bars(self._lines()))

    def close(self) -> None:
        self._handle.update(Bars(self._lines()))


@dataclass(frozen=True)
class Bars:
    """Lines as IPython displays them."""

    lines: Sequence[Line]

    def __repr__(self) -> str:
        return "\n".join(f"{line.name}: {line.text}" for line in self.lines)

    def _repr_html_(self) -> str:
        rows = [
            f"<tr><td>{html.escape(line.name)}</td>"
            f"<td><progress max='1'{'' if line.share is None else f' value={line.share:.3f}'}></progress></td>"
            f"<td style='text-align:left'>{html.escape(line.text)}</td></tr>"
            for line in self.lines
        ]
        return f"<table>{''.join(rows)}</table>"


def _display(lines: Callable[[], list[Line]]) -> _Display:
    if in_notebook():
        return _InNotebook(lines)
    return _OnTerminal(lines) if sys.stderr.isatty() else _InLog(lines)


def in_notebook() -> bool:
    """Whether IPython runs with a kernel, which shows what is displayed as HTML."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


# --- the file ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """progress.json: how far a run was when it last wrote it."""

    stage: str | None
    number: int  # of the stage, from 1
    stages_total: int
    started: str
    pid: int
    host: str
    updated: float  # seconds since 1970
    done: float | None = None  # of the stage, in `unit`
    total: float | None = None
    unit: str = ""
    seconds_left: float | None = None  # over all stages
    whole: bool = True  # else the seconds left are a lower bound
    requests: int = 0
    from_cache: int = 0
    cost: float | None = None
    tokens_per_second: float | None = None
    tables: float | None = None  # when the tables so far were written, seconds since 1970
    stopped: bool = False  # by an error or by Ctrl-C
    stages: Mapping[str, Any] = field(default_factory=dict)  # those that are over, as run.json has them

    @property
    def alive(self) -> bool:
        """Whether the run goes on: it did not say that it stopped, its process lives, and it wrote a moment ago."""
        if self.stopped or time.time() - self.updated > SILENT:
            return False
        return self.host != socket.gethostname() or _lives(self.pid)

    def sentence(self) -> str:
        """goes on: stage 12 of 16, score/detection/default, 120/400 features, 5m10s left"""
        parts = [f"stage {self.number} of {self.stages_total}"] + ([self.stage] if self.stage else [])
        if self.done is not None and self.total:
            parts.append(f"{self.done:,.0f}/{self.total:,.0f} {self.unit}".rstrip())
        if self.alive:
            left = self.seconds_left
            parts += [] if left is None else [f"{'' if self.whole else 'at least '}{clock(left)} left"]
            return f"goes on: {', '.join(parts)}"
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.updated))
        return f"was stopped on {when}: {', '.join(parts)}"

    def write(self, folder: Path) -> None:
        """Whole or as it was; not flushed to disk, since a few seconds later it is written again."""
        temporary = folder / f".{FILE}.tmp"
        temporary.write_text(json.dumps(asdict(self), indent=1, default=str))
        os.replace(temporary, folder / FILE)


def standing_of(run: RunProgress, started: str, tables: float | None, stages: Mapping[str, Any]) -> Standing:
    left, whole = run.seconds_left()
    made = Standing(
        stage=run.stage,
        number=min(len(run.took) + 1, len(run.stages)),
        stages_total=len(run.stages),
        started=started,
        pid=os.getpid(),
        host=socket.gethostname(),
        updated=round(time.time(), 1),
        seconds_left=None if left is None else round(left, 1),
        whole=whole,
        requests=run.asked.requests,
        from_cache=run.asked.from_cache,
        cost=run.asked.cost,
        tokens_per_second=run.asked.tokens_per_second,
        tables=tables,
        stages=stages,
    )
    bar = run.bar
    return made if bar is None else replace(made, done=bar.done, total=bar.total, unit=bar.unit)


def read_standing(folder: Path) -> Standing | None:
    """What progress.json says; None where there is none or it cannot be read."""
    with suppress(OSError, ValueError, TypeError):
        raw = json.loads((folder / FILE).read_text())
        return Standing(**{f.name: raw[f.name] for f in fields(Standing) if f.name in raw})
    return None


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def clock(seconds: float) -> str:
    """65 -> '1m05s', 3700 -> '1h01m', 9.24 -> '9.2s'."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
