"""A cached clip is shown at the lengths that a table gives its size; none is left out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import Refused
from pipeline.lengths import Bucket, Entry, check_table, lengths_of, whole

CLIP = Bucket(height=256, width=256, num_frames=102, num_chunks=6)
TABLE = {
    "256": {1: Entry(0.4, 1.0, 297), 51: Entry(0.5, 1.0, 20), 102: Entry(0.5, 0.33, 10)},
    "*": {17: Entry(1, 1, 7)},
}
STRIDE = (8, 8)


def five(num_frames: int, height: int, width: int) -> int:
    return 5


def ways(kind: Bucket, table=TABLE) -> list[tuple[int, float, int]]:
    found = lengths_of(kind, table, STRIDE, five).ways
    return [(way.num_chunks, round(way.probability, 6), way.batch) for way in found]


def test_a_clip_is_shown_at_the_longest_length_or_passed_on_to_the_next() -> None:
    assert ways(CLIP) == [(6, 0.33, 10), (3, 0.67, 20)]
    assert lengths_of(CLIP, TABLE, STRIDE, five).share == 0.5


def test_shares_that_differ_decide_how_often_each_length_is_shown() -> None:
    table = {"*": {51: Entry(1.0, 1.0, 2), 102: Entry(0.5, 0.5, 1)}}  # half of them at 102, every other epoch
    assert lengths_of(CLIP, table, STRIDE, five).share == 0.75
    assert ways(CLIP, table) == [(6, round(1 / 3, 6), 1), (3, round(2 / 3, 6), 2)]


def test_a_batch_that_no_table_has_is_the_runs_for_that_length() -> None:
    table = {"*": {51: Entry(1, 1, 0), 102: Entry(1, 0.5, 0)}}
    found = lengths_of(CLIP, table, STRIDE, lambda frames, height, width: 408 // frames)
    assert [(way.num_chunks, way.batch) for way in found.ways] == [(6, 4), (3, 8)]


def test_a_table_that_shows_nothing_is_refused() -> None:
    with pytest.raises(Refused, match="no clip of 256x256 is ever shown"):
        lengths_of(CLIP, {"*": {17: Entry(0, 1, 1)}}, STRIDE, five)


def test_lengths_that_do_not_fit_are_not_offered() -> None:
    assert ways(Bucket(256, 256, 68, 4)) == [(3, 1.0, 20)]


def test_a_clip_shorter_than_every_length_is_shown_whole_by_the_entry_of_the_shortest() -> None:
    assert ways(Bucket(256, 256, 17, 1)) == [(1, 1.0, 20)]
    assert lengths_of(Bucket(256, 256, 17, 1), TABLE, STRIDE, five).share == 0.5


def test_images_have_the_entry_of_one_frame() -> None:
    image = lengths_of(Bucket(256, 256, 1, 1), TABLE, STRIDE, five)
    assert image.share == 0.4 and ways(Bucket(256, 256, 1, 1)) == [(1, 1.0, 297)]


def test_clips_are_shown_whole_where_a_table_has_images_only() -> None:
    assert lengths_of(CLIP, {"*": {1: Entry(0.5, 1, 9)}}, STRIDE, five) == whole(CLIP, 5)


@pytest.mark.parametrize("size", [(240, 424), (424, 240)])
def test_sizes_of_a_set_are_known_as_they_were_rounded(size: tuple[int, int]) -> None:
    assert ways(Bucket(*size, 34, 2), {"240p": {34: Entry(1, 1, 3)}}) == [(2, 1.0, 3)]


def test_a_size_of_its_own_goes_before_its_set_and_both_before_the_rest() -> None:
    table = {**TABLE, "256x256": {17: Entry(1, 1, 2)}}
    assert ways(CLIP, table) == [(1, 1.0, 2)]
    assert ways(Bucket(64, 64, 34, 2), table) == [(1, 1.0, 7)]


def test_a_size_that_no_table_has_is_shown_whole() -> None:
    assert lengths_of(CLIP, {"144p": {}}, STRIDE, five) == whole(CLIP, 5)


def test_a_length_of_broken_chunks_is_refused() -> None:
    with pytest.raises(Refused, match=r"train\.buckets: 18 frames at 256x256.*17; wanted multiples"):
        lengths_of(CLIP, {"*": {18: Entry(1, 1, 4)}}, STRIDE, five)


CHUNKS = st.integers(1, 30)
KEEPS = st.dictionaries(st.integers(1, 25).map(lambda n: 17 * n), st.floats(0, 1), min_size=1, max_size=6)


@given(CHUNKS, KEEPS)
def test_probabilities_add_up(chunks: int, keeps: dict[int, float]) -> None:
    table = {"*": {frames: Entry(1.0, keep, 1) for frames, keep in keeps.items()}}
    found = lengths_of(Bucket(64, 64, 17 * chunks, chunks), table, STRIDE, five).ways
    assert sum(way.probability for way in found) == pytest.approx(1)
    assert all(0 < way.probability <= 1 and way.num_chunks <= chunks for way in found)


@given(CHUNKS, KEEPS)
def test_shares_of_one_show_a_clip_just_once(chunks: int, keeps: dict[int, float]) -> None:
    """And not 0.9999999999999999 times, by which a clip would be missed now and then."""
    table = {"*": {frames: Entry(1.0, keep, 1) for frames, keep in keeps.items()}}
    assert lengths_of(Bucket(64, 64, 17 * chunks, chunks), table, STRIDE, five).share == 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"240": {17: Entry(1, 1, 1)}}, "'240' is no size; wanted HEIGHTxWIDTH.* 240p"),
        ({"64x": {17: Entry(1, 1, 1)}}, "'64x' is no size"),
        ({"*": {17: Entry(1, 1.5, 1)}}, r"\*: 17 = \[1, 1.5, 1\] cannot be"),
        ({"*": {17: Entry(-1, 1, 1)}}, "a share of at least 0"),
        ({"*": {17: Entry(float("nan"), 1, 1)}}, "a share of at least 0"),
        ({"*": {17: Entry(1, 1, -1)}}, "a batch of at least 0"),
        ({"*": {0: Entry(1, 1, 1)}}, r"0 = \[1, 1, 1\] cannot be"),
    ],
)
def test_tables_that_cannot_be_are_told(table, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_table(table)
