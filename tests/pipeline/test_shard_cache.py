"""What was read from a store is read from this machine the next time, and never wrong; its room is bounded."""

import logging
import multiprocessing
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from pipeline.cache import tar_path
from pipeline.location import Location, Place
from pipeline.shard import Member
from pipeline.shard_cache import SHARE, ShardCache
from pipeline.storage import publish
from pipeline.tar_reader import Damaged, TarReader
from tests.object_store import Bucket, serve_bucket

KB = 1024
NUM_TARS, NUM_MEMBERS = 4, 8
LARGE = 2**40  # more than will be used


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with serve_bucket() as bucket:
        for number in range(NUM_TARS):
            bucket.put(f"column/{number}.tar", content(number))
        yield bucket


@pytest.fixture
def column(bucket: Bucket) -> Location:
    """Tars of members of 64 KB each, in a store."""
    bucket.door.requests.clear()
    return Location.of(bucket.uri("column"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shards").mkdir()
    return tmp_path / "shards"


def content(tar: int) -> bytes:
    return np.random.default_rng(tar).bytes(NUM_MEMBERS * 64 * KB)


def member(tar: int, number: int) -> Member:
    offset = number * 64 * KB
    return Member(offset, 64 * KB, google_crc32c.value(content(tar)[offset : offset + 64 * KB]))


def read(reader: TarReader, tar: int, number: int) -> None:
    """Read a member, and see that it is what was written."""
    found, offset = reader.read(str(tar), member(tar, number)), number * 64 * KB
    assert found == content(tar)[offset : offset + 64 * KB]


def used(folder: Path) -> int:
    return sum(512 * path.stat().st_blocks for path in folder.iterdir())


def test_a_member_is_asked_for_once_by_all_readers_together(bucket: Bucket, column: Place, folder: Path) -> None:
    for number in (3, 0, 3, 7, 0):
        read(TarReader(column, ShardCache(folder, LARGE)), 1, number)
    assert len(bucket.asked("GET")) == 3
    assert used(folder) < 4 * 64 * KB  # of 512


def test_without_a_cache_the_store_is_asked_each_time(bucket: Bucket, column: Place, folder: Path) -> None:
    for _ in range(2):
        read(TarReader(column), 1, 0)
    assert len(bucket.asked("GET")) == 2 and not used(folder)


def test_damage_in_the_cache_is_mended_from_the_store(bucket: Bucket, column: Place, folder: Path) -> None:
    reader = TarReader(column, ShardCache(folder, LARGE))
    read(reader, 0, 2)
    [kept] = folder.iterdir()
    with open(kept, "r+b") as file:
        file.seek(2 * 64 * KB + 5)
        file.write(b"damage")
    read(reader, 0, 2)
    assert len(bucket.asked("GET")) == 2
    read(reader, 0, 2)
    assert len(bucket.asked("GET")) == 2


def test_a_tar_that_was_written_anew_is_read_anew(bucket: Bucket, folder: Path) -> None:
    column = Location.of(bucket.uri("changing"))
    for tar in (1, 2):
        publish(tar_path(column, "a"), content(tar))
        reader = TarReader(column, ShardCache(folder, LARGE))
        assert reader.read("a", member(tar, 1)) == content(tar)[64 * KB : 128 * KB]


def test_what_is_damaged_in_the_store_is_not_kept(column: Place, folder: Path) -> None:
    reader, right = TarReader(column, ShardCache(folder, LARGE)), member(0, 0)
    with pytest.raises(Damaged):
        reader.read("0", Member(right.offset, right.num_bytes, right.crc32c ^ 1))
    assert not used(folder)


def test_its_room_is_bounded_and_the_tars_used_last_stay(bucket: Bucket, column: Place, folder: Path) -> None:
    room = NUM_MEMBERS * 64 * KB * 3  # of four tars
    reader = TarReader(column, ShardCache(folder, room))
    for number in range(NUM_MEMBERS):
        read(reader, 0, number)
    for tar in range(1, NUM_TARS):
        for number in range(NUM_MEMBERS):
            read(reader, tar, number)
            assert used(folder) <= room
            read(reader, 0, number)  # which keeps it, though it is the oldest
    assert len([one for one in bucket.asked("GET") if one.key.endswith("/0.tar")]) == NUM_MEMBERS
    bucket.door.requests.clear()
    read(reader, NUM_TARS - 1, NUM_MEMBERS - 1)
    assert not bucket.asked("GET")
    read(reader, 1, 0)
    assert bucket.asked("GET")


def read_all(folder: Path, column: Location, room: int, seed: int) -> int:
    """Read every member of every tar in an order of its own, by four threads; returns the most room that was used."""
    reader, order = TarReader(column, ShardCache(folder, room)), np.random.default_rng(seed)
    places = order.permutation([(tar, number) for tar in range(NUM_TARS) for number in range(NUM_MEMBERS)]).tolist()

    def read_and_look(place: list[int]) -> int:
        read(reader, *place)
        return used_now(folder)

    with ThreadPoolExecutor(4) as threads:
        return max(threads.map(read_and_look, places))


def used_now(folder: Path) -> int:
    """As `used`, while others remove."""
    total = 0
    for path in folder.iterdir():
        try:
            total += 512 * path.stat().st_blocks
        except FileNotFoundError:
            continue
    return total


def test_processes_and_threads_share_it(column: Location, tmp_path: Path) -> None:
    """With little room they remove what others are about to read."""
    little = 20 * 64 * KB
    for room in ("little", "much"):
        (tmp_path / room).mkdir()
    scenes = [(tmp_path / "little", column, little, seed) for seed in range(4)]
    scenes += [(tmp_path / "much", column, LARGE, seed) for seed in range(2)]
    with multiprocessing.get_context("spawn").Pool(2) as processes:
        most = processes.starmap(read_all, scenes, chunksize=1)
    assert max(most[:4]) <= little


def of_the_cache(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "pipeline.shard_cache"]


def test_a_disk_that_takes_no_more_is_told_of_once(
    column: Place, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = TarReader(column, ShardCache(folder, LARGE))
    read(reader, 0, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * KB, hard))
    try:
        with caplog.at_level(logging.WARNING):
            for number in (3, 4, 3):
                read(reader, 0, number)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    [record] = of_the_cache(caplog)
    assert "File too large; reading on without" in record.message
    assert "set TMPDIR or train.shard_cache_bytes" in record.message


def test_room_for_less_than_a_member_is_told_of_once(
    bucket: Bucket, column: Place, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = TarReader(column, ShardCache(folder, 32 * KB))
    for _ in range(3):
        read(reader, 0, 0)
    [record] = of_the_cache(caplog)
    assert "found room for 32768 bytes, wanted 73728" in record.message
    assert len(bucket.asked("GET")) == 3 and not used(folder)


def test_many_small_writes_look_seldom(column: Location, folder: Path) -> None:
    """A process looks what is there when it has written its share of the room, and not each time."""
    cache, looked = ShardCache(folder, SHARE * 100 * KB), 0
    for number in range(40):
        before = cache._left
        cache.write(column, number * KB, bytes(KB))
        looked += cache._left > before
    assert 3 <= looked <= 5  # a write of 1 KB counts as 9
