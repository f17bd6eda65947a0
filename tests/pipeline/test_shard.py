"""A shard is a plain tar: byte-identical for the same samples, addressed by its sidecar, and committed by it."""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from webdataset import WebDataset  # pyright: ignore[reportAttributeAccessIssue]

from pipeline.cache import sidecar_path, tar_path
from pipeline.sample import array_bytes
from pipeline.shard import Member, Packed, is_committed, write_shard
from pipeline.tables import read_metadata, read_records

SHARD = "64x64/0000-000003"
FACTS = {"recipe": "r" * 64, "generation": "0000"}


@dataclass(frozen=True)
class Row:
    name: str
    offset: int
    num_bytes: int
    crc32c: int


def rows(where: dict[str, Member]) -> list[Row]:
    return [Row(name, member.offset, member.num_bytes, member.crc32c) for name, member in where.items()]


def samples(count: int = 3, seed: int = 0) -> list[Packed]:
    random = np.random.default_rng(seed)
    return [
        Packed(
            f"{seed}{number:015x}-00000017-64x64",
            {
                "latent.npy": array_bytes(random.normal(size=(2, 5, 3, 1 + number)).astype(np.float16)),
                "json": b'{"number": %d}' % number,
            },
        )
        for number in reversed(range(count))
    ]


def write(column: Path, packed: list[Packed], facts: dict[str, str] = FACTS) -> None:
    write_shard(column, SHARD, packed, Row, rows, facts)


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for column in ("a", "b"):
        write(tmp_path / column, samples())
    for path in (tar_path, sidecar_path):
        assert path(tmp_path / "a", SHARD).read_bytes() == path(tmp_path / "b", SHARD).read_bytes()


def test_no_clock_and_no_user_gets_in(tmp_path: Path) -> None:
    write(tmp_path, samples())
    with tarfile.open(tar_path(tmp_path, SHARD)) as tar:
        members = tar.getmembers()
    assert {(one.mtime, one.uid, one.gid, one.uname, one.gname, one.mode) for one in members} == {
        (0, members[0].uid, members[0].gid, "root", "root", 0o644)
    }
    assert {(one.uid, one.gid) for one in members} == {(0, 0)}


def test_offsets_address_the_content_of_each_member(tmp_path: Path) -> None:
    write(tmp_path, samples())
    wanted = {f"{one.key}.{ending}": data for one in samples() for ending, data in one.members.items()}
    content = tar_path(tmp_path, SHARD).read_bytes()
    found = read_records([sidecar_path(tmp_path, SHARD)], Row)
    assert len(found) == len(wanted) == 6
    for row in found:
        data = content[row.offset : row.offset + row.num_bytes]
        assert data == wanted[row.name]
        assert row.crc32c == google_crc32c.value(data)


def test_any_tar_reads_it_in_the_order_of_the_samples(tmp_path: Path) -> None:
    write(tmp_path, samples())
    with tarfile.open(tar_path(tmp_path, SHARD), "r:") as tar:
        keys = [member.name.split(".")[0] for member in tar]
        assert list(dict.fromkeys(keys)) == [one.key for one in samples()]
        first = samples()[0]
        stored = tar.extractfile(f"{first.key}.latent.npy")
        assert stored is not None and stored.read() == first.members["latent.npy"]


@pytest.mark.filterwarnings("ignore")
def test_plain_webdataset_reads_it(tmp_path: Path) -> None:
    write(tmp_path, samples())
    read = list(WebDataset(str(tar_path(tmp_path, SHARD)), shardshuffle=False).decode())
    assert [one["__key__"] for one in read] == [one.key for one in samples()]
    assert [one["json"] for one in read] == [{"number": number} for number in (2, 1, 0)]
    for one, packed in zip(read, samples(), strict=True):
        assert np.array_equal(one["latent.npy"], np.load(io.BytesIO(packed.members["latent.npy"])))


def test_a_shard_whose_samples_all_failed_is_an_empty_tar(tmp_path: Path) -> None:
    write(tmp_path, [])
    assert is_committed(tmp_path, SHARD, FACTS)
    assert read_records([sidecar_path(tmp_path, SHARD)], Row) == []
    with tarfile.open(tar_path(tmp_path, SHARD)) as tar:
        assert tar.getnames() == []


def test_the_footer_says_the_facts_and_the_sum_of_the_tar(tmp_path: Path) -> None:
    import hashlib

    write(tmp_path, samples())
    digest = hashlib.sha256(tar_path(tmp_path, SHARD).read_bytes()).hexdigest()
    assert read_metadata(sidecar_path(tmp_path, SHARD)) == {**FACTS, "tar_sha256": digest}


def test_a_written_shard_is_committed(tmp_path: Path) -> None:
    assert not is_committed(tmp_path, SHARD, FACTS)
    write(tmp_path, samples())
    assert is_committed(tmp_path, SHARD, FACTS)


@pytest.mark.parametrize("path", [tar_path, sidecar_path])
def test_without_tar_or_sidecar_there_is_no_shard(tmp_path: Path, path) -> None:
    write(tmp_path, samples())
    path(tmp_path, SHARD).unlink()
    assert not is_committed(tmp_path, SHARD, FACTS)


@pytest.mark.parametrize("facts", [{**FACTS, "recipe": "s" * 64}, {**FACTS, "encoder": "bytes"}])
def test_a_shard_of_other_facts_is_not_the_one_wanted(tmp_path: Path, facts: dict[str, str]) -> None:
    write(tmp_path, samples())
    assert not is_committed(tmp_path, SHARD, facts)


def test_a_tar_without_its_sidecar_is_what_a_crash_in_between_leaves(tmp_path: Path) -> None:
    def crash(where: dict[str, Member]) -> list[Row]:
        assert tar_path(tmp_path, SHARD).exists()
        raise OSError("power cut")

    with pytest.raises(OSError, match="power cut"):
        write_shard(tmp_path, SHARD, samples(), Row, crash, FACTS)
    assert not is_committed(tmp_path, SHARD, FACTS)


def test_a_replaced_tar_is_not_committed_by_the_old_sidecar(tmp_path: Path) -> None:
    write(tmp_path, samples(seed=0))

    def crash(where: dict[str, Member]) -> list[Row]:
        raise OSError("power cut")

    before = tar_path(tmp_path, SHARD).read_bytes()
    with pytest.raises(OSError, match="power cut"):
        write_shard(tmp_path, SHARD, samples(seed=1), Row, crash, {**FACTS, "generation": "0001"})
    assert not is_committed(tmp_path, SHARD, FACTS) or tar_path(tmp_path, SHARD).read_bytes() == before
