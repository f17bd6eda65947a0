"""Records come back from Parquet as they went in, and the same records give the same bytes."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import Refused
from pipeline.tables import Unreadable, read_metadata, read_parts, read_records, read_table, table_of, write_records
from pipeline.user_table import read_rows


@dataclass(frozen=True)
class Fruit:
    name: str
    weight_g: float
    count: int


@dataclass(frozen=True)
class Stone:
    name: str
    weight_g: float


FRUITS = [Fruit("pear", 170.5, 3), Fruit("", 0.1, -1), Fruit("Äpfel 🍏", 1e-300, 2**62)]


def test_records_come_back_in_order(tmp_path: Path) -> None:
    write_records(tmp_path / "fruit", Fruit, FRUITS)
    assert read_records([tmp_path / "fruit"], Fruit) == FRUITS


def test_several_files_are_read_in_the_given_order(tmp_path: Path) -> None:
    for name, fruit in zip("abc", FRUITS):
        write_records(tmp_path / name, Fruit, [fruit])
    assert read_records([tmp_path / name for name in "cab"], Fruit) == [FRUITS[2], FRUITS[0], FRUITS[1]]


def test_no_records_make_a_table_with_the_right_columns(tmp_path: Path) -> None:
    write_records(tmp_path / "none", Fruit, [])
    assert read_records([tmp_path / "none"], Fruit) == []
    assert read_table(tmp_path / "none", Fruit).schema.names == ["name", "weight_g", "count"]


@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 8])
def test_a_table_is_read_in_parts_whatever_groups_it_was_written_in(tmp_path: Path, num_rows: int) -> None:
    fruits = [Fruit(str(number), number / 2, number) for number in range(7)]
    pq.write_table(table_of(Fruit, fruits), tmp_path / "fruit", row_group_size=3)
    parts = list(read_parts(tmp_path / "fruit", Fruit, ["count", "name"], num_rows))
    assert [part.num_rows for part in parts] == [len(fruits[at : at + num_rows]) for at in range(0, 7, num_rows)]
    assert all(set(part.column_names) == {"name", "count"} for part in parts)
    rows = [(row["name"], row["count"]) for part in parts for row in part.to_pylist()]
    assert rows == [(fruit.name, fruit.count) for fruit in fruits]


def test_no_rows_are_no_parts(tmp_path: Path) -> None:
    write_records(tmp_path / "none", Fruit, [])
    assert list(read_parts(tmp_path / "none", Fruit, ["name"], 5)) == []


def test_some_columns_are_read_without_the_others(tmp_path: Path) -> None:
    write_records(tmp_path / "fruit", Fruit, FRUITS)
    table = read_table(tmp_path / "fruit", Fruit, ["count"])
    assert table.to_pydict() == {"count": [fruit.count for fruit in FRUITS]}


def test_metadata_travels_with_the_table(tmp_path: Path) -> None:
    write_records(tmp_path / "fruit", Fruit, FRUITS, {"recipe": "jam", "générations": "12"})
    assert read_metadata(tmp_path / "fruit") == {"recipe": "jam", "générations": "12"}
    write_records(tmp_path / "plain", Fruit, FRUITS)
    assert read_metadata(tmp_path / "plain") == {}


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_records(tmp_path / name, Fruit, FRUITS, {"recipe": "jam"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_another_records_file_is_refused_by_name(tmp_path: Path) -> None:
    write_records(tmp_path / "stones", Stone, [Stone("flint", 80.0)])
    with pytest.raises(Refused, match=r"stones: found columns \['name', 'weight_g'\], wanted .*'count'"):
        read_records([tmp_path / "stones"], Fruit)


def test_folders_named_like_columns_add_none(tmp_path: Path) -> None:
    write_records(tmp_path / "run=3" / "fruit.parquet", Fruit, FRUITS)
    assert read_records([tmp_path / "run=3" / "fruit.parquet"], Fruit) == FRUITS


def test_a_damaged_value_is_refused_not_read(tmp_path: Path) -> None:
    write_records(tmp_path / "fruit", Fruit, FRUITS)
    content = bytearray((tmp_path / "fruit").read_bytes())
    content[content.index(b"pear")] ^= 1
    (tmp_path / "fruit").write_bytes(content)
    for read in (lambda path: read_records([path], Fruit), lambda path: list(read_parts(path, Fruit, ["name"], 2))):
        with pytest.raises(Unreadable, match=r"fruit: no table, or a damaged one: .*; restore it"):
            read(tmp_path / "fruit")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"name,weight_g\n", bytes(1000)])
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fruit").write_bytes(content)
    for read in (lambda path: read_table(path, Fruit), read_metadata):
        with pytest.raises(Unreadable, match="fruit: no table"):
            read(tmp_path / "fruit")


def test_a_file_that_cannot_be_read_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_metadata(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        read_table(tmp_path, Fruit)


def test_columns_of_other_types_are_damage(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Counted:
        name: str
        weight_g: int
        count: int

    write_records(tmp_path / "fruit", Counted, [Counted("pear", 170, 3)])
    with pytest.raises(Unreadable, match=r"found columns of .*int64.*wanted .*double"):
        read_table(tmp_path / "fruit", Fruit)


class Touch:
    """Whoever unpickles this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", [b"arrow.py_extension_type", b"pandas", b"anything"])
def test_what_a_schema_holds_is_not_unpickled(tmp_path: Path, name: bytes) -> None:
    """Arrow once did so for types that Python had defined."""
    evil = pickle.dumps(Touch(tmp_path / "unpickled"))
    fields = [
        field.with_metadata({b"ARROW:extension:name": name, b"ARROW:extension:metadata": evil})
        for field in table_of(Fruit, FRUITS).schema
    ]
    schema = pa.schema(fields, {b"pandas": evil[:0] + b"{}", b"pickle": evil})
    pq.write_table(table_of(Fruit, FRUITS).cast(schema), tmp_path / "fruit.parquet")
    assert read_records([tmp_path / "fruit.parquet"], Fruit) == FRUITS
    with open(tmp_path / "fruit.parquet", "rb") as file:
        assert [row["name"] for row in read_rows(file, "fruit.parquet", ".parquet")] == [one.name for one in FRUITS]
    assert not (tmp_path / "unpickled").exists()
