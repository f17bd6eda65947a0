"""What lies in the folder of checkpoints: what counts as one, and which are kept."""

from pathlib import Path

import pytest

from jobs.training.committed import (
    Committed,
    Extent,
    WrittenFile,
    begin,
    commit,
    find_damage,
    list_committed,
    prune,
    read_committed,
    step_of,
    superseded,
    write_synced,
)
from pipeline.errors import Refused

CONTENT = b"123456789"
CRC = 0xE3069283  # the check value of CRC-32C


def committed(folder: Path, step: int) -> Path:
    """A checkpoint of two files, with a parameter of six elements."""
    final = folder / f"step-{step:08d}"
    aside = begin(final)
    assert aside is not None
    for name in ("a", "b"):
        write_synced(aside / name, CONTENT)
    commit(aside, final, mark(step))
    return final


def mark(step: int, length: int = 4) -> Committed:
    files = [
        WrittenFile("a", len(CONTENT), CRC, [Extent(0, 0, 2)]),
        WrittenFile("b", len(CONTENT), CRC, [Extent(0, 2, length)]),
    ]
    return Committed(step, 1, {"model": {}}, {"updates": step}, {"weight": [2, 3]}, files)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_committed_checkpoints_count(tmp_path: Path) -> None:
    second, first = committed(tmp_path, 20), committed(tmp_path, 3)
    (tmp_path / "step-00000030").mkdir()  # no mark: a copy by hand that did not end
    committed(tmp_path, 40).rename(tmp_path / "step-00000040.abc.tmp")  # marked, but not renamed
    assert list_committed(tmp_path) == [first, second]
    assert step_of(second.name) == 20
    assert read_committed(second) == mark(20)


def test_a_checkpoint_is_begun_once_and_what_crashes_left_goes(tmp_path: Path) -> None:
    first = begin(tmp_path / "step-00000003")
    second = begin(tmp_path / "step-00000003")
    assert first and second and first != second and not first.exists() and not list(second.iterdir())
    assert begin(committed(tmp_path, 5)) is None
    (tmp_path / "step-00000007").mkdir()
    with pytest.raises(Refused, match=r"step-00000007: there is no COMMITTED\.json in it.*move it away"):
        begin(tmp_path / "step-00000007")


def test_nothing_is_committed_that_is_not_all_there(tmp_path: Path) -> None:
    final = tmp_path / "step-00000001"
    for length, size, message in ((3, 9, "5 elements of weight, which has 6"), (4, 8, "b: changed while")):
        aside = begin(final)
        assert aside is not None
        write_synced(aside / "a", CONTENT)
        write_synced(aside / "b", CONTENT[:size])
        with pytest.raises(RuntimeError, match=message):
            commit(aside, final, mark(1, length))
        assert list_committed(tmp_path) == []


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    checkpoint = committed(tmp_path, 1)
    files = read_committed(checkpoint).files
    assert find_damage(checkpoint, files) is None
    (checkpoint / "b").write_bytes(b"123456788")
    assert "step-00000001/b: is not as it was written; delete the folder" in str(find_damage(checkpoint, files))
    assert find_damage(checkpoint, files[:1]) is None
    (checkpoint / "b").unlink()
    assert "b: is missing" in str(find_damage(checkpoint, files))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (b'{"step": 1', r"COMMITTED\.json is damaged; delete"),
        (b"\xff", "is damaged"),
        (b'{"format": 2, "files": []}', "is damaged"),
        (b'{"format": 1, "files": []}', r"written by another version of latentmill; use another train\.out"),
    ],
)
def test_a_mark_that_cannot_be_read_is_refused(tmp_path: Path, found: bytes, message: str) -> None:
    checkpoint = committed(tmp_path, 1)
    (checkpoint / "COMMITTED.json").write_bytes(found)
    with pytest.raises(Refused, match=rf"step-00000001: .*{message}"):
        read_committed(checkpoint)


def test_the_newest_and_those_of_every_so_many_steps_are_kept() -> None:
    assert superseded([1, 2, 3, 4], keep_last=2, keep_every=0) == [1, 2]
    assert superseded([500, 1000, 1500, 2000, 2500], keep_last=1, keep_every=1000) == [500, 1500]
    assert superseded([500, 1000], keep_last=3, keep_every=0) == []


def test_pruning_spares_what_it_is_told_to_and_removes_what_crashes_left(tmp_path: Path) -> None:
    checkpoints = [committed(tmp_path, step) for step in (1, 2, 3)]
    (tmp_path / "step-00000004.abc.tmp").mkdir()
    prune(tmp_path, keep_last=1, keep_every=0, spared=checkpoints[:1])
    assert names(tmp_path) == ["step-00000001", "step-00000003"]
    prune(tmp_path, keep_last=1, keep_every=0)
    assert names(tmp_path) == ["step-00000003"]
