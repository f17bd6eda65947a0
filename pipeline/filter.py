"""Filter expressions, such as `luminance > 0.05 and not static and "dog" in caption`: a table -> the rows that match.

An expression is read as Python, of which only comparisons, arithmetic, `and`, `or`, `not` and `in` over names and
constants are known, and computed by Arrow over whole columns; nothing is executed. A value is a number, text or a truth
value. What is missing (null or NaN) is unknown, as in SQL: what depends on it is unknown too, and does not match.
"""

import ast
import json
from collections.abc import Callable, Collection
from functools import cache, reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import Refused

NUMBER, TEXT, TRUTH = pa.float64(), pa.string(), pa.bool_()
KINDS = {NUMBER: "a number", TEXT: "text", TRUTH: "a truth value"}
PYTHON = {NUMBER: float, TEXT: str, TRUTH: bool}
ARITHMETIC = {ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide"}
COMPARISONS = {
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}
KNOWN = (
    *(ast.Name, ast.Load, ast.Constant, ast.Tuple, ast.List),
    *(ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.BinOp, *ARITHMETIC),
    *(ast.Compare, ast.In, ast.NotIn, *COMPARISONS),
)


class Mixed(tuple):
    """JSON values of one key, row by row; those of another kind than they are asked for are missing."""


def check_filter(text: str) -> None:
    """ValueError unless `text` is empty or a filter expression. Its names are not looked at: columns come later."""
    if text.strip():
        _parse(text)


def names_in(text: str) -> set[str]:
    """The names that an expression asks for."""
    return {node.id for node in ast.walk(_parse(text)) if isinstance(node, ast.Name)} if text.strip() else set()


def keys_in(extra: pa.ChunkedArray) -> set[str]:
    """The keys of JSON objects, one a row."""
    return {key for part in extra.chunks for text in part.unique().to_pylist() for key in json.loads(text or "{}")}


def matches(text: str, columns: pa.Table, known: Collection[str] = ()) -> np.ndarray:
    """The rows of a table that a filter matches: (rows,) bool; an empty filter matches all.

    Names are columns of the table, else keys of the JSON objects in its column `extra`. Refused for other names, unless
    they are `known` to be in rows that this part of a table does not have, and where values of different kinds meet.
    """
    if not text.strip() or not columns.num_rows:
        return np.ones(columns.num_rows, bool)
    try:
        found = _as(TRUTH, _evaluate(_parse(text), _column_finder(columns, known)))
    except (ValueError, OverflowError) as error:
        raise Refused(f"filter {text!r}: {error}") from error
    if isinstance(found, pa.Scalar):
        return np.full(columns.num_rows, bool(found.as_py()))
    return found.fill_null(False).to_numpy(zero_copy_only=False)


def _parse(text: str) -> ast.expr:
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two where it nests too deep
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or "it nests too deep"
        raise ValueError(f"not an expression: {reason}; write it like 'motion > 0.01 and fps >= 24'") from error
    for node in ast.walk(tree.body):
        parts = [node, *(one for one in ast.iter_child_nodes(node) if not isinstance(one, ast.expr))]
        value = node.value if isinstance(node, ast.Constant) else 0
        if not (all(isinstance(part, KNOWN) for part in parts) and isinstance(value, (bool, int, float, str))):
            raise ValueError(
                f"{ast.unparse(node)!r} is not understood; known are names, numbers, text, True, False, comparisons, "
                f"+ - * /, and, or, not, and in (a list, or for one text)"
            )
    return tree.body


def _evaluate(node: ast.AST, column: Callable[[str], Any]) -> Any:
    """A part of an expression -> its values: an Arrow array of all rows, or a scalar where no column is in it."""
    match node:
        case ast.Constant(value=bool() | str() as value):
            return pa.scalar(value)
        case ast.Constant(value=int() | float() as value):
            return pa.scalar(float(value))
        case ast.Name(id=name):
            return column(name)
        case ast.BoolOp(op=op, values=values):
            sides = [_as(TRUTH, _evaluate(value, column)) for value in values]
            return _joined("and_kleene" if isinstance(op, ast.And) else "or_kleene", sides)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return pc.call_function("invert", [_as(TRUTH, _evaluate(operand, column))])
        case ast.UnaryOp(operand=operand):
            return pc.call_function("negate", [_as(NUMBER, _evaluate(operand, column))])
        case ast.BinOp(left=left, op=op, right=right):
            return pc.call_function(
                ARITHMETIC[type(op)], [_as(NUMBER, _evaluate(side, column)) for side in (left, right)]
            )
        case ast.Compare(left=left, ops=ops, comparators=rights):
            lefts = [left, *rights]
            return _joined("and_kleene", [_compare(*one, column) for one in zip(lefts, ops, rights)])
    raise ValueError(f"{ast.unparse(node)!r} can only stand behind `in`")


def _compare(left: ast.expr, op: ast.cmpop, right: ast.expr, column: Callable[[str], Any]) -> Any:
    one = _evaluate(left, column)
    if not isinstance(op, (ast.In, ast.NotIn)):
        return _compared(COMPARISONS[type(op)], one, _evaluate(right, column))
    if isinstance(right, (ast.Tuple, ast.List)):
        found = _joined(
            "or_kleene", [pa.scalar(False)] + [_compared("equal", one, _evaluate(e, column)) for e in right.elts]
        )
    elif isinstance(left, ast.Constant):
        pattern = pc.MatchSubstringOptions(_as(TEXT, one).as_py())
        found = pc.call_function("match_substring", [_as(TEXT, _evaluate(right, column))], pattern)
    else:
        raise ValueError(
            f"{ast.unparse(right)!r}: `in` looks in a list, as in codec in ('h264', 'hevc'), or for one text"
        )
    return found if isinstance(op, ast.In) else pc.call_function("invert", [found])


def _compared(function: str, one: Any, other: Any) -> Any:
    kind = next((side.type for side in (one, other) if not isinstance(side, Mixed)), NUMBER)
    return pc.call_function(function, [_as(kind, one), _as(kind, other)])


def _joined(function: str, values: list) -> Any:
    return reduce(lambda one, other: pc.call_function(function, [one, other]), values)


def _as(kind: pa.DataType, values: Any) -> Any:
    """Values as that kind, NaN as missing; ValueError where they are of another."""
    if isinstance(values, Mixed):
        values = pa.array([one if type(one) is PYTHON[kind] else None for one in values], kind)
    if values.type != kind:
        raise ValueError(f"{KINDS.get(values.type, values.type)} stands where {KINDS[kind]} is wanted")
    if kind != NUMBER:
        return values
    return pc.call_function("if_else", [pc.call_function("is_nan", [values]), pa.scalar(None, NUMBER), values])


def _column_finder(table: pa.Table, elsewhere: Collection[str]) -> Callable[[str], Any]:
    """Name -> its values: a column of the table, or what the objects in its column `extra` hold under that key."""

    @cache
    def column(name: str) -> pa.Array | Mixed:
        if name in table.column_names:
            values = table[name].combine_chunks()
            is_number = pa.types.is_integer(values.type) or pa.types.is_floating(values.type)
            return values.cast(NUMBER, safe=False) if is_number else values  # integers beyond 2^53 are rounded
        extras = table["extra"].to_pylist() if "extra" in table.column_names else []
        found = [json.loads(text or "{}", parse_int=float) for text in extras]
        if name not in elsewhere and not any(name in one for one in found):
            keys = {key for one in found for key in one}.union(elsewhere).difference(table.column_names)
            raise ValueError(f"{name!r} is not known; known are {', '.join([*table.column_names, *sorted(keys)])}")
        return Mixed(one.get(name) for one in found)

    return column
