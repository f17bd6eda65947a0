"""Records <-> Parquet. A table's columns are the fields of one record type, in their order."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import Refused
from pipeline.storage import publish

Record = TypeVar("Record")
ARROW_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def schema_of(record_type: type, metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """The Arrow schema of a record type; `metadata` travels in the Parquet footer."""
    columns = [(field.name, ARROW_TYPES[field.type]) for field in fields(record_type)]  # pyright: ignore
    return pa.schema(columns, metadata=dict(metadata or {}))


def write_records(
    path: Path, record_type: type[Record], records: Iterable[Record], metadata: Mapping[str, str] | None = None
) -> None:
    """Publish records as one Parquet file; the same records and metadata give the same bytes."""
    rows = [asdict(record) for record in records]  # pyright: ignore
    write_table(path, pa.Table.from_pylist(rows, schema=schema_of(record_type, metadata)))


def write_table(path: Path, table: pa.Table) -> None:
    """Publish an Arrow table as Parquet."""
    publish(path, lambda file: pq.write_table(table, file))


def read_table(path: Path, record_type: type) -> pa.Table:
    """Read a Parquet file that `write_records` wrote; Refused where its columns are not the record's."""
    table = pq.read_table(path)
    want = schema_of(record_type)
    if table.schema.names != want.names:
        raise Refused(f"{path}: found columns {table.schema.names}, wanted {want.names}; written by another version?")
    return table


def read_records(paths: Sequence[Path], record_type: type[Record]) -> list[Record]:
    """The records of several files, in the order of the files."""
    return [record_type(**row) for path in paths for row in read_table(path, record_type).to_pylist()]


def read_metadata(path: Path) -> dict[str, Any]:
    """The footer metadata that `write_records` was given."""
    found = pq.read_schema(path).metadata or {}
    return {name.decode(): value.decode() for name, value in found.items()}
