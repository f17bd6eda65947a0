"""A shard is a plain tar: byte-identical for the same samples, addressed by its sidecar, and committed by it."""

import hashlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from webdataset import WebDataset  # pyright: ignore[reportAttributeAccessIssue]

from pipeline.cache import sidecar_path, tar_path
from pipeline.sample import array_bytes
from pipeline.shard import Member, Packed, commit_shard, committed_footer, is_committed, sweep_shards, writing_shard
from pipeline.tables import read_metadata, read_records
from tests.shards import local, write_shard

SHARD = "64x64/0000-000003"
FACTS = {"recipe": "r" * 64, "generation": "0000"}


@dataclass(frozen=True)
class Row:
    key: str
    latent_offset: int
    latent_bytes: int
    latent_crc32c: int
    json_offset: int
    json_bytes: int


def row(key: str, where: Mapping[str, Member]) -> Row:
    latent, facts = where["latent.npy"], where["json"]
    return Row(key, latent.offset, latent.num_bytes, latent.crc32c, facts.offset, facts.num_bytes)


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
    write_shard(column, SHARD, packed, Row, row, facts)


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    for column in ("a", "b"):
        write(tmp_path / column, samples())
    for path in (tar_path, sidecar_path):
        assert path(tmp_path / "a", SHARD).read_bytes() == path(tmp_path / "b", SHARD).read_bytes()


def test_no_clock_and_no_user_gets_in(tmp_path: Path) -> None:
    write(tmp_path, samples())
    with tarfile.open(local(tar_path(tmp_path, SHARD))) as tar:
        members = tar.getmembers()
    assert {(one.mtime, one.uid, one.gid, one.uname, one.gname, one.mode) for one in members} == {
        (0, members[0].uid, members[0].gid, "root", "root", 0o644)
    }
    assert {(one.uid, one.gid) for one in members} == {(0, 0)}


def test_offsets_address_the_content_of_each_member(tmp_path: Path) -> None:
    write(tmp_path, samples())
    content = tar_path(tmp_path, SHARD).read_bytes()
    found = read_records([sidecar_path(tmp_path, SHARD)], Row)
    for one, wanted in zip(found, samples(), strict=True):
        assert one.key == wanted.key
        latent = content[one.latent_offset : one.latent_offset + one.latent_bytes]
        assert latent == wanted.members["latent.npy"]
        assert one.latent_crc32c == google_crc32c.value(latent)
        assert content[one.json_offset : one.json_offset + one.json_bytes] == wanted.members["json"]


def test_any_tar_reads_it_in_the_order_of_the_samples(tmp_path: Path) -> None:
    write(tmp_path, samples())
    with tarfile.open(local(tar_path(tmp_path, SHARD)), "r:") as tar:
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
    with tarfile.open(local(tar_path(tmp_path, SHARD))) as tar:
        assert tar.getnames() == []


def test_the_footer_says_the_facts_and_the_size_and_sum_of_the_tar(tmp_path: Path) -> None:
    write(tmp_path, samples())
    content = tar_path(tmp_path, SHARD).read_bytes()
    assert (
        read_metadata(sidecar_path(tmp_path, SHARD))
        == committed_footer(tmp_path, SHARD)
        == {
            **FACTS,
            "tar_sha256": hashlib.sha256(content).hexdigest(),
            "tar_bytes": str(len(content)),
        }
    )


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


@pytest.mark.parametrize("path", [tar_path, sidecar_path])
def test_a_tar_or_sidecar_cut_short_is_no_shard(tmp_path: Path, path) -> None:
    write(tmp_path, samples())
    path(tmp_path, SHARD).write_bytes(path(tmp_path, SHARD).read_bytes()[:-7])
    assert not is_committed(tmp_path, SHARD, FACTS)


def test_whatever_is_wrong_with_a_sidecar_one_may_ask(tmp_path: Path) -> None:
    write(tmp_path, samples())
    sidecar = local(sidecar_path(tmp_path, SHARD))
    content = sidecar.read_bytes()
    for offset in range(len(content) - 400, len(content)):
        sidecar.write_bytes(content[:offset] + bytes([content[offset] ^ 0x55]) + content[offset + 1 :])
        is_committed(tmp_path, SHARD, FACTS)
    sidecar.write_bytes(b"")
    assert not is_committed(tmp_path, SHARD, FACTS)


def write_tar(column: Path, packed: list[Packed]) -> tuple[list[Row], dict[str, str]]:
    """All of a shard but its commit."""
    with writing_shard(column, SHARD) as tar:
        rows = [row(one.key, tar.add(one)) for one in packed]
        assert not tar.facts
    return rows, {**FACTS, **tar.facts}


def test_a_tar_without_its_sidecar_is_no_shard(tmp_path: Path) -> None:
    write_tar(tmp_path, samples())
    assert tar_path(tmp_path, SHARD).exists() and not is_committed(tmp_path, SHARD, FACTS)


def test_an_error_in_between_leaves_the_shard_that_was_there(tmp_path: Path) -> None:
    write(tmp_path, samples())
    before = [path(tmp_path, SHARD).read_bytes() for path in (tar_path, sidecar_path)]
    with pytest.raises(RuntimeError, match="power cut"), writing_shard(tmp_path, SHARD) as tar:
        tar.add(samples(seed=1)[0])
        raise RuntimeError("power cut")
    assert [path(tmp_path, SHARD).read_bytes() for path in (tar_path, sidecar_path)] == before
    assert len(list(local(tar_path(tmp_path, SHARD)).parent.iterdir())) == 2


def test_the_old_sidecar_does_not_vouch_for_a_new_tar(tmp_path: Path) -> None:
    write(tmp_path, samples(seed=0))
    write_tar(tmp_path, samples(seed=1))
    assert not is_committed(tmp_path, SHARD, FACTS)


def test_what_a_killed_writer_left_aside_is_swept_by_the_next(tmp_path: Path) -> None:
    write(tmp_path, samples())
    folder = local(tar_path(tmp_path, SHARD)).parent
    for path in (tar_path, sidecar_path):
        (folder / f".{path(tmp_path, SHARD).name}.{'0' * 32}.tmp").touch()
    write(tmp_path, samples())
    assert len(list(folder.iterdir())) == 2


def test_two_writers_of_one_shard_commit_it_once(tmp_path: Path) -> None:
    rows, footer = write_tar(tmp_path, samples())
    write_tar(tmp_path, samples())  # by a worker that was taken for dead
    commit_shard(tmp_path, SHARD, Row, rows, footer)
    first = local(sidecar_path(tmp_path, SHARD)).stat().st_ino
    commit_shard(tmp_path, SHARD, Row, rows, footer)
    assert local(sidecar_path(tmp_path, SHARD)).stat().st_ino == first
    assert is_committed(tmp_path, SHARD, FACTS)


def test_a_second_writer_that_is_killed_before_its_commit_leaves_that_of_the_first(tmp_path: Path) -> None:
    write(tmp_path, samples())
    write_tar(tmp_path, samples())
    assert is_committed(tmp_path, SHARD, FACTS)


def test_the_same_tar_again_states_the_facts_of_today(tmp_path: Path) -> None:
    write(tmp_path, samples())
    write(tmp_path, samples(), FACTS | {"generation": "0001"})
    assert is_committed(tmp_path, SHARD, FACTS | {"generation": "0001"})


def test_what_killed_writers_left_aside_is_swept(tmp_path: Path) -> None:
    write(tmp_path, samples())
    folder = local(tar_path(tmp_path, SHARD)).parent
    (folder / f".other.tar.{'0' * 32}.tmp").touch()
    sweep_shards(tmp_path, [SHARD])
    assert len(list(folder.iterdir())) == 2


def test_of_two_writers_with_other_bytes_neither_is_committed(tmp_path: Path) -> None:
    rows, footer = write_tar(tmp_path, samples())
    other_rows, other_footer = write_tar(tmp_path, samples(seed=1))
    commit_shard(tmp_path, SHARD, Row, rows, footer)  # late: the tar is the other's by now
    commit_shard(tmp_path, SHARD, Row, other_rows, other_footer)
    assert not is_committed(tmp_path, SHARD, FACTS)
