"""A file is published whole or not at all, on disks and in object stores."""

import errno
import tempfile
from pathlib import Path
from threading import Barrier
from typing import BinaryIO

import pytest

from pipeline.errors import Refused
from pipeline.location import Place, place_of
from pipeline.storage import append, in_parallel, list_files, publish, publishing, read_range, size_of, sweep
from tests.object_store import Bucket, Request, SlowDown


@pytest.fixture(params=["disk", "store"])
def place(request: pytest.FixtureRequest, store: Bucket, tmp_path: Path) -> Place:
    """Of a file that is not there yet, in a folder of its own."""
    return place_of(tmp_path if request.param == "disk" else store.uri(tmp_path.name)) / "a.bin"


def write(content: bytes, place: Place) -> str:
    """Put a file where there may be none; returns what came of it."""
    try:
        publish(place, content, replace=False)
    except FileExistsError:
        return "there is one"
    return "written"


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


def test_a_writer_may_go_back_and_read_what_it_wrote(place: Place) -> None:
    with publishing(place) as file:
        file.write(b"xbc")
        file.seek(0)
        assert file.read() == b"xbc"
        file.seek(0)
        file.write(b"a")
    assert place.read_bytes() == b"abc"


def test_a_writer_that_fails_changes_nothing_and_is_heard(place: Place) -> None:
    """Its error is its own, also where it is one of files: it did not come from writing."""
    for old in (None, b"old"):
        if old:
            publish(place, old)
        with pytest.raises(FileNotFoundError, match="the weights of a VAE"), publishing(place) as file:
            file.write(b"half of the new")
            raise FileNotFoundError("the weights of a VAE")
        assert (place.read_bytes() if place.exists() else None) == old


@pytest.mark.parametrize("content", [b"", b"whole", bytes(12 << 20)])
def test_what_is_published_is_there_in_its_size_and_by_ranges(place: Place, content: bytes) -> None:
    assert size_of(place) is None
    publish(place, b"an older one")
    publish(place, content)
    assert place.read_bytes() == content and size_of(place) == len(content)
    assert read_range(place, 2, 4) == content[2:6] and read_range(place, len(content), 4) == b""


def test_a_file_that_must_not_be_there_is_written_once(place: Place) -> None:
    """The same content again is no other file: a request that is sent twice meets what it wrote itself."""
    assert [write(content, place) for content in (b"one", b"other", b"one")] == ["written", "there is one", "written"]
    with pytest.raises(FileExistsError), publishing(place, replace=False) as file:
        file.write(b"third")
    assert place.read_bytes() == b"one"
    assert [one.name for one in list_files(place.parent, "")] == ["a.bin"]


def test_of_writers_that_race_one_wins(place: Place, store: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    together = Barrier(8)
    monkeypatch.setattr(store.door, "before", lambda request: together.wait(20) if request.verb == "PUT" else None)
    came = dict(zip(range(8), in_parallel(lambda number: write(str(number).encode(), place), range(8))))
    winners = [number for number, what in came.items() if what == "written"]
    assert len(winners) == 1 and place.read_bytes() == str(winners[0]).encode()


def test_a_folder_is_listed_without_those_below_it(place: Place) -> None:
    for name in ("b.txt", "a.txt", "c.bin"):
        publish(place.parent / name, b"")
    publish(place.parent / "deep" / "d.txt", b"")
    assert [one.name for one in list_files(place.parent, ".txt")] == ["a.txt", "b.txt"]
    assert list_files(place.parent / "none", "") == []


@pytest.mark.parametrize("lost", ["question", "answer", "busy"])
@pytest.mark.parametrize("replace", [True, False])
def test_a_store_that_stumbles_is_asked_again(
    store: Bucket, monkeypatch: pytest.MonkeyPatch, lost: str, replace: bool
) -> None:
    """Also where it did what it was asked and could not say so."""
    stumbles = [SlowDown, SlowDown] if lost == "busy" else [ConnectionResetError, ConnectionResetError]

    def stumble(request: Request) -> None:
        if request.key == key and request.verb == "PUT" and stumbles:
            raise stumbles.pop()

    key = f"stumble {lost} {replace}"
    monkeypatch.setattr(store.door, "after" if lost == "answer" else "before", stumble)
    store.door.requests.clear()
    publish(place_of(store.uri(key)), b"here", replace)
    assert store.get(key) == b"here" and not stumbles
    asked = store.asked("PUT")
    assert len(asked) == 3 and all(("if-none-match" in one.headers) is not replace for one in asked)


def test_a_store_that_declines_is_told_in_one_line(store: Bucket) -> None:
    place = place_of(store.uri("a").replace("videos", "no-bucket"))
    with pytest.raises(Refused, match=r"^s3://no-bucket/a.*: cannot be written: .*404 Not Found.*, then run again$"):
        publish(place, b"")


def test_no_room_to_put_an_object_together_is_told(store: Bucket) -> None:
    place = place_of(store.uri("large"))
    told = (
        f"large.*: cannot be put together in {tempfile.gettempdir()}: No space left on device; make room or set TMPDIR"
    )
    with pytest.raises(Refused, match=told), publishing(place), open("/dev/full", "wb") as full:
        full.write(b"x")
    assert not place.exists()


def test_a_file_that_gets_too_large_is_told(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="a.bin: cannot be written: File too large"), publishing(tmp_path / "a.bin"):
        raise OSError(errno.EFBIG, "File too large")
    assert list(tmp_path.iterdir()) == []


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
