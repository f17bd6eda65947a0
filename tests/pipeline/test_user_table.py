"""A user's table gives rows of plain JSON values, the same text for the same columns, and says where it is wrong."""

import io
import json
import math
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import Refused
from pipeline.user_table import decode_text, extra_json, read_rows

USED = ("path", "caption")


def csv_row(cells: str) -> dict:
    """The extra columns of a csv file of one row, whose header is a, b, c, ..."""
    names = ",".join("abcdefgh"[: cells.count(",") + 1])
    (row,) = read_rows(io.BytesIO(f"{names}\n{cells}\n".encode()), "t.csv", ".csv")
    return json.loads(extra_json(row, USED))


def parquet_rows(path: Path, **columns: pa.Array) -> list[dict]:
    pq.write_table(pa.table(columns), path)
    with open(path, "rb") as file:
        return [json.loads(extra_json(row, USED)) for row in read_rows(file, "t.parquet", ".parquet")]


def test_cells_that_read_like_numbers_are_numbers() -> None:
    assert csv_row("5,-17,5.25,1e3,.5,-2.") == {"a": 5, "b": -17, "c": 5.25, "d": 1000.0, "e": 0.5, "f": -2.0}
    assert csv_row("0,-0.5,0e1") == {"a": 0, "b": -0.5, "c": 0.0}


def test_names_made_of_digits_stay_names() -> None:
    assert csv_row("00012,007.5,1_000,0x10,12345678901234567890") == {
        "a": "00012",
        "b": "007.5",
        "c": "1_000",
        "d": "0x10",
        "e": "12345678901234567890",
    }


def test_truths_are_truths_and_empty_cells_are_missing() -> None:
    assert csv_row("true,False,TRUE,,  ,yes") == {"a": True, "b": False, "c": True, "f": "yes"}


def test_what_is_no_number_is_missing() -> None:
    assert csv_row("nan,NaN,inf,-Infinity,nana") == {"e": "nana"}
    assert json.loads(extra_json({"a": math.nan, "b": math.inf, "c": [1.5, -math.inf]}, USED)) == {"c": [1.5, None]}


def test_a_row_may_be_shorter_than_its_header_but_not_longer() -> None:
    (row,) = read_rows(io.BytesIO(b"path,caption,score\na.mp4,red\n"), "t.csv", ".csv")
    assert extra_json(row, USED) == "{}"
    with pytest.raises(Refused, match=r"t\.csv, row 2: 1 cells more than the header; quote commas"):
        list(read_rows(io.BytesIO(b"path,caption\na.mp4,red\nb.mp4,red, blue\n"), "t.csv", ".csv"))


def test_the_order_of_columns_does_not_matter() -> None:
    assert extra_json({"b": 1, "a": {"d": 2, "c": 3}}, USED) == extra_json({"a": {"c": 3, "d": 2}, "b": 1}, USED)


def test_used_columns_and_those_without_a_name_are_left_out() -> None:
    assert extra_json({"path": "a.mp4", "caption": "red", "": 0, "text": "a red one"}, USED) == '{"text": "a red one"}'


def test_times_and_nested_values_are_plain_json(tmp_path: Path) -> None:
    noon = datetime(2024, 2, 29, 12, 0, 0, 500000)
    (found,) = parquet_rows(
        tmp_path / "t.parquet",
        day=pa.array([date(2024, 2, 29)]),
        at=pa.array([noon]),
        zoned=pa.array([noon.replace(tzinfo=timezone.utc)]),
        clock=pa.array([time(1, 2, 3)]),
        long=pa.array([timedelta(seconds=90)]),
        price=pa.array([Decimal("1.50")]),
        tags=pa.array([["a", None]]),
        box=pa.array([{"x": 1.0, "y": float("nan")}]),
        counts=pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    )
    assert found == {
        "day": "2024-02-29",
        "at": "2024-02-29T12:00:00.500000",
        "zoned": "2024-02-29T12:00:00.500000+00:00",
        "clock": "01:02:03",
        "long": 90.0,
        "price": 1.5,
        "tags": ["a", None],
        "box": {"x": 1.0, "y": None},
        "counts": [["a", 1]],
    }


def test_times_finer_than_microseconds_are_read_too(tmp_path: Path) -> None:
    (found,) = parquet_rows(tmp_path / "t.parquet", at=pa.array([1_709_208_000_000_000_001], pa.timestamp("ns")))
    assert found["at"].startswith("2024-02-29T12:00:00")


def test_missing_values_and_bytes_are_left_out(tmp_path: Path) -> None:
    columns = {"score": pa.array([5.5, None]), "thumbnail": pa.array([b"\xff\xd8", b""]), "nothing": pa.nulls(2)}
    assert parquet_rows(tmp_path / "t.parquet", **columns) == [{"score": 5.5}, {}]


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    assert parquet_rows(tmp_path / "t.parquet", n=pa.array([2**62 + 1])) == [{"n": 2**62 + 1}]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_table_in_another_encoding_is_refused(suffix: str) -> None:
    with pytest.raises(Refused, match="t: not UTF-8 .*; save it as UTF-8"):
        list(read_rows(io.BytesIO("path,caption\na,é\n".encode("latin-1")), "t", suffix))


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    assert decode_text(b"\xef\xbb\xbfred", "a.txt") == "red"
    assert list(read_rows(io.BytesIO(b"\xef\xbb\xbfpath,caption\na,b\n"), "t", ".csv")) == [
        {"path": "a", "caption": "b"}
    ]


@pytest.mark.parametrize(("line", "problem"), [("{'path': 1}", "not JSON"), ('["a.mp4", ""]', "found list")])
def test_a_bad_line_is_refused_by_number(line: str, problem: str) -> None:
    lines = '{"path": "a.mp4", "caption": ""}\n\n' + line + "\n"
    with pytest.raises(Refused, match=rf"t\.jsonl, line 3: {problem}"):
        list(read_rows(io.BytesIO(lines.encode()), "t.jsonl", ".jsonl"))


@pytest.mark.parametrize("separator", ["\u2028", "\u0085"])
def test_only_newlines_end_a_line_of_json(separator: str) -> None:
    line = json.dumps({"path": "a.mp4", "caption": f"up{separator}down"}, ensure_ascii=False)
    assert list(read_rows(io.BytesIO(line.encode()), "t", ".jsonl")) == [json.loads(line)]


def test_what_is_no_table_is_refused() -> None:
    with pytest.raises(Refused, match=r"t\.parquet: not a Parquet file"):
        list(read_rows(io.BytesIO(b"PAR?"), "t.parquet", ".parquet"))
    with pytest.raises(Refused, match=r"t\.csv, line 2: not CSV"):
        list(read_rows(io.BytesIO(b'path,caption\na,"b'), "t.csv", ".csv"))
