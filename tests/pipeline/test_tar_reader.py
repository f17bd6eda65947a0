"""Members come back as they were written, from a disk or a store, or not at all."""

import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from pipeline.cache import tar_path
from pipeline.errors import Refused
from pipeline.location import Location, Place
from pipeline.sample import array_bytes
from pipeline.shard import Member
from pipeline.storage import publish
from pipeline.tar_reader import MAX_OPEN, Damaged, TarReader
from tests.object_store import serve_bucket
from tests.shards import local

CONTENT = bytes(range(256)) * 8


def member(offset: int, num_bytes: int) -> Member:
    return Member(offset, num_bytes, google_crc32c.value(CONTENT[offset : offset + num_bytes]))


@pytest.fixture(params=["disk", "store"])
def column(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A column with the tar `a`."""
    if request.param == "disk":
        publish(tar_path(tmp_path, "a"), CONTENT)
        yield tmp_path
        return
    with serve_bucket() as bucket:
        place = Location.of(bucket.uri("column"))
        publish(tar_path(place, "a"), CONTENT)
        yield place


def test_exactly_the_bytes_of_a_member_are_read(column: Place) -> None:
    reader = TarReader(column)
    for offset, num_bytes in ((0, 1), (512, 700), (len(CONTENT) - 1, 1), (7, 0)):
        assert reader.read("a", member(offset, num_bytes)) == CONTENT[offset : offset + num_bytes]


@pytest.mark.parametrize("shape", [(3, 5), (2, 1, 4, 2), (0, 6), (7,)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_an_array_is_read_to_where_it_belongs(column: Place, shape: tuple[int, ...], dtype: type) -> None:
    wanted = np.random.default_rng(0).normal(size=shape).astype(dtype)
    content = array_bytes(wanted)
    publish(tar_path(column, "b"), b"before" + content + b"behind")
    place = np.full((3, *shape), 7, dtype)
    TarReader(column).read_array("b", Member(6, len(content), google_crc32c.value(content)), place[1])
    assert np.array_equal(place[1], wanted) and (place[::2] == 7).all()


@pytest.mark.parametrize(
    "other",
    [np.zeros((3, 4), np.float16), np.zeros((5, 3), np.float16), np.zeros(15, np.float16), np.zeros((3, 5), np.int16)],
)
def test_an_array_of_another_shape_or_type_is_damage(tmp_path: Path, other: np.ndarray) -> None:
    content = array_bytes(other)
    publish(tar_path(tmp_path, "b"), content)
    with pytest.raises(Damaged, match=r"b\.tar: the member at byte 0 is no array of float16 \(3, 5\)"):
        where = Member(0, len(content), google_crc32c.value(content))
        TarReader(tmp_path).read_array("b", where, np.zeros((3, 5), np.float16))


def test_other_bytes_than_were_written_are_damage(column: Place) -> None:
    reader, wanted = TarReader(column), member(512, 700)
    with pytest.raises(Damaged, match=r"a\.tar.*: the member at byte 512 is damaged.*run `verify --repair`"):
        reader.read("a", Member(512, 700, wanted.crc32c ^ 1))
    with pytest.raises(Damaged, match="the member at byte 1400 is damaged"):  # the tar ends before it does
        reader.read("a", Member(1400, 700, wanted.crc32c))


@pytest.mark.parametrize(("times", "is_damaged"), [(1, False), (2, True)])
def test_what_was_damaged_on_the_way_is_asked_for_again(times: int, is_damaged: bool) -> None:
    with serve_bucket() as bucket:
        place = Location.of(bucket.uri("column"))
        publish(tar_path(place, "a"), CONTENT)
        bucket.door.requests.clear()
        bucket.door.store = garbling(bucket.door.store, times)
        reader = TarReader(place)
        if is_damaged:
            with pytest.raises(Damaged):
                reader.read("a", member(512, 700))
        else:
            assert reader.read("a", member(512, 700)) == CONTENT[512:1212]
        assert len(bucket.asked("GET")) == 2


def garbling(store: Callable[..., Iterable[bytes]], times: int) -> Callable[..., Iterable[bytes]]:
    """A store whose first answers have a wrong byte."""
    left = [None] * times

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        body = b"".join(store(environ, start_response))
        if left and environ["REQUEST_METHOD"] == "GET" and body:
            left.pop()
            return [bytes([body[0] ^ 1]), body[1:]]
        return [body]

    return answer


def test_a_tar_that_is_gone_says_what_to_run(column: Place) -> None:
    with pytest.raises(Refused, match=r"b\.tar.*: in the index but gone; run `encode` and `text` again") as raised:
        TarReader(column).read("b", member(0, 1))
    assert not isinstance(raised.value, Damaged)


def test_a_reader_that_was_sent_elsewhere_still_reads(column: Place) -> None:
    reader = TarReader(column)
    reader.read("a", member(0, 1))
    assert pickle.loads(pickle.dumps(reader)).read("a", member(7, 9)) == CONTENT[7:16]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="cannot count the open files here")
def test_few_tars_are_open_at_a_time_and_each_still_reads(tmp_path: Path) -> None:
    reader, before = TarReader(tmp_path), len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for number in range(MAX_OPEN + 20):
            local(tar_path(tmp_path, str(number))).write_bytes(CONTENT[number:])
            assert reader.read(str(number), Member(0, 4, google_crc32c.value(CONTENT[number : number + 4])))
            assert len(os.listdir("/proc/self/fd")) <= before + MAX_OPEN + 1


def test_a_tar_that_is_no_longer_kept_open_is_read_to_the_end(tmp_path: Path) -> None:
    """Another thread may open one too many in the middle of a read."""
    size = 1 << 20
    contents = [np.random.default_rng(number).bytes(size) for number in range(8)]
    for number, content in enumerate(contents):
        publish(tar_path(tmp_path, str(number)), content)
    members = [Member(0, size, google_crc32c.value(content)) for content in contents]
    reader = TarReader(tmp_path, max_open=1)

    def read(turn: int) -> bool:
        return reader.read(str(turn % 8), members[turn % 8]) == contents[turn % 8]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, range(400)))


@pytest.mark.parametrize("where", [(-5, 5), (0, -1), (0, 10**18), (10**12, 5), (len(CONTENT) - 1, 2)], ids=str)
def test_an_index_that_points_outside_of_its_tar_is_damage(column: Place, where: tuple[int, int]) -> None:
    with pytest.raises(Damaged, match="run `verify --repair`"):
        TarReader(column).read("a", Member(*where, crc32c=0))
    with pytest.raises(Refused, match="the name of a shard"):
        TarReader(column).read("../a", member(0, 1))
