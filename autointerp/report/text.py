"""Numbers and texts as every table, page and printed line shows them."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, TextIO


def number(value: float | None) -> str:
    """.83, -.12, 1.00; – where there is none."""
    if value is None or value != value:
        return "–"
    text = f"{value:.2f}"
    text = "0.00" if text == "-0.00" else text
    return text.replace("0.", ".", 1) if abs(float(text)) < 1 else text


def metric(value: float | None) -> str:
    """.83; 96 for what is counted and not a share."""
    return f"{value:,.0f}" if value is not None and abs(value) >= 10 else number(value)


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """.91 [.83 .97]"""
    return number(value) if low is None or high is None else f"{number(value)} [{number(low)} {number(high)}]"


def visible(text: str) -> str:
    """`text` on one line: a newline as ⏎, a tab as ⇥, other control and direction-changing characters as \\u202e."""
    if text.isprintable():
        return text
    return "".join(_MARKS.get(c) or (c if c.isprintable() or c in _KEPT else escaped(c)) for c in text)


_MARKS = {"\n": "⏎", "\t": "⇥"}
_KEPT = "\u00a0\u200d\u200c\u3000"  # spaces and joiners that do no harm


def escaped(character: str) -> str:
    """\\u202e, as JSON writes it: two of them for a character beyond U+FFFF."""
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{int.from_bytes(units[i : i + 2], 'big'):04x}" for i in range(0, len(units), 2))


def harmless(text: str) -> str:
    """`text` without what steers a terminal or turns its lines around: such characters as \\u202e; newlines stay."""
    if text.isprintable():
        return text
    return "".join(
        escaped(c) if c != "\n" and unicodedata.category(c) in _STEERING and c not in _KEPT else c for c in text
    )


_STEERING = {"Cc", "Cf", "Zl", "Zp", "Cs"}


def note(row: dict[str, Any]) -> str:
    """A feature's explanation, or why there is none; both where a score is missing."""
    explanation, failure = row.get("explanation"), row.get("failure")
    status = str(row.get("status") or "").replace("_", " ")
    if not explanation:
        if failure:
            return f"({status}: {visible(failure)})"
        return "(no explanation)" if status in ("", "ok") else f"({status})"
    if status in ("", "ok") and not failure:
        return visible(explanation)
    return f"{visible(explanation)} ({visible(failure) if failure else status})"


def named(name: str | None) -> str | None:
    """A model's, a text's or an SAE's name; of a path of this machine the last part, so that what is sent on names no
    home: ``vllm:/home/me/qwen`` is ``vllm:qwen``."""
    match = _PATH.match(name or "")
    return name if match is None else f"{match[1] or ''}{PurePath(match[2]).name}"


_PATH = re.compile(r"(\w[\w-]*:)?((?:/(?!/)|~|\.\.?/).*)", re.DOTALL)


def verdict(row: dict[str, Any]) -> str:
    """A feature's composite label, with the constituents of what is flagged: composite 12+407; "" where not checked."""
    label = (row.get("composite") or "").replace("_", " ")
    if row.get("constituents"):
        label = label.replace("confirmed", "confirmed composite") + f" {row['constituents']}"
    return label


def aligned(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned cells, the names first."""
    widths = [max(len(line[i]) for line in [names, *rows]) for i in range(len(names))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in [names, *rows]]


def width_of(out: TextIO) -> int | None:
    """Of the terminal, or $COLUMNS; None where the output goes elsewhere."""
    if out.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return shutil.get_terminal_size().columns
    return None


def colours(out: TextIO) -> bool:
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
