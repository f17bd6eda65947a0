"""The lines that are told can be pasted: they show exactly the frames that were encoded, and read exactly a member."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.shell_lines import MOST_TERMS, ffmpeg_line, member_lines, runs
from pipeline.decode import decode_clips, find_frames
from pipeline.location import Location
from pipeline.records import Clip, Video
from pipeline.sample import array_bytes
from pipeline.shard import Member, Packed, writing_shard
from tests.object_store import serve_bucket
from tests.pipeline.test_decode import KINDS
from tests.video_files import clip_of, pictures, turn, video_of, write_video

STEADY = (
    "cfr",
    "vfr",
    "b-frames",
    "vfr b-frames",
    "negative",
    "ten bits",
    "gif",
    "clear",
    "grey",
    "edit list",
    "mpeg2",
)
WRITERS: dict[str, Callable[[Path], Path]] = {
    **{name: KINDS[name] for name in STEADY},
    **{f"turned {d}": lambda to, d=d: turn(write_video(to / "a.mp4"), to / "turned.mp4", d) for d in (90, 180, 270)},
    "odd size": lambda to: write_video(to / "odd.mkv", frames=pictures(40, 181, 321), pixels="yuv444p"),
    "wide pixels": lambda to: write_video(to / "wide.mp4", frames=pictures(40, 96, 80), aspect=Fraction(2, 1)),
    "no timestamps": lambda to: write_video(to / "a.avi", bf="3"),
    "equal times": lambda to: write_video(to / "a.mkv", clock=Fraction(1, 3000), bf="0"),
    "slow": lambda to: write_video(to / "slow.mkv", ticks=range(0, 3000, 50), clock=Fraction(1)),
    "odd name": lambda to: write_video(to / "it's $HOME, 50%d\n[x];:'.mp4"),
}


@pytest.fixture
def show(ffmpeg: Path, tmp_path: Path) -> Callable[[Video, Clip], np.ndarray]:
    """The frames of a clip (num_frames, H, W, 3) as its line shows them, each as often as the clip has it."""
    folder = tmp_path / "shown"

    def run(video: Video, clip: Clip) -> np.ndarray:
        folder.mkdir()
        paste(ffmpeg_line(video, clip, find_frames(video, clip)), folder, f"{ffmpeg}:{os.environ['PATH']}")
        return shown_in(folder, video, clip)

    return run


def shown_in(folder: Path, video: Video, clip: Clip) -> np.ndarray:
    """The frames of a clip (num_frames, H, W, 3) out of the PNGs that its line has written."""
    shown = [Image.open(path) for path in sorted(folder.glob(f"{clip.key}-*.png"))]
    assert all(picture.mode == "RGB" for picture in shown)
    _, places = np.unique(find_frames(video, clip).indices, return_inverse=True)
    return np.stack([np.asarray(picture) for picture in shown])[places]


def paste(line: str, folder: Path, path: str | None = None) -> str:
    """What a line prints in a shell; it must not complain."""
    own = str(Path(sys.executable).parent)  # a virtual environment that is perhaps not activated
    environment = {**os.environ, "PATH": os.pathsep.join([path or own, os.environ["PATH"]])}
    done = subprocess.run(["sh", "-c", line], cwd=folder, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, ""), line
    return done.stdout


def encoded(video: Video, clip: Clip) -> np.ndarray:
    return np.concatenate([frames for _, _, frames in decode_clips(video, [clip])])


@pytest.mark.parametrize("kind", WRITERS)
def test_ffmpeg_shows_the_frames_that_are_encoded(kind: str, tmp_path: Path, show) -> None:
    video = video_of(WRITERS[kind](tmp_path))
    clip = clip_of(video, 3, 1, 24.0, (64, 64))
    assert np.array_equal(show(video, clip), encoded(video, clip))


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Video:
    return video_of(write_video(tmp_path_factory.mktemp("steady") / "a.mp4"))


@pytest.mark.parametrize("bucket", [(48, 96), (96, 48), (40, 136), (128, 256)])
def test_it_does_so_at_every_size(steady: Video, bucket: tuple[int, int], show) -> None:
    clip = clip_of(steady, 17, 2, 28.0, bucket)
    assert np.array_equal(show(steady, clip), encoded(steady, clip))


def test_padding_is_the_last_frame_again(steady: Video, show) -> None:
    clip = replace(clip_of(steady, 26, 2, 30.0, (48, 80)), valid_frames=20)
    shown = show(steady, clip)
    assert np.array_equal(shown, encoded(steady, clip)) and (shown[20:] == shown[19]).all()


def test_frames_of_other_scenes_are_not_shown(steady: Video, show) -> None:
    start_s, end_s = 20 / 30, 36 / 30
    clip = replace(clip_of(steady, 18, 1, 30.0, (48, 80)), scene_start_s=start_s, scene_end_s=end_s)
    assert find_frames(steady, clip).indices.tolist() == [20, 20, *range(20, 35)]
    assert np.array_equal(show(steady, clip), encoded(steady, clip))


def test_frames_that_are_shown_for_longer_come_again(steady: Video, show) -> None:
    clip = clip_of(steady, 60, 1, 60.0, (48, 80))
    assert len(np.unique(find_frames(steady, clip).indices)) == 9
    assert np.array_equal(show(steady, clip), encoded(steady, clip))


@pytest.mark.parametrize("name", ["a.png", "a%03d.png", "a.jpg"])
def test_an_image_is_shown_whatever_its_name(name: str, tmp_path: Path, show) -> None:
    Image.fromarray(pictures(1, 100, 120)[0]).save(tmp_path / name)
    video = video_of(tmp_path / name)
    clip = replace(clip_of(video, 0, 1, 120.0, (64, 64)), num_frames=1, valid_frames=1)
    assert np.array_equal(show(video, clip), encoded(video, clip))


def test_as_many_frames_as_one_likes_can_be_told(tmp_path: Path, show) -> None:
    video = video_of(write_video(tmp_path / "long.mkv", "ffv1", pictures(600, 16, 16), pixels="yuv420p"))
    clip = clip_of(video, 0, 15, 13.0, (16, 16))
    assert len(runs(np.unique(find_frames(video, clip).indices))) > 4 * MOST_TERMS
    assert np.array_equal(show(video, clip), encoded(video, clip))


def test_a_video_in_an_object_store_is_read_where_it_was_copied_to(steady: Video, tmp_path: Path, ffmpeg: Path) -> None:
    clip = clip_of(steady, 0, 1, 30.0, (64, 64))
    line = ffmpeg_line(replace(steady, path="s3://bucket/some/where.mp4"), clip, find_frames(steady, clip))
    (tmp_path / "where.mp4").write_bytes(Path(steady.path).read_bytes())
    paste(line, tmp_path, f"{ffmpeg}:{os.environ['PATH']}")
    assert len(list(tmp_path.glob("*.png"))) == 17


SHARED = Path(__file__).resolve().parents[2] / "../shared/videos"
REAL = ["rotated_90.mov", "unordered.mov", "mm_test.avi", "h265_10bits.mp4", "pancake.mkv"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the collection of real videos is not here")
@pytest.mark.parametrize("name", REAL)
def test_real_videos_are_shown_as_they_are_encoded(name: str, show) -> None:
    video = video_of(SHARED / name)
    clip = clip_of(video, 3, 2, min(8.0, video.fps), (64, 96))
    assert np.array_equal(show(video, clip), encoded(video, clip))


@pytest.mark.parametrize(
    ("numbers", "found"),
    [([4], [(4, 4)]), ([0, 1, 2], [(0, 2)]), ([0, 2, 3, 7, 9], [(0, 0), (2, 3), (7, 7), (9, 9)])],
)
def test_runs_have_no_gaps(numbers: list[int], found: list[tuple[int, int]]) -> None:
    assert runs(numbers) == found


def test_a_member_is_read_by_every_line(tmp_path: Path) -> None:
    column, arrays = tmp_path / "a column's", [np.full((2, 3, n), n, np.float16) for n in (1, 400, 7)]
    with writing_shard(column, "64x64/0000-000000") as tar:
        wheres = [tar.add(Packed(f"k{n}", {"latent.npy": array_bytes(one)})) for n, one in enumerate(arrays)]
    path = column / "64x64/0000-000000.tar"
    *unpacking, python = member_lines(path, "k1.latent.npy", wheres[1]["latent.npy"])
    assert len(unpacking) == 2
    for number, line in enumerate(unpacking):
        folder = tmp_path / str(number)
        folder.mkdir()
        paste(line, folder)
        assert [one.name for one in folder.iterdir()] == ["k1.latent.npy"]
        assert np.array_equal(np.load(folder / "k1.latent.npy"), arrays[1])
    assert paste(python, Path.cwd()) == "(2, 3, 400)\n"


def test_a_member_in_an_object_store_is_read_by_its_range() -> None:
    content = array_bytes(np.zeros((5, 4), np.float16))
    with serve_bucket() as bucket:
        place = Location.of(bucket.put("latents/a.tar", b"before" + content + b"behind"))
        where = Member(6, len(content), crc32c=0)
        [python] = member_lines(place, "k.latent.npy", where)
        assert paste(python, Path.cwd()) == "(5, 4)\n"
