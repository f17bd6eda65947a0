"""Filters match the rows that the same expression in Python would, know nothing of what is missing, and run no code."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Refused
from pipeline.filter import check_filter, keys_in, matches, names_in

TABLE = pa.table(
    {
        "luminance": [0.1, 0.5, float("nan"), None],
        "chunks": [1, 2, 3, 4],
        "caption": ["a red dog", "cat", None, "dogs"],
        "static": [True, False, True, None],
        "extra": [
            '{"aesthetic": 5, "source": "web", "empty": null}',
            '{"aesthetic": 6.5, "source": 7, "empty": null}',
            '{"aesthetic": "unknown", "tags": ["a"]}',
            '{"flag": true}',
        ],
    }
)


def matched(text: str) -> list[int]:
    return [row for row, match in enumerate(matches(text, TABLE)) if match]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("", [0, 1, 2, 3]),
        ("True", [0, 1, 2, 3]),
        ("1 > 2", []),
        ("chunks >= 2 and chunks != 3", [1, 3]),
        ("1 < chunks <= 3", [1, 2]),
        ("chunks * 2 - 1 == 3 or chunks / 2 == 2 or -chunks + 2 == 1", [0, 1, 3]),
        ("chunks in (1, 3, -7)", [0, 2]),
        ("chunks not in [1, 3]", [1, 3]),
        ("chunks in ()", []),
        ("'dog' in caption", [0, 3]),
        ("caption > 'b'", [1, 3]),
        ("static", [0, 2]),
        ("static == False", [1]),
        ("aesthetic >= 5", [0, 1]),
        ("'we' in source", [0]),
        ("flag", [3]),
    ],
)
def test_rows_match_as_in_python(text: str, rows: list[int]) -> None:
    assert matched(text) == rows


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("luminance > 0.2", [1]),
        ("not luminance > 0.2", [0]),
        ("luminance != 0.5", [0]),
        ("luminance > 0 or chunks == 4", [0, 1, 3]),
        ("luminance > 0 and chunks > 0", [0, 1]),
        ("not static", [1]),
        ("'dog' not in caption", [1]),
        ("caption not in ('cat',)", [0, 3]),
        ("(luminance - luminance) / 0 == 1 or chunks == 1", [0]),
        ("aesthetic < 100", [0, 1]),
        ("not aesthetic > 6", [0]),
        ("source == 7", [1]),
        ("source == 'web'", [0]),
        ("source in (7, 'web')", [0, 1]),
        ("aesthetic > empty", []),
        ("flag == 1", []),
        ("tags == 1 or tags == 'a'", []),
    ],
)
def test_what_is_missing_or_of_another_kind_is_unknown_and_matches_nothing(text: str, rows: list[int]) -> None:
    assert matched(text) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "quality > 1",
            "'quality' is not known; known are luminance, chunks, caption, static, extra, aesthetic, empty",
        ),
        ("chunks", "a number stands where a truth value is wanted"),
        ("not chunks", "a number stands where a truth value is wanted"),
        ("chunks == 'one'", "text stands where a number is wanted"),
        ("caption + 1 == 2", "text stands where a number is wanted"),
        ("'a' in chunks", "a number stands where text is wanted"),
        ("chunks in 5", "`in` looks in a list"),
        ("caption in caption", "`in` looks in a list"),
        ("(1, 2) == chunks", r"'\(1, 2\)' can only stand behind `in`"),
    ],
)
def test_what_does_not_fit_the_columns_is_refused(text: str, message: str) -> None:
    check_filter(text)
    with pytest.raises(Refused, match=message):
        matches(text, TABLE)


@pytest.mark.parametrize(
    "text", ["chunks = 1", "chunks >", "'", "chunks\n> 1", "\0", "if chunks: 1", "-" * 100_000 + "1"]
)
def test_what_is_no_expression_is_refused_before_there_are_columns(text: str) -> None:
    with pytest.raises(ValueError, match="not an expression.*write it like"):
        check_filter(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "chunks.real > 1",
        "caption[0] == 'a'",
        "chunks & 1",
        "chunks ** 9 > 1",
        "chunks if static else 1",
        "[x for x in 'ab']",
        "lambda: True",
        "(chunks := 1)",
        "f'{chunks}' == '1'",
        "chunks is None",
        "caption == b'a'",
        "chunks == 1j",
        "chunks == ...",
        "+chunks == 1",
    ],
)
def test_anything_else_of_python_is_refused_before_there_are_columns(text: str) -> None:
    with pytest.raises(ValueError, match="is not understood; known are names"):
        check_filter(text)


def test_the_part_that_is_not_understood_is_shown() -> None:
    with pytest.raises(ValueError, match="'chunks & 1' is not understood"):
        check_filter("static and (chunks & 1) > 0")


def test_a_number_beyond_all_numbers_is_refused() -> None:
    with pytest.raises(Refused, match="too large"):
        matches("chunks < 1" + "0" * 400, TABLE)


def test_names_are_those_of_columns() -> None:
    assert names_in("a > 1 and 'b' in c or not d / e == 2") == {"a", "c", "d", "e"}
    assert names_in(" ") == set()


def test_without_rows_nothing_matches_and_no_name_is_missed() -> None:
    assert matches("anything > 1", TABLE.slice(0, 0)).tolist() == []


def test_a_column_goes_before_a_key_of_the_same_name() -> None:
    assert matches("a == 1", pa.table({"a": [1, 2], "extra": ['{"a": 2}', '{"a": 1}']})).tolist() == [True, False]


@pytest.mark.parametrize("text", ["aesthetic > 5", "flag", "source in ('web', 7) or chunks > 3", "not flag or static"])
def test_a_table_matches_as_its_parts_do_where_its_keys_are_known(text: str) -> None:
    known = keys_in(TABLE["extra"])
    assert known == {"aesthetic", "source", "empty", "tags", "flag"}
    parts = [bool(matches(text, TABLE.slice(row, 1), known)[0]) for row in range(4)]
    assert parts == matches(text, TABLE).tolist()
    with pytest.raises(Refused, match="'quality' is not known; known are .*aesthetic, empty, flag, source, tags"):
        matches("quality > 1", TABLE.slice(3, 1), known)


def test_an_empty_extra_is_an_object_without_keys() -> None:
    assert matches("a == 1", pa.table({"extra": [None, "", '{"a": 1}']})).tolist() == [False, False, True]


NUMBERS = st.integers(-3, 3).map(str) | st.sampled_from(["a", "b"])
COMPARISONS = st.builds(
    lambda x, op, y: f"({x} {op} {y})", NUMBERS, st.sampled_from(["<", "<=", "==", "!=", ">", ">="]), NUMBERS
)
EXPRESSIONS = st.recursive(
    COMPARISONS,
    lambda inner: (
        st.builds("({} and {})".format, inner, inner)
        | st.builds("({} or {})".format, inner, inner)
        | st.builds("(not {})".format, inner)
    ),
    max_leaves=6,
)


@given(EXPRESSIONS, st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=5))
def test_without_missing_values_python_agrees(text: str, rows: list[tuple[int, int]]) -> None:
    table = pa.table({"a": [a for a, _ in rows], "b": [b for _, b in rows]})
    assert matches(text, table).tolist() == [eval(text, {"a": a, "b": b}) for a, b in rows]
