"""A file is published whole or not at all."""

from pathlib import Path
from typing import BinaryIO

import pytest

from pipeline.errors import Refused
from pipeline.storage import append, publish, sweep


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_failed_write_leaves_everything_as_it_was(tmp_path: Path, old: bytes | None) -> None:
    path = tmp_path / "a.bin"
    if old is not None:
        path.write_bytes(old)

    def torn(file: BinaryIO) -> None:
        file.write(b"half of the new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(path, torn)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == ({"a.bin": old} if old is not None else {})


def test_nothing_is_visible_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    publish(path, b"old")
    seen = []

    def write(file: BinaryIO) -> None:
        file.write(b"new")
        file.flush()
        seen.append((path.read_bytes(), [one.name for one in tmp_path.iterdir() if not one.name.startswith(".")]))

    publish(path, write)
    assert seen == [(b"old", ["a.bin"])]
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_may_go_back_and_read_what_it_wrote(tmp_path: Path) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"xbc")
        file.seek(0)
        assert file.read() == b"xbc"
        file.seek(0)
        file.write(b"a")

    publish(tmp_path / "a.bin", write)
    assert (tmp_path / "a.bin").read_bytes() == b"abc"


def test_missing_folders_are_made(tmp_path: Path) -> None:
    publish(tmp_path / "deep" / "er" / "a.bin", b"here")
    assert (tmp_path / "deep" / "er" / "a.bin").read_bytes() == b"here"


def test_content_reaches_the_disk_before_its_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watches the system calls: what is lost in a power cut cannot be seen otherwise."""
    import os
    import stat

    calls, fsync, replace = [], os.fsync, os.replace

    def watched_fsync(handle: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else f"{os.fstat(handle).st_size} bytes")
        fsync(handle)

    def watched_replace(*paths: Path) -> None:
        calls.append("rename")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    publish(tmp_path / "a.bin", b"four")
    assert calls == ["4 bytes", "rename", "folder"]


LEFT = "0123456789abcdef0123456789abcdef"


def test_sweeping_removes_what_was_left_of_one_path_only(tmp_path: Path) -> None:
    left = [f".a.tar.{LEFT}.tmp", f".a.tar.{LEFT[::-1]}.tmp"]
    kept = ["a.tar", "a.parquet", f".a.parquet.{LEFT}.tmp", f".aa.tar.{LEFT}.tmp", f"a.tar.{LEFT}.tmp", ".a.tar"]
    for name in left + kept:
        (tmp_path / name).write_bytes(b"")
    sweep(tmp_path / "a.tar")
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(kept)


def test_sweeping_spares_names_that_begin_alike(tmp_path: Path) -> None:
    (tmp_path / f".a.tar.{LEFT}.tmp").write_bytes(b"")
    sweep(tmp_path / "a")
    assert (tmp_path / f".a.tar.{LEFT}.tmp").exists()


def test_what_a_killed_writer_leaves_is_swept(tmp_path: Path) -> None:
    def killed(file: BinaryIO) -> None:
        (aside,) = tmp_path.iterdir()
        (tmp_path / "copy").hardlink_to(aside)
        names.append(aside.name)
        raise KeyboardInterrupt

    names: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path / "a.tar", killed)
    (tmp_path / "copy").rename(tmp_path / names[0])  # as if the process had died before it could tidy up
    sweep(tmp_path / "a.tar")
    assert list(tmp_path.iterdir()) == []


def test_sweeping_where_nothing_is_does_nothing(tmp_path: Path) -> None:
    sweep(tmp_path / "nowhere" / "a.tar")


def test_a_disk_that_takes_no_more_is_told_with_the_path(tmp_path: Path) -> None:
    """/dev/full answers every write with "no space left", as a full disk does."""
    publish(tmp_path / "file", b"old")

    def write(_: BinaryIO) -> None:
        with open("/dev/full", "wb") as full:
            full.write(b"x")

    with pytest.raises(Refused, match=r"file: cannot be written: No space left on device; make room"):
        publish(tmp_path / "file", write)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder is wanted")
    with pytest.raises(Refused, match="cannot be written"):
        publish(tmp_path / "taken" / "file", b"new")


def test_lines_are_added_behind_those_that_are_there(tmp_path: Path) -> None:
    append(tmp_path / "new" / "lines", ["one"])
    append(tmp_path / "new" / "lines", ["zwei, ü", "three"])
    assert (tmp_path / "new" / "lines").read_text(encoding="utf-8") == "one\nzwei, ü\nthree\n"


def test_lines_that_cannot_be_added_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refused, match=r"lines: cannot be written: .*; make room or write elsewhere, then run again$"):
        append(tmp_path / "file" / "lines", ["one"])
