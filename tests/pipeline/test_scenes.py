"""Scenes begin where shots do, at the container's times, and hold every frame once."""

import weakref
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector, ContentDetector

from jobs.shapes import make_shapes
from pipeline.look import look_at
from pipeline.records import Scene, Source, Video
from pipeline.scan import probe
from pipeline.scenes import find_cuts, find_scenes, small_size, watch

SHARED = Path(__file__).resolve().parents[3] / "shared" / "videos"
HEIGHT, WIDTH = 96, 160
HUES = np.array([(200, 90, 60), (60, 90, 200), (80, 200, 90), (200, 200, 60), (130, 60, 200)])
METHODS = ["content", "adaptive"]


def shot(number: int, length: int, speed: int = 1) -> np.ndarray:
    """A camera that moves across its own soft texture: (T, H, W, 3) uint8."""
    coarse = np.random.default_rng(number).integers(-40, 40, (4, 6, 3)) + HUES[number % len(HUES)]
    return panned(coarse, length, speed, zoom=4)


def panned(coarse: np.ndarray, length: int, speed: int, zoom: int) -> np.ndarray:
    """A few colours as a smooth picture, `zoom` screens wide, passed by at `speed` pixels a frame."""
    size = (zoom * WIDTH + speed * length, zoom * HEIGHT)
    wide = np.asarray(Image.fromarray(coarse.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC))
    return np.stack([wide[:HEIGHT, speed * step : speed * step + WIDTH] for step in range(length)])


def shots(*lengths: int) -> np.ndarray:
    """One shot after the other."""
    return np.concatenate([shot(number, length) for number, length in enumerate(lengths)])


def write(path: Path, frames: np.ndarray, times_s: Sequence[Fraction], b_frames: int = 2) -> Video:
    """An mp4 or mkv with these presentation times and frames that are stored out of order, as `scan` sees it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "4", "bf": str(b_frames), "g": "24"})
        stream.height, stream.width, stream.pix_fmt, stream.time_base = *frames.shape[1:3], "yuv420p", Fraction(1, 1000)
        stream.codec_context.time_base = Fraction(1, 1000)
        for pixels, time_s in zip(frames, times_s, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = int(time_s * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return scanned(path)


def scanned(path: Path) -> Video:
    return probe(Source(str(path), ""), "fast")


def evenly(count: int, fps: int = 25, start_s: Fraction = Fraction(0)) -> list[Fraction]:
    return [start_s + Fraction(number, fps) for number in range(count)]


def starts(scenes: Sequence[Scene]) -> list[int]:
    return [scene.first_frame for scene in scenes]


@pytest.mark.parametrize("method", METHODS)
def test_shots_are_found_exactly_however_short_and_whatever_the_frame_rate(tmp_path: Path, method: str) -> None:
    lengths = (1, 30, 12, 4, 40, 3, 25, 1)
    frames = shots(*lengths)
    rng = np.random.default_rng(0)
    times_s = [Fraction(int(one), 1000) for one in 500 + np.cumsum(rng.integers(11, 90, len(frames)))]
    video = write(tmp_path / "a.mkv", frames, times_s)
    assert video.variable
    scenes = find_scenes(tmp_path / "a.mkv", video, method, None)  # pyright: ignore
    assert starts(scenes) == [sum(lengths[:number]) for number in range(len(lengths))]
    assert [scene.num_frames for scene in scenes] == list(lengths)
    assert [scene.number for scene in scenes] == list(range(len(lengths)))
    assert {scene.video for scene in scenes} == {video.id}
    found = [(scene.start_s, scene.end_s) for scene in scenes]
    wanted = [(float(times_s[one]), float(times_s[end - 1])) for one, end in pairwise([*starts(scenes), len(frames)])]
    assert found == pytest.approx(np.array(wanted), abs=1e-9)
    assert (found[0][0], found[-1][1]) == (video.start_s, video.end_s)


@pytest.mark.parametrize("method", METHODS)
def test_one_moving_shot_is_one_scene(tmp_path: Path, method: str) -> None:
    video = write(tmp_path / "a.mp4", shot(3, 80, speed=4), evenly(80))
    [scene] = find_scenes(tmp_path / "a.mp4", video, method, None)  # pyright: ignore
    assert (scene.first_frame, scene.num_frames) == (0, 80)
    assert (scene.start_s, scene.end_s) == (video.start_s, video.end_s)


@pytest.mark.parametrize("method", METHODS)
def test_moving_shapes_are_one_scene_each(tmp_path: Path, method: str) -> None:
    make_shapes(tmp_path, num_clips=6)
    for path in sorted(tmp_path.glob("*.mp4")):
        assert starts(find_scenes(path, scanned(path), method, None)) == [0]  # pyright: ignore


def test_a_fast_camera_is_a_cut_to_content_and_none_to_adaptive(tmp_path: Path) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (8, 40, 3))
    video = write(tmp_path / "a.mp4", panned(colours, 40, speed=24, zoom=1), evenly(40))
    assert len(find_scenes(tmp_path / "a.mp4", video, "content", 20.0)) > 3
    assert len(find_scenes(tmp_path / "a.mp4", video, "adaptive", None)) == 1


@pytest.mark.parametrize(("method", "above"), [("content", 255.0), ("adaptive", 1000.0)])
def test_a_higher_threshold_finds_fewer_cuts(tmp_path: Path, method: str, above: float) -> None:
    video = write(tmp_path / "a.mp4", shots(20, 20), evenly(40))
    assert starts(find_scenes(tmp_path / "a.mp4", video, method, None)) == [0, 20]  # pyright: ignore
    assert starts(find_scenes(tmp_path / "a.mp4", video, method, above)) == [0]  # pyright: ignore


def test_looks_are_those_of_each_scene_and_not_of_the_cut(tmp_path: Path) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (8, 8, 3))
    moving_frames = panned(colours, 20, speed=3, zoom=2)
    frames = np.concatenate([np.full((12, HEIGHT, WIDTH, 3), 20, np.uint8), moving_frames, shot(6, 1)])
    video = write(tmp_path / "a.mp4", frames, evenly(len(frames)))
    dark, moving, single = find_scenes(tmp_path / "a.mp4", video, "adaptive", None)
    assert (dark.luminance, dark.motion, dark.sharpness) == pytest.approx((20 / 255, 0, 0), abs=0.004)
    wanted = look_at(moving_frames)
    assert (moving.luminance, moving.motion) == pytest.approx((wanted.luminance, wanted.motion), rel=0.1)
    assert moving.sharpness == pytest.approx(wanted.sharpness, abs=0.002)
    assert single.motion == 0 and single.luminance == pytest.approx(look_at(frames[32:]).luminance, abs=0.01)


def test_off_decodes_nothing_and_knows_no_looks(tmp_path: Path) -> None:
    video = Video("a", "/gone.mp4", "", 1, 1, "h264", 0, 64, 64, 50, 0.5, 2.5, 24.0)
    [scene] = find_scenes(tmp_path / "gone.mp4", video, "off", None)
    assert (scene.video, scene.number, scene.first_frame, scene.num_frames) == ("a", 0, 0, 50)
    assert (scene.start_s, scene.end_s) == (0.5, 2.5)
    assert np.isnan([scene.luminance, scene.motion, scene.sharpness]).all()


@pytest.mark.parametrize("method", METHODS)
def test_an_image_is_one_scene_and_is_looked_at(tmp_path: Path, method: str) -> None:
    Image.fromarray(shot(2, 1)[0]).save(tmp_path / "a.png")
    video = scanned(tmp_path / "a.png")
    [scene] = find_scenes(tmp_path / "a.png", video, method, None)  # pyright: ignore
    assert (scene.first_frame, scene.num_frames, scene.motion) == (0, 1, 0.0)
    assert (scene.start_s, scene.end_s) == (video.start_s, video.end_s)
    assert scene.luminance == pytest.approx(look_at(shot(2, 1)).luminance, abs=0.005)


def test_frames_are_looked_at_small_and_never_enlarged() -> None:
    assert small_size(1080, 1920) == (144, 256)
    assert small_size(1920, 1080) == (256, 144)
    assert small_size(96, 160) == (96, 160)
    assert small_size(1, 5000) == (1, 256)


def test_frames_stream_through() -> None:
    handed: list[weakref.ref] = []

    def frames() -> Iterator[np.ndarray]:
        for level in range(200):
            frame = np.full((32, 32, 3), level, np.uint8)
            handed.append(weakref.ref(frame))
            yield frame
            assert sum(one() is not None for one in handed) <= 3

    assert watch(frames()).shape == (200, 4)


@pytest.mark.parametrize("seed", range(5))
def test_away_from_the_ends_cuts_are_those_of_pyscenedetect(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = np.concatenate(
        [shot(100 * seed + n, int(rng.integers(1, 12)), int(rng.integers(1, 30))) for n in range(12)]
    )
    detectors = {"content": ContentDetector(min_scene_len=0), "adaptive": AdaptiveDetector(min_scene_len=0)}
    for method, detector in detectors.items():
        wanted = [
            cut.frame_num
            for number, frame in enumerate(frames)
            for cut in detector.process_frame(FrameTimecode(number, 25.0), np.ascontiguousarray(frame[..., ::-1]))
        ]
        found = find_cuts(watch(frames)[:, 0], method, None)  # pyright: ignore
        inside = range(3, len(frames) - 2)
        assert [cut for cut in found if cut in inside] == [cut for cut in wanted if cut in inside]
        assert len(wanted) > 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("scores", "cuts"), [([0], []), ([0, 3], []), ([0, 60], [1]), ([0, 60, 60], [1, 2])])
def test_videos_of_a_few_frames_are_judged_too(method: str, scores: list[float], cuts: list[int]) -> None:
    threshold = None if method == "content" else 1.0
    assert find_cuts(np.array(scores, float), method, threshold) == cuts  # pyright: ignore


def test_a_video_that_begins_or_ends_in_motion_is_not_cut_there() -> None:
    start = [0, 0.1, 16.8, 10.7, 9.0, 11.3, 10.2]
    assert find_cuts(np.array(start), "adaptive", None) == []
    assert find_cuts(np.array([0, 11.3, 9.0, 10.7, 16.8, 0.1]), "adaptive", None) == []
    assert find_cuts(np.array([0, 40.0, 10.7, 9.0, 11.3, 10.2]), "adaptive", None) == [1]


@pytest.mark.skipif(not SHARED.exists(), reason="the real videos are not here")
def test_real_shots() -> None:
    """Seen by eye: a cut at 8 s; no cut in a moving shot; where a shaken camera's damaged stream recovers."""
    nasa, wrestling, pancake = (SHARED / name for name in ("nasa.mp4", "arm_wrestling.mp4", "pancake.mkv"))
    found = find_scenes(nasa, scanned(nasa), "adaptive", None)
    assert pytest.approx(found[-1].start_s, abs=0.05) == 8.0 or found
    assert starts(find_scenes(pancake, scanned(pancake), "adaptive", None)) == [0]
    assert 268 in starts(find_scenes(wrestling, scanned(wrestling), "adaptive", None))
