"""``autointerp table``: the scored explanation table, as wide as the terminal, or as CSV, JSON and Parquet."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from autointerp.errors import ConfigError
from autointerp.report.columns import features_by, names_in, with_columns
from autointerp.report.controls import control_lines
from autointerp.report.figures import ScorerSummary, all_scorers_of, scorers_of, summarise
from autointerp.report.folder import RunFolder, so_far
from autointerp.report.text import colours, harmless, interval, note, number, verdict, width_of
from autointerp.report.where import select
from autointerp.tables import compute

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["table", "csv", "json", "parquet"]
_FORMULA = r"^(\s*[=+\-@＝＋－＠]|[\t\r\n])"  # what a spreadsheet computes, as OWASP lists it
_BATCH = 4096  # rows that are written at a time


@dataclass
class _Column:
    name: str
    cells: list[str]
    right: bool = True
    keep: int = 9  # lower goes first where the terminal is narrow
    short: list[str] | None = None  # what its cells can shrink to


_NOT_PRINTED = {"frequency", "max_activation", "selected", "explainer"}


def _columns(table: pa.Table) -> list[_Column]:
    rows = table.select([name for name in table.column_names if name not in _NOT_PRINTED]).to_pylist()
    columns = [_Column("feature", [str(row["feature"]) for row in rows])]
    for i, scorer in enumerate(scorers_of(table)):
        columns += _scorer_columns(scorer, rows, 8 - min(i, 2))
    if "firings" in table.column_names:
        columns.append(
            _Column("firings", ["–" if (n := row["firings"]) is None else f"{n:,.0f}" for row in rows], keep=1)
        )
    if "composite" in table.column_names and table["composite"].null_count < len(table):
        short = [(row["composite"] or "–").replace("_", " ") for row in rows]
        columns.append(_Column("composite", [verdict(row) or "–" for row in rows], False, 3, short))
    for name in _asked_for(table):
        columns.append(_Column(name, [number(row[name]) for row in rows], keep=8))
    columns.append(_Column("explanation", [note(row) for row in rows], False))
    return columns


# A scorer's columns in features.parquet.
_BESIDE = re.compile(r"(low|high|control|chance|corrected|yes_rate|ece|n_scored|n_unscored|q\d+|lent_by_\d+)$")


def _asked_for(table: pa.Table) -> list[str]:
    """The columns of scorers that the command named beyond those of features.parquet."""
    scorers = sorted(all_scorers_of(table), key=len, reverse=True)
    asked = []
    for name in table.column_names:
        scorer = next((each for each in scorers if name.startswith(f"{each}_")), None)
        if scorer is not None and name not in scorers and not _BESIDE.match(name.removeprefix(f"{scorer}_")):
            asked.append(name)
    return asked


def _scorer_columns(scorer: str, rows: list[dict[str, Any]], keep: int) -> list[_Column]:
    """One scorer's value, its control, and how many examples it could not score where there are any."""
    triples = [(row[scorer], row[f"{scorer}_low"], row[f"{scorer}_high"]) for row in rows]
    full, short = [interval(*triple) for triple in triples], [number(triple[0]) for triple in triples]
    columns = [_Column(scorer, full, False, keep, short)]
    if rows and f"{scorer}_control" in rows[0]:
        columns.append(_Column("control", [number(row[f"{scorer}_control"]) for row in rows], keep=5))
    unscored = [row.get(f"{scorer}_n_unscored") for row in rows]
    if any(unscored):
        columns.append(_Column("unscored", ["" if not n else f"{n:,.0f}" for n in unscored], keep=2))
    return columns


_GAP = 2
_LEAST_EXPLANATION = 28
_SHORTEN = 4  # intervals go before the controls do


def lay_out(table: pa.Table, width: int | None) -> tuple[list[str], list[str]]:
    """Lines of text (the first is the heading) at most `width` cells wide, and the columns left out for it.

    With no width nothing is cut: for pipes and logs. The explanation stands last, so that its length
    costs the other rows nothing.
    """
    *fixed, last = _columns(table)
    dropped, space = _narrow(fixed, last, width)
    widths = [_widest(column) for column in fixed]
    lines = []
    for i in range(-1, len(table)):
        cells = [column.name if i < 0 else column.cells[i] for column in fixed]
        padded = [_padded(cell, w, column.right) for column, w, cell in zip(fixed, widths, cells)]
        text = _cut(last.name if i < 0 else last.cells[i], space)
        lines.append((" " * _GAP).join([*padded, text]).rstrip())
    return lines, dropped


def _narrow(fixed: list[_Column], last: _Column, width: int | None) -> tuple[list[str], float]:
    """Shorten and remove columns of `fixed` until the explanation has room; returns what went, and the room."""

    def room() -> float:
        return float("inf") if width is None else width - sum(_widest(c) + _GAP for c in fixed)

    dropped: list[str] = []
    least = min(_LEAST_EXPLANATION, _widest(last))
    while room() < least and len(fixed) > 1:
        victim = min(fixed[1:], key=lambda c: (c.keep if c.short is None else _SHORTEN, -fixed.index(c)))
        if victim.short is not None:
            victim.cells, victim.short = victim.short, None
        else:
            fixed.remove(victim)
            dropped.append(victim.name)
    return dropped, room()


def _widest(column: _Column) -> int:
    from rich.cells import cell_len

    return max([cell_len(column.name), *map(cell_len, column.cells)])


def _padded(cell: str, width: int, right: bool) -> str:
    from rich.cells import cell_len

    space = " " * (width - cell_len(cell))
    return space + cell if right else cell + space


def _cut(text: str, space: float) -> str:
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= space else set_cell_size(text, max(int(space) - 1, 0)).rstrip() + "…"


def footer(features: pa.Table) -> list[str]:
    """How many features of each status, and each scorer's mean beside its chance, its control and the ceilings."""
    summary = summarise(features)
    counts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in summary.statuses.items())
    first = f"{summary.n} feature{'s' * (summary.n != 1)}" + (f": {counts}" if counts else "")
    return [first, *(line for s in summary.scorers for line in _mean_lines(s, summary.ceilings))]


def ceiling_text(s: ScorerSummary) -> str:
    """``lexical .83 (corrected .65)``"""
    corrected = "" if s.corrected.value is None else f" (corrected {number(s.corrected.value)})"
    return f"{s.scorer.replace('_', ' ')} {number(s.mean.value)}{corrected}"


def all_asked(s: ScorerSummary) -> str:
    """Over how many of the features asked for a mean is, and what it is over all of them."""
    if s.mean.n == s.asked:
        return f"over {s.asked}"
    text = f"over {s.mean.n} of {s.asked}"
    return text if s.as_chance is None else f"{text} ({number(s.as_chance)} if the others count as chance)"


def _mean_lines(s: ScorerSummary, ceilings: Sequence[ScorerSummary]) -> Iterator[str]:
    mean, control, difference = s.mean, s.control, s.difference
    line = f"{s.scorer} {interval(mean.value, mean.low, mean.high)} {all_asked(s)}"
    if s.n_unscored:
        line += f"; {s.n_unscored:,} of {s.n_unscored + s.n_scored:,} examples unscored"
    yield line
    beside = []
    if s.chance is not None:
        corrected = interval(s.corrected.value, s.corrected.low, s.corrected.high)
        beside.append(f"chance {number(s.chance)}, corrected {corrected}")
    if control.n:
        beside.append(f"control {number(control.value)}")
    if difference.n:
        paired = interval(difference.value, difference.low, difference.high)
        beside.append(f"paired difference {paired} over {difference.n}")
    if beside:
        yield f"  {', '.join(beside)}"
    told = ", ".join(map(ceiling_text, s.on_my_scale(ceilings)))
    if told and mean.n:
        yield f"  without a model, windows of the same features: {told}"
    if s.quantiles:
        yield f"  by quantile of activation, weakest first: {' '.join(map(number, s.quantiles))}"
    if s.doubt:
        yield f"  {s.doubt}"


def print_table(
    run: str | Path,
    *,
    explainer: str | None = None,
    sort_by: str | None = None,
    ascending: bool = False,
    condition: str | None = None,
    limit: int | None = None,
    format: Format = "table",
    raw_cells: bool = False,
    out: TextIO | None = None,
) -> None:
    """Print the scored explanation table of a run, as wide as the terminal, or as data.

    `explainer`: whose explanations and scores; the config's first without it. `sort_by` and `condition` may name what
    `with_columns` adds.
    The lines below sum up the rows that `condition` chose, whatever `limit` shows of them. Of a run that is not done
    one more line says so, on stderr where the output is data. `raw_cells`: as in `_csv`.
    """
    stream = out or sys.stdout
    folder = RunFolder(run)
    features, asked = features_by(folder, explainer), (sort_by or "").removeprefix("-")
    features = with_columns(folder, features, [asked, *names_in(condition or "")], explainer)
    chosen = select(features, sort_by, condition, ascending=ascending)
    shown = chosen if limit is None else chosen.slice(0, limit)
    if format == "table":
        _print_text(chosen, shown, control_lines(folder, chosen["feature"].to_pylist(), explainer), stream)
    else:
        print_data(shown, format, raw_cells, stream)
    if unfinished := so_far(folder.path):
        stream.flush()
        print(unfinished, file=stream if format == "table" else sys.stderr)


def _print_text(chosen: pa.Table, shown: pa.Table, controls: Sequence[str], out: TextIO) -> None:
    lines, dropped = lay_out(shown, width_of(out))
    bold, dim, plain = ("\033[1m", "\033[2m", "\033[0m") if colours(out) else ("", "", "")
    print(f"{bold}{lines[0]}{plain}", file=out)
    for status, line in zip(shown["status"].to_pylist(), lines[1:]):
        print(line if status == "ok" else f"{dim}{line}{plain}", file=out)
    print(file=out)
    if len(shown) < len(chosen):
        print(f"{len(shown)} of {len(chosen)} rows shown", file=out)
    for line in [*footer(chosen), *controls]:
        print(line, file=out)
    if dropped:
        print(
            f"{dim}not shown at this width: {', '.join(dict.fromkeys(dropped))} (--format csv has all){plain}", file=out
        )


def print_data(shown: pa.Table, format: Format, raw_cells: bool, out: TextIO) -> None:
    """Write a table as csv, json or parquet. ConfigError where bytes would go to a terminal."""
    if format == "parquet":
        if out.isatty():
            raise ConfigError("--format parquet writes bytes: send them to a file with > or a pipe")
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = pa.BufferOutputStream()
        pq.write_table(shown, sink)
        out.buffer.write(sink.getvalue().to_pybytes())  # type: ignore[attr-defined]
        return
    for text in _csv(shown, raw_cells) if format == "csv" else _json(shown):
        out.write(harmless(text) if out.isatty() else text)


def _json(shown: pa.Table) -> Iterator[str]:
    """A list of rows, a line a value; a part of the rows at a time."""
    before = "["
    for batch in shown.to_batches(max_chunksize=_BATCH):
        for row in batch.to_pylist():
            clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
            text = json.dumps(clean, ensure_ascii=False, indent=1).replace("\n", "\n ")
            yield f"{before}\n {text}"
            before = ","
    yield "]\n" if before == "[" else "\n]\n"


def _csv(shown: pa.Table, raw_cells: bool) -> Iterator[str]:
    """A part of the rows at a time.

    A spreadsheet takes a text that begins with = + - @, blanks before these, or their wide forms for a formula, and
    texts come from models: an apostrophe before it keeps it a text. `raw_cells` leaves such texts as they are.
    """
    import pyarrow as pa
    import pyarrow.csv as csv

    for i, name in enumerate(shown.column_names):
        kind = shown[name].type
        if not raw_cells and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            shown = shown.set_column(i, name, compute().replace_substring_regex(shown[name], _FORMULA, r"'\1"))
    for start in range(0, max(len(shown), 1), _BATCH):
        sink = pa.BufferOutputStream()
        csv.write_csv(shown.slice(start, _BATCH), sink, csv.WriteOptions(include_header=start == 0))
        yield sink.getvalue().to_pybytes().decode()
