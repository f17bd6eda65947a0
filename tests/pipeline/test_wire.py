"""What a sandbox hands over arrives as it was; what nobody of ours has made is refused."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import BadVideo, Refused
from pipeline.records import Clip, Look, Scene, Video
from pipeline.wire import Malformed, error_from_plain, error_to_plain, from_plain, to_plain

CLIP = Clip("k", "64x64/0000-00000", "0123456789abcdef", 0, 1, 17, 17, 24, 64, 64, 0.0, 1.5)
VIDEO = Video("0123456789abcdef", "/v/a.mp4", "é\n\udcff", 9, -1, "h264", 0, 64, 64, 17, 0.0, 1.0, 24.0)
SCENE = Scene("0123456789abcdef", 0, 0, 17, 0.0, 1.0)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.lists(inner).map(tuple), max_leaves=20)


def sent(value: Any) -> Any:
    """A value after its journey, its arrays with it."""
    arrays: list[np.ndarray] = []
    line = json.dumps(to_plain(value, arrays))
    waiting = iter(arrays)

    def take(dtype: str, shape: list[int]) -> np.ndarray:
        array = next(waiting)
        assert (array.dtype.str, list(array.shape)) == (dtype, shape)
        return array

    assert "\n" not in line
    found = from_plain(json.loads(line), take)
    assert next(waiting, None) is None
    return found


@given(VALUES)
def test_plain_values_arrive_as_they_were(value: Any) -> None:
    assert sent(value) == value


@pytest.mark.parametrize("record", [CLIP, VIDEO, SCENE, Look(0.1, 0, 1.0)], ids=lambda one: type(one).__name__)
def test_records_arrive_as_they_were(record: Any) -> None:
    assert repr(sent((1, [record]))) == repr((1, [record]))  # in which what is not a number equals itself


def test_arrays_arrive_in_their_order() -> None:
    one, other = np.arange(6, dtype=np.uint8), np.full((2, 0, 3), 1.5)
    found = sent([one[::2], ("between", other), math.inf])
    assert found[0].tolist() == [0, 2, 4] and found[1][1].shape == (2, 0, 3) and found[2] == math.inf


@pytest.mark.parametrize("value", [object(), Path("/a"), {"a": 1}, np.array([object()]), b"bytes", {1}])
def test_other_values_are_not_sent(value: Any) -> None:
    with pytest.raises(TypeError, match="wanted numbers, text, arrays"):
        to_plain([value], [])


@pytest.mark.parametrize(
    "plain",
    [
        {"a": 1},
        [],
        ["dict", 1],
        ["Path", "/etc"],
        ["array", "|O", [1]],
        ["array", "V8", [1]],
        ["array", "<f4", [-1]],
        ["array", "<f4", [1.0]],
        ["array", "<f4", [True]],
        ["Look", 0.1, 0.2],
        ["Look", 0.1, 0.2, "0.3"],
        ["Look", 0.1, 0.2, ["list"]],
        ["Scene", ["tuple", "../.."], 0, 0, 17, 0.0, 1.0, 0.0, 0.0, 0.0],
        ["list", ["nothing"]],
    ],
    ids=str,
)
def test_what_nobody_sends_is_refused(plain: Any) -> None:
    with pytest.raises(Malformed):
        from_plain(plain, lambda dtype, shape: np.empty(shape, dtype))


@pytest.mark.parametrize(
    "error",
    [
        BadVideo("no video", "moov atom not found"),
        Refused("mend it"),
        FileNotFoundError(2, "gone", "/a"),
        MemoryError(),
        AttributeError("lost"),
    ],
    ids=repr,
)
def test_errors_arrive_as_they_were(error: Exception) -> None:
    found = error_from_plain(json.loads(json.dumps(error_to_plain(error))))
    assert type(found) is type(error) and str(found) == str(error) and vars(found) == vars(error)


def test_an_error_of_another_library_is_told_as_one_of_pythons() -> None:
    class Odd(OSError):
        """Of no kind that the parent knows."""

    class Other(Exception):
        """Of none at all."""

    def arrived(error: Exception) -> str:
        return repr(error_from_plain(error_to_plain(error)))

    assert arrived(Odd(2, "gone")) == "FileNotFoundError(2, 'gone')"
    assert arrived(Other("here")) == "RuntimeError('Other: here')"
    assert arrived(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no")).startswith('RuntimeError("UnicodeDecodeError: ')


@pytest.mark.parametrize(
    "plain", [None, "BadVideo", ["SystemExit", 1], ["type", "x"], ["ValueError", [1]], ["BadVideo"]], ids=str
)
def test_an_error_that_nobody_sends_is_refused(plain: Any) -> None:
    with pytest.raises(Malformed):
        error_from_plain(plain)


def test_a_pickle_is_no_answer() -> None:
    with pytest.raises(ValueError, match="JSON|decode|Expecting"):
        json.loads(pickle.dumps(CLIP))
