"""What a scan found out is known to the next one; what has left the source is not forgotten."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cache import Cache
from pipeline.errors import Refused
from pipeline.manifest import Journal, Manifest, Settings, read_scanned, state_of, update_manifest, write_scanned
from pipeline.records import Quarantined, Scene, Video

SETTINGS = Settings("fast", "content", None)


def video(name: str, path: str = "") -> Video:
    return Video(name, path or f"/{name}.mp4", "", 10, 20, "h264", 0, 48, 64, 12, 0.0, 1.1, 10.0)


def scenes(name: str) -> tuple[Scene, ...]:
    first, second = Scene(name, 0, 0, 5, 0.0, 0.4, 0.5, 0.1, 0.2), Scene(name, 1, 5, 7, 0.5, 1.1, 0.5, 0.1, 0.2)
    return first, second


A, B = (video("a"), scenes("a")), (video("b"), scenes("b"))
BAD = Quarantined("/bad.mp4", "scan", "damaged", 1, size_bytes=3, mtime_ns=4)
TWIN = Quarantined("/twin.mp4", "scan", "same content as /a.mp4", 1, video="a", size_bytes=10, mtime_ns=5)


def test_what_is_written_is_known(tmp_path: Path) -> None:
    manifest = update_manifest(Manifest(), [B, A], [TWIN, BAD])
    write_scanned(Cache(tmp_path), manifest, SETTINGS)
    read = read_scanned(Cache(tmp_path), SETTINGS)
    assert (read.videos, read.scenes) == (manifest.videos, manifest.scenes)
    assert read.outcomes() == {
        state_of(A[0]): A,
        state_of(B[0]): B,
        state_of(BAD): BAD,
        state_of(TWIN): (replace(A[0], path="/twin.mp4", mtime_ns=5), A[1]),
    }


def test_a_file_that_could_not_be_reached_is_not_known(tmp_path: Path) -> None:
    away = Quarantined("/away.mp4", "scan", "file not found", 1)
    write_scanned(Cache(tmp_path), update_manifest(Manifest(), [A], [away]), SETTINGS)
    found = read_scanned(Cache(tmp_path), SETTINGS).outcomes()
    assert found == {state_of(A[0]): A, state_of(away): away}
    assert state_of(away)[1:] == (-1, -1)  # which no file that is there has


def test_the_order_of_what_was_found_changes_no_byte(tmp_path: Path) -> None:
    one, other = Cache(tmp_path / "one"), Cache(tmp_path / "other")
    write_scanned(one, update_manifest(Manifest(), [A, B], [BAD, TWIN]), SETTINGS)
    write_scanned(other, update_manifest(Manifest(), [B, A], [TWIN, BAD]), SETTINGS)
    for path in (one.manifest, one.scenes, one.quarantine("scan")):
        assert path.read_bytes() == (other.root / path.parent.name / path.name).read_bytes()


def test_what_left_stays_as_removed_and_may_come_back(tmp_path: Path) -> None:
    both = update_manifest(Manifest(), [A, B], [])
    one = update_manifest(both, [A], [])
    assert one.videos == {"a": A[0], "b": replace(B[0], removed=True)}
    assert one.present == [A[0]]
    write_scanned(Cache(tmp_path), one, SETTINGS)
    again = read_scanned(Cache(tmp_path), SETTINGS)
    assert again.scenes == both.scenes
    back = again.outcomes()[state_of(B[0])]
    assert not isinstance(back, Quarantined)
    assert update_manifest(again, [A, back], []).videos == both.videos


def test_a_video_that_moved_is_the_same_video() -> None:
    before = update_manifest(Manifest(), [A], [])
    moved = (video("a", "/elsewhere.mp4"), A[1])
    assert update_manifest(before, [moved], []).videos == {"a": moved[0]}


@pytest.mark.parametrize("other", [replace(SETTINGS, scenes="adaptive"), replace(SETTINGS, threshold=30.0)])
def test_scenes_found_in_another_way_are_not_known(tmp_path: Path, other: Settings) -> None:
    write_scanned(Cache(tmp_path), update_manifest(Manifest(), [A, B], [BAD, TWIN]), SETTINGS)
    before = read_scanned(Cache(tmp_path), other)
    assert (before.videos, before.outcomes()) == ({"a": A[0], "b": B[0]}, {})
    write_scanned(Cache(tmp_path), update_manifest(before, [A], []), other)
    assert read_scanned(Cache(tmp_path), other).outcomes() == {state_of(A[0]): A}


def test_another_kind_of_id_is_refused(tmp_path: Path) -> None:
    write_scanned(Cache(tmp_path), update_manifest(Manifest(), [A], []), SETTINGS)
    with pytest.raises(Refused, match="data.identity: found fast in .*, wanted full; set it back, or use another"):
        read_scanned(Cache(tmp_path), replace(SETTINGS, identity="full"))


def test_a_stopped_scan_goes_on_where_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "manifest" / "scan"
    assert Journal(folder, SETTINGS).read() == {}
    Journal(folder, SETTINGS).append([A])
    again = Journal(folder, SETTINGS)
    assert again.read() == {state_of(A[0]): A}
    again.append([B])
    assert Journal(folder, SETTINGS).read() == {state_of(A[0]): A, state_of(B[0]): B}


def test_a_journal_of_other_settings_is_removed(tmp_path: Path) -> None:
    journal = Journal(tmp_path, SETTINGS)
    for readable in (A, B, A):
        journal.append([readable])
    assert Journal(tmp_path, replace(SETTINGS, scenes="adaptive")).read() == {}
    assert list(tmp_path.iterdir()) == [] and Journal(tmp_path, SETTINGS).read() == {}


def test_a_journal_removed_by_half_is_still_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path, SETTINGS)
    for readable in (A, B):
        journal.append([readable])
    unlink = Path.unlink
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", lambda path, missing_ok: unlink(path) if "000001" in path.name else interrupt())
        journal.remove()
    assert Journal(tmp_path, SETTINGS).read() == {state_of(A[0]): A}


def interrupt() -> None:
    raise KeyboardInterrupt
