"""``autointerp table``: a run's tables as Arrow, filtered, sorted, summarised, as text, CSV, JSON or Parquet.

Arrow and not pandas: `autointerp table` answers before pandas would be imported.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from autointerp.errors import AutointerpError, ConfigError
from autointerp.registry import did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

Format = Literal["table", "csv", "json", "parquet"]
STATUSES = ("ok", "dead", "too_rare", "failed")


# --- a run's folder ---------------------------------------------------------------------------


def find_run(run: str | Path) -> Path:
    """The folder of a run, given the folder or the name of one in ``results/``."""
    candidates = [Path(run), Path("results") / run]
    for folder in candidates:
        if (folder / "features.parquet").is_file():
            return folder
    for folder in candidates:
        if folder.is_dir():
            raise AutointerpError(f"{folder} has no features.parquet: the run is not done, `autointerp run` goes on")
    known = sorted(path.parent.name for path in Path("results").glob("*/features.parquet"))
    raise ConfigError(f"no run at {str(run)!r}{did_you_mean(str(run), known)}")


class RunFolder:
    """The tables of a run, read when asked for. A table that this run did not write is None."""

    def __init__(self, run: str | Path) -> None:
        self.path = find_run(run)

    def read(self, name: str, columns: Sequence[str] | None = None, feature: int | None = None) -> pa.Table | None:
        """`name`.parquet; of `columns` those that it has; of `feature` alone where one is given."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = self.path / f"{name}.parquet"
        if not file.is_file():
            return None
        try:
            with pq.ParquetFile(file) as parquet:  # pq.read_table would import pandas
                present = parquet.schema_arrow.names
                wanted = None if columns is None else [column for column in columns if column in present]
                if feature is None:
                    return parquet.read(wanted)
                groups = (parquet.read_row_group(i, wanted) for i in range(parquet.num_row_groups))
                of_feature = [group.filter(compute().equal(group["feature"], feature)) for group in groups]
                return pa.concat_tables(of_feature) if of_feature else parquet.read(wanted)
        except pa.ArrowException as error:
            raise AutointerpError(f"{file} cannot be read ({_line(error)}): run the pipeline again") from error

    @cached_property
    def features(self) -> pa.Table:
        table = self.read("features")
        if table is None:
            raise AutointerpError(f"{self.path} has no features.parquet any more")
        return table

    @cached_property
    def info(self) -> dict[str, Any]:
        """run.json, {} where there is none."""
        file = self.path / "run.json"
        try:
            return json.loads(file.read_text()) if file.is_file() else {}
        except ValueError as error:
            raise AutointerpError(f"{file} is not JSON ({_line(error)})") from error

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml as resolved, {} where there is none."""
        import yaml

        file = self.path / "config.yaml"
        try:
            return yaml.safe_load(file.read_text()) or {} if file.is_file() else {}
        except yaml.YAMLError as error:
            raise AutointerpError(f"{file} is not YAML ({_line(error)})") from error

    def rows(self, name: str, feature: int | None = None, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """`read` as dictionaries; no rows where the run has no such table."""
        table = self.read(name, columns, feature)
        return [] if table is None else table.to_pylist()


def scorers_of(features: pa.Table) -> list[str]:
    """Names of the scorers: the columns that have `_low` and `_high` beside them."""
    names = features.column_names
    return [name for name in names if f"{name}_low" in names and f"{name}_high" in names]


def compute() -> Any:
    """pyarrow.compute, whose functions are made at import and unknown to type checkers."""
    import pyarrow.compute

    return pyarrow.compute


# --- choosing rows ----------------------------------------------------------------------------

_COMPARISONS: dict[type[ast.AST], str] = {
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}
_EXAMPLE = "write e.g. \"detection > 0.8 and status == 'ok'\""
_ARITHMETIC: dict[type[ast.AST], str] = {ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide"}


class _Where:
    """Evaluates Python's expression syntax on columns: comparisons, and/or/not, in, is None, + - * /.

    A missing value satisfies no comparison, as in SQL; ``column is None`` and ``column == None`` ask for it.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table, self.pc = table, compute()

    def __call__(self, node: ast.AST) -> Any:
        import pyarrow as pa

        match node:
            case ast.Expression(body=body):
                return self(body)
            case ast.Name(id=name):
                if name not in self.table.column_names:
                    raise ConfigError(f"--where: no column {name!r}{did_you_mean(name, self.table.column_names)}")
                return self.table[name]
            case ast.Constant(value=bool() | int() | float() | str() | None as value):
                return pa.scalar(value)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return self.pc.invert(self(operand))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.pc.negate(self(operand))
            case ast.BoolOp(op=op, values=values):
                join = self.pc.and_kleene if isinstance(op, ast.And) else self.pc.or_kleene
                return reduce(join, [self(value) for value in values])
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                sides = [self.pc.cast(self(side), pa.float64()) for side in (left, right)]
                return self.pc.call_function(_ARITHMETIC[type(op)], sides)
            case ast.Compare(left=left, ops=ops, comparators=rights):
                pairs = zip([left, *rights[:-1]], ops, rights)
                return reduce(self.pc.and_kleene, [self._compare(a, op, b) for a, op, b in pairs])
        raise ConfigError(
            f"--where: {ast.unparse(node)!r} is not understood; write e.g. \"detection > 0.8 and status == 'ok'\""
        )

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Any:
        import pyarrow as pa

        if isinstance(right, ast.Constant) and right.value is None:
            if isinstance(op, ast.Is | ast.Eq):
                return self.pc.is_null(self(left))
            if isinstance(op, ast.IsNot | ast.NotEq):
                return self.pc.is_valid(self(left))
        if isinstance(op, ast.In | ast.NotIn):
            if isinstance(right, ast.List | ast.Tuple | ast.Set):
                value, several = (
                    self(left),
                    [self(item).as_py() for item in right.elts if isinstance(item, ast.Constant)],
                )
                if len(several) < len(right.elts):
                    raise ConfigError(f"--where: {ast.unparse(right)!r} may hold only plain values")
                found = self.pc.and_(self.pc.is_in(value, pa.array(several)), self.pc.is_valid(value))
            elif isinstance(left, ast.Constant) and isinstance(left.value, str):
                found = self.pc.match_substring(self(right), left.value)
            else:
                raise ConfigError(f"--where: {ast.unparse(left)!r} in what? a list, or a text 'in' a column")
            return self.pc.invert(found) if isinstance(op, ast.NotIn) else found
        if type(op) not in _COMPARISONS:
            raise ConfigError("--where: `is` is for None only; use == to compare")
        return self.pc.call_function(_COMPARISONS[type(op)], [self(left), self(right)])


def where(table: pa.Table, expression: str) -> pa.Table:
    """The rows of `table` on which `expression` is true. Raises ConfigError with what is wrong with it."""
    import pyarrow as pa

    try:
        tree = ast.parse(expression.strip(), mode="eval")
        mask = _Where(table)(tree)
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        if isinstance(error, pa.ArrowException):
            raise ConfigError(f"--where: {expression!r} does not fit the columns' types ({_line(error)})") from error
        said = error.msg if isinstance(error, SyntaxError) else _line(error)
        hint = "; equal is written ==" if re.search(r"(?<![=<>!])=(?!=)", expression) else ""
        raise ConfigError(f"--where: {expression!r} is not an expression ({said}){hint}") from error
    except (pa.ArrowException, OverflowError) as error:
        raise ConfigError(f"--where: {expression!r} does not fit the columns' types ({_line(error)})") from error
    if not isinstance(mask, pa.ChunkedArray | pa.Array) or not pa.types.is_boolean(mask.type):
        raise ConfigError(f'--where: {expression!r} is not a condition on a column; write e.g. "detection > 0.8"')
    return table.filter(mask)


def sort(table: pa.Table, column: str) -> pa.Table:
    """Numbers from the highest, text and feature numbers from the lowest, missing values last."""
    import pyarrow as pa

    if column not in table.column_names:
        raise ConfigError(f"--sort: no column {column!r}{did_you_mean(column, table.column_names)}")
    kind = table[column].type
    falling = column != "feature" and (pa.types.is_floating(kind) or pa.types.is_integer(kind))
    keys = {column: "descending" if falling else "ascending", "feature": "ascending"}
    return table.take(compute().sort_indices(table, sort_keys=list(keys.items())))  # nulls come last


def select(features: pa.Table, sort_by: str | None = None, condition: str | None = None) -> pa.Table:
    """Rows of the features table as the command asks for them; by the first scorer when not told otherwise."""
    if condition is not None:
        features = where(features, condition)
    return sort(features, sort_by or next(iter(scorers_of(features)), "feature"))


# --- summary ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mean:
    """A mean over features with a 95 % interval (percentile bootstrap over features); None of too few."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class ScorerSummary:
    scorer: str
    mean: Mean
    control: Mean  # the same scorer told another feature's explanation
    difference: Mean  # paired: of the features that have both
    n_unscored: int
    n_scored: int


@dataclass(frozen=True)
class Summary:
    n: int
    statuses: dict[str, int]  # those that occur, in the order of STATUSES
    scorers: list[ScorerSummary]


def mean_interval(values: np.ndarray) -> Mean:
    """Mean of `values` [n], NaN left out, with the 2.5 and 97.5 % points of bootstrapped means."""
    import numpy as np

    values = values[~np.isnan(values)]
    n = len(values)
    if n == 0:
        return Mean(None, None, None, 0)
    if n == 1:
        return Mean(float(values[0]), None, None, 1)
    resamples = max(400, min(2000, 1_000_000 // n))  # the table shall not wait for a third digit
    drawn = np.random.default_rng(0).integers(0, n, (resamples, n), np.int32)
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return Mean(float(values.mean()), float(low), float(high), n)


def numbers(table: pa.Table, column: str) -> np.ndarray:
    """A column as float64 [n], NaN where it is missing or there is no such column."""
    import numpy as np

    if column not in table.column_names:
        return np.full(len(table), np.nan)
    return np.array([np.nan if v is None else v for v in table[column].to_pylist()], np.float64)


def summarise(features: pa.Table) -> Summary:
    import numpy as np

    counts = {row["values"]: row["counts"] for row in features["status"].value_counts().to_pylist()}
    scorers = []
    for scorer in scorers_of(features):
        value, control = numbers(features, scorer), numbers(features, f"{scorer}_control")
        unscored, scored = (int(np.nansum(numbers(features, f"{scorer}_n_{n}"))) for n in ("unscored", "scored"))
        mean, chance, difference = (mean_interval(v) for v in (value, control, value - control))
        scorers.append(ScorerSummary(scorer, mean, chance, difference, unscored, scored))
    return Summary(len(features), {s: counts[s] for s in STATUSES if counts.get(s)}, scorers)


# --- text -------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """.83, -.12, 1.00; – where there is none."""
    if value is None or value != value:
        return "–"
    text = f"{value:.2f}"
    text = "0.00" if text == "-0.00" else text
    return text.replace("0.", ".", 1) if abs(float(text)) < 1 else text


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """.91 [.83 .97]"""
    return number(value) if low is None or high is None else f"{number(value)} [{number(low)} {number(high)}]"


def visible(text: str) -> str:
    """`text` on one line: a newline as ⏎, a tab as ⇥, other control and direction-changing characters escaped."""
    if text.isprintable():
        return text
    return "".join(_MARKS.get(c) or (c if c.isprintable() or c in _KEPT else f"\\u{ord(c):04x}") for c in text)


_MARKS = {"\n": "⏎", "\t": "⇥"}
_KEPT = "\u00a0\u200d\u200c\u3000"  # spaces and joiners that do no harm


def note(row: dict[str, Any]) -> str:
    """A feature's explanation, or why there is none; both where a score is missing."""
    explanation, failure = row.get("explanation"), row.get("failure")
    status = str(row.get("status") or "").replace("_", " ")
    if not explanation:
        return f"({status}: {visible(failure)})" if failure else f"({status or 'no explanation'})"
    if status in ("", "ok") and not failure:
        return visible(explanation)
    return f"{visible(explanation)} ({visible(failure) if failure else status})"


def verdict(row: dict[str, Any]) -> str:
    """A feature's composite label, with the constituents of what is flagged: composite 12+407; "" where not checked."""
    label = (row.get("composite") or "").replace("_", " ")
    if row.get("constituents"):
        label = label.replace("confirmed", "confirmed composite") + f" {row['constituents']}"
    return label


@dataclass
class _Column:
    name: str
    cells: list[str]
    right: bool = True
    keep: int = 9  # lower goes first where the terminal is narrow
    short: list[str] | None = None  # what its cells can shrink to


def _columns(table: pa.Table) -> list[_Column]:
    rows = table.to_pylist()
    columns = [_Column("feature", [str(row["feature"]) for row in rows])]
    for i, scorer in enumerate(scorers_of(table)):
        triples = [(row[scorer], row[f"{scorer}_low"], row[f"{scorer}_high"]) for row in rows]
        full, short = [interval(*triple) for triple in triples], [number(triple[0]) for triple in triples]
        columns.append(_Column(scorer, full, False, 8 - min(i, 2), short))
        if f"{scorer}_control" in table.column_names:
            cells = [number(row[f"{scorer}_control"]) for row in rows]
            columns.append(_Column("control", cells, keep=5))
        unscored = [row.get(f"{scorer}_n_unscored") for row in rows]
        if any(unscored):
            columns.append(_Column("unscored", ["" if not n else f"{n:,.0f}" for n in unscored], keep=2))
    if "firings" in table.column_names:
        columns.append(
            _Column("firings", ["–" if (n := row["firings"]) is None else f"{n:,.0f}" for row in rows], keep=1)
        )
    if "composite" in table.column_names and table["composite"].null_count < len(table):
        short = [(row["composite"] or "–").replace("_", " ") for row in rows]
        columns.append(_Column("composite", [verdict(row) or "–" for row in rows], False, 3, short))
    columns.append(_Column("explanation", [note(row) for row in rows], False))
    return columns


_GAP = 2
_LEAST_EXPLANATION = 28
_SHORTEN = 4  # intervals go before the controls do


def lay_out(table: pa.Table, width: int | None) -> tuple[list[str], list[str]]:
    """Lines of text (the first is the heading) at most `width` cells wide, and the columns left out for it.

    With no width nothing is cut: for pipes and logs. The explanation stands last, so that its length
    costs the other rows nothing.
    """
    from rich.cells import cell_len, set_cell_size

    columns, dropped = _columns(table), []
    *fixed, last = columns

    def widest(column: _Column) -> int:
        return max([cell_len(column.name), *map(cell_len, column.cells)])

    def room() -> float:
        return float("inf") if width is None else width - sum(widest(c) + _GAP for c in fixed)

    least = min(_LEAST_EXPLANATION, widest(last))
    while room() < least and len(fixed) > 1:
        victim = min(fixed[1:], key=lambda c: (c.keep if c.short is None else _SHORTEN, -fixed.index(c)))
        if victim.short is not None:
            victim.cells, victim.short = victim.short, None
        else:
            fixed.remove(victim)
            dropped.append(victim.name)
    space = room()
    lines = []
    widths = [widest(column) for column in fixed]
    for i in range(-1, len(table)):
        cells = [column.name if i < 0 else column.cells[i] for column in fixed]
        padded = [
            " " * (w - cell_len(cell)) + cell if c.right else cell + " " * (w - cell_len(cell))
            for c, w, cell in zip(fixed, widths, cells)
        ]
        text = last.name if i < 0 else last.cells[i]
        if cell_len(text) > space:
            text = set_cell_size(text, max(int(space) - 1, 0)).rstrip() + "…"
        lines.append((" " * _GAP).join([*padded, text]).rstrip())
    return lines, dropped


def footer(features: pa.Table) -> list[str]:
    """How many features of each status, and each scorer's mean against its control's, with the wrong explanation."""
    summary = summarise(features)
    counts = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in summary.statuses.items())
    lines = [f"{summary.n} feature{'s' * (summary.n != 1)}" + (f": {counts}" if counts else "")]
    for s in summary.scorers:
        mean, control, difference = s.mean, s.control, s.difference
        line = f"{s.scorer} {interval(mean.value, mean.low, mean.high)} over {mean.n}"
        if control.n:
            line += f"; control {number(control.value)}"
        if difference.n:
            paired = interval(difference.value, difference.low, difference.high)
            line += f", paired difference {paired} over {difference.n}"
        if s.n_unscored:
            line += f"; {s.n_unscored:,} of {s.n_unscored + s.n_scored:,} examples unscored"
        lines.append(line)
    return lines


def print_table(
    run: str | Path,
    *,
    sort_by: str | None = None,
    condition: str | None = None,
    limit: int | None = None,
    format: Format = "table",
    out: TextIO | None = None,
) -> None:
    """Print the scored explanation table of a run, as wide as the terminal, or as data.

    The line below sums up the rows that `condition` chose, whatever `limit` shows of them.
    """
    stream = out or sys.stdout
    features = RunFolder(run).features
    chosen = select(features, sort_by, condition)
    shown = chosen if limit is None else chosen.slice(0, limit)
    if format == "table":
        _print_text(chosen, shown, stream)
    else:
        _print_data(shown, format, stream)


def _print_text(chosen: pa.Table, shown: pa.Table, out: TextIO) -> None:
    lines, dropped = lay_out(shown, width_of(out))
    bold, dim, plain = ("\033[1m", "\033[2m", "\033[0m") if colours(out) else ("", "", "")
    print(f"{bold}{lines[0]}{plain}", file=out)
    for status, line in zip(shown["status"].to_pylist(), lines[1:]):
        print(line if status == "ok" else f"{dim}{line}{plain}", file=out)
    print(file=out)
    if len(shown) < len(chosen):
        print(f"{len(shown)} of {len(chosen)} rows shown", file=out)
    for line in footer(chosen):
        print(line, file=out)
    if dropped:
        print(
            f"{dim}not shown at this width: {', '.join(dict.fromkeys(dropped))} (--format csv has all){plain}", file=out
        )


def _print_data(shown: pa.Table, format: Format, out: TextIO) -> None:
    import pyarrow as pa

    if format == "json":
        rows = [{k: None if v != v else v for k, v in row.items()} for row in shown.to_pylist()]
        json.dump(rows, out, ensure_ascii=False, indent=1)
        print(file=out)
        return
    sink = pa.BufferOutputStream()
    if format == "csv":
        import pyarrow.csv as csv

        csv.write_csv(shown, sink)
        out.write(sink.getvalue().to_pybytes().decode())
        return
    if out.isatty():
        raise ConfigError("--format parquet writes bytes: send them to a file with > or a pipe")
    import pyarrow.parquet as pq

    pq.write_table(shown, sink)
    out.buffer.write(sink.getvalue().to_pybytes())  # type: ignore[attr-defined]


def width_of(out: TextIO) -> int | None:
    """Of the terminal, or $COLUMNS; None where the output goes elsewhere."""
    import os
    import shutil

    if out.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return shutil.get_terminal_size().columns
    return None


def colours(out: TextIO) -> bool:
    import os

    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
