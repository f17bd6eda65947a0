"""Files are read alike wherever they are; what is missing or forbidden is told by the same errors."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline import files
from pipeline.files import Listed, is_folder, list_folder, local_copy, open_file, read_all, stat_all
from tests.object_store import Bucket

ODD_NAMES = ("a b.mp4", "line\nbreak.mp4", "ünï 影片.mp4", "a#b?c%20d.mp4", "dots.in.it.mp4", "deep/er/x.mp4")


@contextmanager
def anybody() -> Iterator[None]:
    """Without the rights of root, where the tests run as root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may look into."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def names(folder: Path) -> list[str]:
    return [os.path.relpath(one.path, folder) for one in list_folder(str(folder))[0]]


def test_a_folder_is_listed_to_its_depths_with_names_as_they_are(tmp_path: Path) -> None:
    write(tmp_path, *ODD_NAMES, ".hidden/a.mp4")
    (tmp_path / "empty").mkdir()
    listed, locked = list_folder(str(tmp_path))
    assert [one.path for one in listed] == sorted(str(tmp_path / name) for name in (*ODD_NAMES, ".hidden/a.mp4"))
    status = (tmp_path / "a b.mp4").stat()
    assert Listed(str(tmp_path / "a b.mp4"), status.st_size, status.st_mtime_ns) in listed
    assert locked == []


def test_a_name_that_is_no_text_is_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    (tmp_path / name).write_bytes(b"x")
    assert names(tmp_path) == [name]


def test_links_are_followed_and_end(tmp_path: Path) -> None:
    write(tmp_path, "real/a.mp4", "elsewhere/b.mp4")
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "real" / "c.mp4").symlink_to(tmp_path / "elsewhere" / "b.mp4")
    (tmp_path / "real" / "there").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "real") == ["a.mp4", "c.mp4", "there/b.mp4"]


def test_a_folder_with_two_names_is_listed_once(tmp_path: Path) -> None:
    write(tmp_path, "real/a.mp4")
    (tmp_path / "also").symlink_to(tmp_path / "real")
    assert names(tmp_path) == ["also/a.mp4"]


def test_what_cannot_be_read_as_a_file_is_listed_without_size(tmp_path: Path) -> None:
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert list_folder(str(tmp_path))[0] == [
        Listed(str(tmp_path / "gone.mp4"), -1, -1),
        Listed(str(tmp_path / "pipe.mp4"), -1, -1),
    ]


def test_a_folder_that_must_not_be_read_is_told(open_folder: Path) -> None:
    write(open_folder, "a.mp4", "locked/b.mp4")
    (open_folder / "locked").chmod(0)
    with anybody():
        listed, locked = list_folder(str(open_folder))
    assert ([one.path for one in listed], locked) == ([str(open_folder / "a.mp4")], [str(open_folder / "locked")])


def test_only_what_is_there_has_a_state(tmp_path: Path) -> None:
    write(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    paths = [str(tmp_path / name) for name in ("b.mp4", "a.mp4", "gone.mp4", "a.mp4/x.mp4", "none.mp4", "")]
    assert stat_all(paths) == {one.path: one for one in list_folder(str(tmp_path))[0] if one.size_bytes >= 0}


def test_what_cannot_be_opened_is_told_apart(tmp_path: Path, open_folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_file(str(tmp_path / "none.mp4"))
    with pytest.raises(OSError, match="not a file but a folder, a pipe or a device"):
        open_file(str(tmp_path))
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(OSError, match="not a file"), local_copy(str(tmp_path / "pipe.mp4")):
        pass
    write(open_folder, "locked.mp4")
    (open_folder / "locked.mp4").chmod(0)
    with anybody(), pytest.raises(PermissionError), local_copy(str(open_folder / "locked.mp4")):
        pass


def test_many_files_are_read_in_their_order(tmp_path: Path) -> None:
    wanted = [f"{number}.txt" for number in range(100)]
    write(tmp_path, *wanted)
    *found, none = read_all([str(tmp_path / name) for name in (*wanted, "none.txt")])
    assert found == [name.encode() for name in wanted]
    assert isinstance(none, FileNotFoundError)


def test_a_local_file_is_its_own_copy(tmp_path: Path) -> None:
    write(tmp_path, "a.mp4")
    with local_copy(str(tmp_path / "a.mp4")) as path:
        assert path == tmp_path / "a.mp4"
    assert path.exists()


def test_a_bucket_is_listed_like_a_folder(store: Bucket) -> None:
    keys = [f"list/{name}" for name in ODD_NAMES if "\n" not in name]  # which this store cannot take
    for key in keys:
        store.put(key, b"hello")
    store.put("beside/b.mp4", b"")
    listed, locked = list_folder(store.uri("list"))
    assert [one.path for one in listed] == sorted(store.uri(key) for key in keys)
    assert {one.size_bytes for one in listed} == {5} and all(one.mtime_ns > 0 for one in listed)
    assert list_folder(store.uri("list/"))[0] == listed and locked == []
    assert stat_all([*(store.uri(key) for key in keys), store.uri("list"), store.uri("list/none.mp4")]) == {
        one.path: one for one in listed
    }


def test_folders_and_objects_of_a_bucket_are_told_apart(store: Bucket) -> None:
    store.put("kinds/a.mp4", b"hello")
    assert is_folder(store.uri("kinds")) and is_folder(store.uri()) and not is_folder(store.uri("kinds/a.mp4"))
    with pytest.raises(FileNotFoundError):
        is_folder(store.uri("none"))


def test_an_empty_bucket_is_an_empty_folder(store: Bucket) -> None:
    store.client.create_bucket(Bucket="empty")
    uri = store.uri().replace("videos", "empty")
    assert is_folder(uri) and list_folder(uri) == ([], [])


def test_an_object_is_downloaded_and_the_copy_removed(store: Bucket) -> None:
    content = os.urandom(3 << 20)
    uri = store.put("deep/a.b.mp4", content)
    with local_copy(uri) as path:
        assert (path.suffix, path.read_bytes()) == (".mp4", content)
    assert not path.exists()
    with open_file(uri) as file:
        file.seek(1 << 20)
        assert file.read(10) == content[1 << 20 :][:10]


def test_a_missing_object_is_a_missing_file(store: Bucket) -> None:
    for path in (store.uri("none.mp4"), store.uri("none.mp4").replace("videos", "no-bucket")):
        with pytest.raises(FileNotFoundError), local_copy(path):
            pass
    with pytest.raises(FileNotFoundError):
        list_folder(store.uri("a.mp4").replace("videos", "no-bucket"))


def test_what_a_killed_process_left_is_removed_and_nothing_else(
    store: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    uri = store.put("a.mp4", b"hello")
    with local_copy(uri) as held:
        left, fresh = held.with_name("left.mp4"), held.with_name("fresh.mp4")
        for path in (left, fresh):
            path.write_bytes(b"half")
        for path in (left, held):
            os.utime(path, times=(0, time.time() - 2 * files.ABANDONED_S))
        with local_copy(uri):
            assert (left.exists(), fresh.exists(), held.exists()) == (False, True, True)
