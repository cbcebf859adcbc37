"""Read a run: the scored table, one feature, and the self-contained HTML report."""

from __future__ import annotations

from pathlib import Path

from autointerp.report.folder import RunFolder, find_run, so_far
from autointerp.report.show import show
from autointerp.report.tables import print_table

__all__ = ["RunFolder", "find_run", "print_table", "show", "so_far", "write_report"]


def write_report(run: str | Path, out: Path | None = None, *, done: bool = False) -> Path:
    """Write the report of a run as one HTML file, report.html in its folder when not told otherwise.

    `done`: the run is, though its progress.json is still there.
    """
    from autointerp.report.html import write_report as write

    return write(run, out, done=done)
