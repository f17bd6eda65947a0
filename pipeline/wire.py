"""Values <-> lines of JSON and arrays beside them: what a process that reads videos hands to its parent.

Not a pickle, which could have the parent do anything: a decoder that a video has taken over may send what it likes. A
list says first what it is: ["list", ...], ["tuple", ...], ["Clip", its fields], ["array", dtype, shape].
"""

import builtins
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from pipeline.errors import BadVideo, Refused
from pipeline.records import Clip, Look, Scene, Video

RECORDS: Mapping[str, Any] = {record.__name__: record for record in (Clip, Look, Scene, Video)}
SCALARS = (bool, int, float, str)
SEQUENCES: Mapping[str, Any] = {"list": list, "tuple": tuple}
DTYPES = {np.dtype(code).str for code in "?bBhHiIqQefd"}  # numbers: what can be read from any bytes
ERRORS: Mapping[str, Any] = {
    **{name: kind for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)},
    **{kind.__name__: kind for kind in (BadVideo, Refused)},
}


class Malformed(Exception):
    """What has arrived is nothing that `to_plain` makes."""


def to_plain(value: Any, arrays: list[np.ndarray]) -> Any:
    """A value as JSON has it; its arrays, contiguous, are added to `arrays`. TypeError for what has no place here."""
    if value is None or isinstance(value, SCALARS):
        return value
    if isinstance(value, np.ndarray) and value.dtype.str in DTYPES:
        arrays.append(np.ascontiguousarray(value))
        return ["array", value.dtype.str, list(value.shape)]
    if type(value) in RECORDS.values():
        return [type(value).__name__, *vars(value).values()]
    for name, kind in SEQUENCES.items():
        if isinstance(value, kind):
            return [name, *(to_plain(one, arrays) for one in value)]
    raise TypeError(f"{type(value).__name__}: wanted numbers, text, arrays of numbers, or tuples and records of these")


def from_plain(plain: Any, take: Callable[[str, list[int]], np.ndarray]) -> Any:
    """The value again; `take` gives the next array, of a dtype and shape. Malformed where there is none."""
    if plain is None or isinstance(plain, SCALARS):
        return plain
    match plain:
        case ["array", str() as dtype, list() as shape]:
            if dtype in DTYPES and all(type(length) is int and length >= 0 for length in shape):
                return take(dtype, shape)
        case [str() as name, *values] if name in SEQUENCES:
            return SEQUENCES[name](from_plain(one, take) for one in values)
        case [str() as name, *values] if name in RECORDS:
            return _record(RECORDS[name], values)
    raise Malformed(f"found {str(plain)[:100]}")


def _record(kind: Any, values: list[Any]) -> Any:
    """Of plain fields, each of its type."""
    wanted = [field.type for field in fields(kind)]
    if len(values) != len(wanted) or not all(map(_suits, values, wanted)):
        raise Malformed(f"found {str(values)[:100]} as the fields of {kind.__name__}")
    return kind(*values)


def _suits(value: Any, kind: Any) -> bool:
    return type(value) is kind or (kind is float and type(value) is int)


def error_to_plain(error: Exception) -> list[Any]:
    """Its kind and its arguments: one of Python's or ours, or a RuntimeError that says what another kind said."""
    kind = next(name for one in type(error).__mro__ for name, known in ERRORS.items() if one is known)
    arguments: list[Any] = [f"{type(error).__name__}: {error}"]
    if ERRORS[kind] is type(error) or isinstance(error, OSError):
        arguments = list(error.__reduce__()[1])
    elif kind == "Exception":
        kind = "RuntimeError"
    plain = [kind, *(one if isinstance(one, SCALARS) else str(one) for one in arguments)]
    try:
        error_from_plain(plain)
    except Malformed:
        return ["RuntimeError", f"{type(error).__name__}: {error}"]
    return plain


def error_from_plain(plain: Any) -> Exception:
    """The exception again; Malformed where it is none."""
    match plain:
        case [str() as kind, *arguments] if kind in ERRORS and all(isinstance(one, SCALARS) for one in arguments):
            try:
                return ERRORS[kind](*arguments)
            except (TypeError, ValueError) as error:
                raise Malformed(f"found {kind} of {len(arguments)} arguments") from error
    raise Malformed(f"found {str(plain)[:100]} as an error")
