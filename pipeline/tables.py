"""Records <-> Parquet. A table's columns are the fields of one record type, in their order."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from operator import attrgetter
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import Refused
from pipeline.location import Place
from pipeline.storage import in_parallel, publish

Record = TypeVar("Record")
ARROW_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
READ_ROWS = 1 << 16  # that become Python values together


class Unreadable(Refused):
    """A file that is damaged, or no table at all."""


def schema_of(record_type: type, metadata: Mapping[str, str] | None = None) -> pa.Schema:
    """The Arrow schema of a record type; `metadata` travels in the Parquet footer."""
    columns = [(field.name, ARROW_TYPES[field.type]) for field in fields(record_type)]  # pyright: ignore
    return pa.schema(columns, metadata=dict(metadata or {}))


def write_records(
    path: Place,
    record_type: type[Record],
    records: Iterable[Record],
    metadata: Mapping[str, str] | None = None,
    replace: bool = True,
) -> None:
    """Publish records as one Parquet file; the same records and metadata give the same bytes.

    FileExistsError where there is a file already and `replace` is False.
    """
    write_table(path, table_of(record_type, records, metadata), replace)


def table_of(record_type: type, records: Iterable[Any], metadata: Mapping[str, str] | None = None) -> pa.Table:
    """Records -> an Arrow table, column by column: a fifth of the time that rows as dictionaries take."""
    rows, schema = list(records), schema_of(record_type, metadata)
    columns = [pa.array(map(attrgetter(field.name), rows), field.type, size=len(rows)) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def add_columns(table: pa.Table, columns: Mapping[str, Sequence[float]]) -> pa.Table:
    """A table with further columns of numbers behind its own."""
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, pa.float64()))
    return table


def write_table(path: Place, table: pa.Table, replace: bool = True) -> None:
    """Publish an Arrow table as Parquet; FileExistsError as above."""
    publish(path, lambda file: pq.write_table(table, file, write_page_checksum=True), replace)


def read_table(path: Place, record_type: type, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file that `write_records` wrote, or some of its columns, in any order; Refused where its columns
    are not the record's, or damaged."""
    [table] = _read_parts(path, record_type, lambda file: [file.read(columns)])
    return table


def read_parts(path: Place, record_type: type, columns: Sequence[str], num_rows: int) -> Iterator[pa.Table]:
    """As `read_table`, but so many rows at a time, whatever the groups they were written in."""

    def read(file: pq.ParquetFile) -> Iterator[pa.Table]:
        return (pa.Table.from_batches([part]) for part in file.iter_batches(num_rows, columns=columns))

    return _read_parts(path, record_type, read)


def _read_parts(
    path: Place, record_type: type, read: Callable[[pq.ParquetFile], Iterable[pa.Table]]
) -> Iterator[pa.Table]:
    with path.open("rb") as opened, _parsing(path):
        file = pq.ParquetFile(opened, page_checksum_verification=True)
        found, want = file.schema_arrow, schema_of(record_type)
        if found.names != want.names:
            raise Unreadable(f"{path}: found columns {found.names}, wanted {want.names}; written by another version?")
        if found.types != want.types:
            raise _unreadable(path, f"found columns of {found.types}, wanted {want.types}")
        yield from read(file)


def read_records(paths: Sequence[Place], record_type: type[Record]) -> list[Record]:
    """The records of several files, in the order of the files."""
    tables = in_parallel(lambda path: read_table(path, record_type), paths)
    return [record for table in tables for record in _records(table, record_type)]


def find_records(paths: Sequence[Place], record_type: type[Record], column: str, value: str) -> list[Record]:
    """The records of several files whose `column` is `value`, without making records of the others."""
    tables = in_parallel(lambda path: read_table(path, record_type).filter(pc.field(column) == value), paths)
    return [record for table in tables for record in _records(table, record_type)]


def _records(table: pa.Table, record_type: type[Record]) -> Iterator[Record]:
    for batch in table.to_batches(max_chunksize=READ_ROWS):  # NumPy makes Python values of whole columns, fast
        yield from map(record_type, *(column.to_numpy(zero_copy_only=False).tolist() for column in batch.columns))


def read_metadata(path: Place) -> dict[str, Any]:
    """The footer metadata that `write_records` was given. FileNotFoundError where there is no file, or Unreadable."""
    with path.open("rb") as file, _parsing(path):
        found = pq.read_schema(file).metadata or {}
        return {name.decode(): value.decode() for name, value in found.items()}


@contextmanager
def _parsing(path: Place) -> Iterator[None]:
    """What Arrow finds wrong with the bytes of a table, as Unreadable; what goes wrong with the disk, as it is."""
    try:
        yield
    except OSError as error:
        if type(error) is not OSError or error.errno is not None or error.__cause__ is not None:
            raise
        raise _unreadable(path, str(error)) from error
    except (ValueError, pa.ArrowException) as error:
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Place, reason: str) -> Unreadable:
    first_line, _, _ = reason.partition("\n")
    return Unreadable(
        f"{path}: no table, or a damaged one: {first_line}; restore it, or where it is a sidecar or an index run "
        f"`verify --repair`"
    )
