"""``autointerp table --where`` and ``--sort``: choose rows of the features table by an expression."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import reduce
from typing import TYPE_CHECKING, Any

from autointerp.errors import ConfigError
from autointerp.registry import did_you_mean
from autointerp.report.figures import scorers_of
from autointerp.report.folder import one_line
from autointerp.tables import compute

if TYPE_CHECKING:
    import pyarrow as pa

_COMPARISONS: dict[type[ast.AST], str] = {
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}
_ARITHMETIC: dict[type[ast.AST], str] = {ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide"}
_EXAMPLE = "write e.g. \"detection > 0.8 and status == 'ok'\""
_JOINED = "write \"(detection > 0.8) & (status == 'ok')\""
_QUOTED = re.compile(r"""('[^']*'|"[^"]*")|`([^`]+)`""")  # a text, or a column's name in backquotes


class _Where:
    """Evaluates Python's expression syntax on columns: comparisons, and/or/not or & | ~, in, is None, + - * /, abs.

    A missing value satisfies no comparison, as in SQL; ``column is None`` and ``column == None`` ask for it. `quoted`
    are names that stood in backquotes, by the name that stands for each in the expression.
    """

    def __init__(self, table: pa.Table, quoted: Mapping[str, str]) -> None:
        self.table, self.pc, self.quoted = table, compute(), quoted

    def __call__(self, node: ast.AST) -> Any:
        import pyarrow as pa

        match node:
            case ast.Expression(body=body):
                return self(body)
            case ast.Name(id=name):
                return self._column(self.quoted.get(name, name))
            case ast.Attribute():  # a plug-in's own dotted name
                return self._column(ast.unparse(node))
            case ast.Call(func=ast.Name(id="abs"), args=[inner], keywords=[]):
                return self.pc.abs(self(inner))
            case ast.Constant(value=bool() | int() | float() | str() | None as value):
                return pa.scalar(value)
            case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=operand):
                return self.pc.invert(self(operand))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.pc.negate(self(operand))
            case ast.BoolOp(op=op, values=values):
                join = self.pc.and_kleene if isinstance(op, ast.And) else self.pc.or_kleene
                return reduce(join, [self(value) for value in values])
            case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr() as op, right=right):
                return self._joined(self(left), op, self(right))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                sides = [self.pc.cast(self(side), pa.float64()) for side in (left, right)]
                return self.pc.call_function(_ARITHMETIC[type(op)], sides)
            case ast.Compare(left=left, ops=ops, comparators=rights):
                pairs = zip([left, *rights[:-1]], ops, rights)
                return reduce(self.pc.and_kleene, [self._compare(a, op, b) for a, op, b in pairs])
        raise ConfigError(f"--where: {ast.unparse(node)!r} is not understood; {_EXAMPLE}")

    def _column(self, name: str) -> Any:
        if name not in self.table.column_names:
            raise ConfigError(f"--where: no column {name!r}{did_you_mean(name, self.table.column_names)}")
        return self.table[name]

    def _joined(self, left: Any, op: ast.BitAnd | ast.BitOr, right: Any) -> Any:
        import pyarrow as pa

        if not (pa.types.is_boolean(left.type) and pa.types.is_boolean(right.type)):
            raise ConfigError(f"--where: & and | bind before comparisons: {_JOINED}")
        return self.pc.and_kleene(left, right) if isinstance(op, ast.BitAnd) else self.pc.or_kleene(left, right)

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Any:
        if isinstance(right, ast.Constant) and right.value is None:
            if isinstance(op, ast.Is | ast.Eq):
                return self.pc.is_null(self(left))
            if isinstance(op, ast.IsNot | ast.NotEq):
                return self.pc.is_valid(self(left))
        if isinstance(op, ast.In | ast.NotIn):
            members = self._members(left, right)
            return self.pc.invert(members) if isinstance(op, ast.NotIn) else members
        if type(op) not in _COMPARISONS:
            raise ConfigError("--where: `is` is for None only; use == to compare")
        return self.pc.call_function(_COMPARISONS[type(op)], [self(left), self(right)])

    def _members(self, left: ast.expr, right: ast.expr) -> Any:
        """``column in [1, 2]``, or ``'text' in column``."""
        import pyarrow as pa

        if isinstance(right, ast.List | ast.Tuple | ast.Set):
            value = self(left)
            choices = [self(item).as_py() for item in right.elts if isinstance(item, ast.Constant)]
            if len(choices) < len(right.elts):
                raise ConfigError(f"--where: {ast.unparse(right)!r} may hold only plain values")
            return self.pc.and_(self.pc.is_in(value, pa.array(choices)), self.pc.is_valid(value))
        if isinstance(left, ast.Constant) and isinstance(left.value, str):
            return self.pc.match_substring(self(right), left.value)
        raise ConfigError(f"--where: {ast.unparse(left)!r} in what? a list, or a text 'in' a column")


def where(table: pa.Table, expression: str) -> pa.Table:
    """The rows of `table` on which `expression` is true. Raises ConfigError with what is wrong with it."""
    return table.filter(mask(table, expression))


def mask(table: pa.Table, expression: str) -> pa.ChunkedArray | pa.Array:
    """Of each row whether `expression` is true, null where it cannot be told. Raises ConfigError, as `where` does."""
    import pyarrow as pa

    quoted: dict[str, str] = {}

    def stand_in(match: re.Match[str]) -> str:
        if match[2] is None:
            return match[1]
        quoted[name := f"_quoted{len(quoted)}_"] = match[2]
        return name

    try:
        tree = ast.parse(_QUOTED.sub(stand_in, expression.strip()), mode="eval")
        holds = _Where(table, quoted)(tree)
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        if isinstance(error, pa.ArrowException):
            raise _misfit(expression, error) from error
        reason = error.msg if isinstance(error, SyntaxError) else one_line(error)
        hint = "; equal is written ==" if re.search(r"(?<![=<>!])=(?!=)", expression) else ""
        raise ConfigError(f"--where: {expression!r} is not an expression ({reason}){hint}") from error
    except (pa.ArrowException, OverflowError) as error:
        raise _misfit(expression, error) from error
    if not isinstance(holds, pa.ChunkedArray | pa.Array) or not pa.types.is_boolean(holds.type):
        raise ConfigError(f'--where: {expression!r} is not a condition on a column; write e.g. "detection > 0.8"')
    return holds


def _misfit(expression: str, error: BaseException) -> ConfigError:
    return ConfigError(f"--where: {expression!r} does not fit the columns' types ({one_line(error)})")


def sort(table: pa.Table, column: str, *, ascending: bool = False) -> pa.Table:
    """Numbers from the highest, text and feature numbers from the lowest, missing values last.

    A minus before the name turns the order around; `ascending` is from the lowest, whatever is sorted.
    """
    return table.take(order(table, column, ascending=ascending))


def order(table: pa.Table, column: str, *, ascending: bool = False) -> pa.Array:
    """The places of the rows in the order of `sort`. Raises ConfigError for a column that has no order."""
    import pyarrow as pa

    name = column.removeprefix("-")
    if name not in table.column_names:
        raise ConfigError(f"--sort: no column {name!r}{did_you_mean(name, table.column_names)}")
    kind = table[name].type
    if pa.types.is_nested(kind):
        raise ConfigError(f"--sort: {name!r} holds lists, which have no order")
    falling = name != "feature" and (pa.types.is_floating(kind) or pa.types.is_integer(kind))
    falling = False if ascending else falling != column.startswith("-")
    keys = {"feature": "ascending"} | {name: "descending" if falling else "ascending"}
    keys = {name: keys.pop(name), **keys}  # ties by feature
    return compute().sort_indices(table, sort_keys=list(keys.items()))  # nulls come last


def select(
    features: pa.Table, sort_by: str | None = None, condition: str | None = None, *, ascending: bool = False
) -> pa.Table:
    """Rows of the features table as the command asks for them; by the first scorer when not told otherwise."""
    if condition is not None:
        features = where(features, condition)
    return sort(features, sort_by or next(iter(scorers_of(features)), "feature"), ascending=ascending)
