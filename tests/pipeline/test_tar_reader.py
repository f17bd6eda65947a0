"""Members come back as they were written, from a disk or a store, or not at all."""

import os
import pickle
from pathlib import Path

import google_crc32c
import pytest

from pipeline.cache import tar_path
from pipeline.errors import Refused
from pipeline.location import Location, Place
from pipeline.shard import Member
from pipeline.storage import publish
from pipeline.tar_reader import MAX_OPEN_SHARDS, Damaged, TarReader
from tests.object_store import serve_bucket
from tests.shards import local

CONTENT = bytes(range(256)) * 8


def member(offset: int, num_bytes: int) -> Member:
    return Member(offset, num_bytes, google_crc32c.value(CONTENT[offset : offset + num_bytes]))


@pytest.fixture(params=["disk", "store"])
def column(request: pytest.FixtureRequest, tmp_path: Path):
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
    for offset, num_bytes in ((0, 1), (512, 700), (len(CONTENT) - 1, 1)):
        assert reader.read("a", member(offset, num_bytes)) == CONTENT[offset : offset + num_bytes]


def test_other_bytes_than_were_written_are_damage(column: Place) -> None:
    reader, wanted = TarReader(column), member(512, 700)
    with pytest.raises(Damaged, match=r"a\.tar.*: the member at byte 512 is damaged.*run `verify --repair`"):
        reader.read("a", Member(512, 700, wanted.crc32c ^ 1))
    with pytest.raises(Damaged, match="the member at byte 1400 is damaged"):  # the tar ends before it does
        reader.read("a", Member(1400, 700, wanted.crc32c))


def test_a_tar_that_is_gone_says_what_to_run(column: Place) -> None:
    with pytest.raises(Refused, match=r"b\.tar.*: in the index but gone; run `encode` and `text` again"):
        TarReader(column).read("b", member(0, 1))


def test_a_reader_that_was_sent_elsewhere_still_reads(column: Place) -> None:
    reader = TarReader(column)
    reader.read("a", member(0, 1))
    assert pickle.loads(pickle.dumps(reader)).read("a", member(7, 9)) == CONTENT[7:16]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="cannot count the open files here")
def test_few_tars_are_open_at_a_time_and_each_still_reads(tmp_path: Path) -> None:
    reader, before = TarReader(tmp_path), len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for number in range(MAX_OPEN_SHARDS + 20):
            local(tar_path(tmp_path, str(number))).write_bytes(CONTENT[number:])
            assert reader.read(str(number), Member(0, 4, google_crc32c.value(CONTENT[number : number + 4])))
            assert len(os.listdir("/proc/self/fd")) <= before + MAX_OPEN_SHARDS + 1
