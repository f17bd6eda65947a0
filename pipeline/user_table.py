"""A user's csv, jsonl or parquet table -> rows of plain JSON values."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import Refused

WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")  # what fits 64 bits; with zeros in front it is a name, not a number
DECIMAL = re.compile(r"[+-]?((\d+\.\d*|\.\d+|\d+(?=e))(e[+-]?\d+)?|nan|inf|infinity)", re.IGNORECASE)
LEADING_ZERO = re.compile(r"[+-]?0\d")
TRUTHS = {"true": True, "false": False}

Row = dict[str, Any]


def read_rows(file: BinaryIO, name: str, suffix: str) -> Iterator[Row]:
    """The rows of a table; `name` is what errors call it. Refused, by row, where it cannot be read."""
    return TABLES[suffix](file, name)


def extra_json(row: Mapping[str, Any], used: Iterable[str]) -> str:
    """The columns of a row but those used elsewhere, as a JSON object: the same columns give the same text.

    Missing values and bytes are left out; so are NaN and infinity, which JSON does not have. Times are in ISO 8601.
    """
    columns = {name: _plain(value) for name, value in row.items() if name and name not in used}
    return json.dumps({name: value for name, value in columns.items() if value is not None}, sort_keys=True)


def _plain(value: Any) -> Any:
    """A value of Python -> one of JSON; None where JSON has none."""
    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | bool) else None


def decode_text(content: bytes, name: str) -> str:
    """UTF-8, with or without the byte-order mark that spreadsheets write; Refused where it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(f"{name}: not UTF-8 ({error}); save it as UTF-8") from error


def _read_csv(file: BinaryIO, name: str) -> Iterator[Row]:
    rows = csv.DictReader(io.StringIO(decode_text(file.read(), name), newline=""), restkey="", strict=True)
    try:
        for number, row in enumerate(rows, start=1):
            if "" in row and isinstance(row[""], list):
                raise Refused(f"{name}, row {number}: {len(row[''])} cells more than the header; quote commas in text")
            yield {
                column: cell if column in ("path", "caption", "text") else _cell(cell) for column, cell in row.items()
            }
    except csv.Error as error:
        raise Refused(f"{name}, line {rows.reader.line_num}: not CSV: {error}") from error


def _cell(text: str | None) -> str | int | float | bool | None:
    """What a cell of a CSV file says: a number or a truth where it reads like one; None where it is empty."""
    text = (text or "").strip()
    if not text:
        return None
    if WHOLE.fullmatch(text):
        return int(text)
    if DECIMAL.fullmatch(text) and not LEADING_ZERO.match(text):
        return float(text)
    return TRUTHS.get(text.lower(), text)


def _read_jsonl(file: BinaryIO, name: str) -> Iterator[Row]:
    for number, line in enumerate(decode_text(file.read(), name).rstrip("\n").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise Refused(f"{name}, line {number}: not JSON ({error}); wanted one object per line") from error
        if not isinstance(row, dict):
            raise Refused(f"{name}, line {number}: found {type(row).__name__}, wanted an object with path and caption")
        yield row


def _read_parquet(file: BinaryIO, name: str) -> Iterator[Row]:
    try:
        table = pq.ParquetFile(file)
        columns = [field.name for field in table.schema_arrow if not _is_bytes(field.type)]
        for batch in table.iter_batches(columns=columns):
            yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise Refused(f"{name}: not a Parquet file: {error}") from error


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


TABLES = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
