"""A row of the manifest states what its file is, wherever that lies; bad files give a reason."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.mp4 import write_mp4
from pipeline.errors import BadVideo
from pipeline.files import stat_all
from pipeline.records import Quarantined, Scene, Source, Video
from pipeline.sandbox import Limits, Sandbox
from pipeline.scan import drop_duplicates, examine, probe, why_not
from tests.object_store import serve_bucket


def grey(frames: int = 5, height: int = 48, width: int = 64, level: int = 90) -> np.ndarray:
    return np.full((frames, height, width, 3), level, np.uint8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_mp4(folder / "plain.mp4", grey(frames=13), 12)
    write_mp4(folder / "other.mp4", grey(frames=13, level=200), 12)
    return folder


def source(path: Path | str) -> Source:
    """As it is listed."""
    listed = stat_all([str(path)])[str(path)]
    return Source(str(path), "a caption", '{"score": 5}', listed.size_bytes, listed.mtime_ns)


def facts(path: Path) -> Video:
    return probe(source(path), "fast")


def test_a_video_is_known_by_its_facts(videos: Path) -> None:
    found, status = facts(videos / "plain.mp4"), (videos / "plain.mp4").stat()
    assert (found.path, found.caption, found.extra) == (str(videos / "plain.mp4"), "a caption", '{"score": 5}')
    assert (found.size_bytes, found.mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert (found.codec, found.stream, found.height, found.width) == ("h264", 0, 48, 64)
    assert (found.num_frames, found.start_s, found.end_s, found.fps) == (13, 0.0, 1.0, 12.0)


def test_content_names_a_file(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.mp4").write_bytes((videos / "plain.mp4").read_bytes())
    plain, copy, other = (facts(path) for path in (videos / "plain.mp4", tmp_path / "copy.mp4", videos / "other.mp4"))
    assert plain.id == copy.id != other.id
    assert len(plain.id) == 16 and set(plain.id) <= set("0123456789abcdef")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(Limits(60.0, 2 << 30, 100)) as sandbox:
        yield sandbox


def test_a_file_is_examined_where_it_is(videos: Path, sandbox: Sandbox) -> None:
    named = source(videos / "plain.mp4")
    video, scenes = examine(named, "fast", "off", None, sandbox)
    assert video == probe(named, "fast")
    assert str(scenes) == str([Scene(video.id, 0, 0, 13, 0.0, 1.0)])  # as text, for NaN is not itself


def test_an_object_is_examined_like_a_file(videos: Path, sandbox: Sandbox) -> None:
    with serve_bucket() as bucket:
        uri = bucket.put("deep/a b.mp4", videos / "plain.mp4")
        video, scenes = examine(source(uri), "full", "content", None, sandbox)
        size_bytes, mtime_ns = source(uri).size_bytes, source(uri).mtime_ns
    here, same = examine(source(videos / "plain.mp4"), "full", "content", None, sandbox)
    assert video == replace(here, path=uri, size_bytes=size_bytes, mtime_ns=mtime_ns)
    assert (size_bytes, scenes) == (here.size_bytes, same)


class TakenOver(Sandbox):
    """A sandbox whose child has been taken over by the video."""

    def __init__(self, **lies: Any) -> None:
        super().__init__(Limits(60.0, 2 << 30, 100))
        self.lies = lies

    def call(self, work: Any, *arguments: Any, lasts_s: float = 0.0) -> Any:
        answer = super().call(work, *arguments, lasts_s=lasts_s)
        return replace(answer, **self.lies) if isinstance(answer, Video) else [replace(answer[0], video="another")]


def test_of_a_decoder_no_more_is_believed_than_it_has_to_tell(videos: Path) -> None:
    named = source(videos / "plain.mp4")
    with TakenOver(path="/etc/passwd", caption="red", size_bytes=1, mtime_ns=1, extra='{"aesthetic": 10}') as sandbox:
        video, [scene] = examine(named, "fast", "off", None, sandbox)
    assert video == probe(named, "fast") and scene.video == video.id
    with TakenOver(id="../../../../etc") as sandbox, pytest.raises(BadVideo, match="'../../../../etc' as its id"):
        examine(named, "fast", "off", None, sandbox)


def test_a_file_that_is_bad_is_known_again_and_one_that_is_away_is_not(tmp_path: Path, sandbox: Sandbox) -> None:
    (tmp_path / "words.mp4").write_bytes(b"words")
    bad, gone = source(tmp_path / "words.mp4"), Source(str(tmp_path / "gone.mp4"), "")
    with pytest.raises(BadVideo) as damaged:
        examine(bad, "fast", "off", None, sandbox)
    with pytest.raises(FileNotFoundError) as away:
        examine(gone, "fast", "off", None, sandbox)
    told = why_not(bad, damaged.value)
    assert (told.path, told.stage, told.size_bytes, told.mtime_ns) == (bad.path, "scan", 5, bad.mtime_ns)
    assert told.reason.startswith("damaged or not a video")
    assert why_not(gone, away.value) == Quarantined(gone.path, "scan", "file not found", 1)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied"), "permission to read it is denied"),
        (OSError(5, "Input/output error"), "cannot be read: Input/output error"),
        (OSError("AWS Error NETWORK_CONNECTION"), "cannot be read: AWS Error NETWORK_CONNECTION"),
    ],
)
def test_the_reason_is_plain(error: OSError, reason: str) -> None:
    assert why_not(Source("/a.mp4", "", "{}", 5, 7), error) == Quarantined("/a.mp4", "scan", reason, 1)


def test_what_a_decoder_wrote_is_kept() -> None:
    assert why_not(Source("/a.mp4", ""), BadVideo("crashed", "moov: bad")).stderr == "moov: bad"


def test_of_equal_files_the_first_path_is_kept(videos: Path, tmp_path: Path) -> None:
    for name in ("c.mp4", "b.mp4"):
        (tmp_path / name).write_bytes((videos / "plain.mp4").read_bytes())
    write_mp4(tmp_path / "a.mp4", grey(level=30), 12)
    found = [facts(tmp_path / name) for name in ("c.mp4", "a.mp4", "b.mp4")]
    kept, dropped = drop_duplicates(found)
    assert {one.path for one in kept} == {str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")}
    assert [one.id for one in kept] == sorted(one.id for one in kept)
    c = found[0]
    reason = f"same content as {tmp_path / 'b.mp4'}"
    assert dropped == [Quarantined(c.path, "scan", reason, 1, video=c.id, size_bytes=c.size_bytes, mtime_ns=c.mtime_ns)]
    assert drop_duplicates(found[::-1]) == (kept, dropped)


def test_of_one_file_with_two_captions_the_first_is_kept(videos: Path) -> None:
    red, blue = (replace(facts(videos / "plain.mp4"), caption=caption) for caption in ("red", "blue"))
    kept, (dropped,) = drop_duplicates([red, blue])
    assert (kept, dropped.reason) == ([blue], "named more than once; its first caption is used")
