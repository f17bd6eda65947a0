"""The frames of a clip are those nearest in presentation time, whoever decodes them, or the video is bad."""

import os
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from jobs.mp4 import write_mp4
from pipeline.av_reader import read_av
from pipeline.bucket import cover_size
from pipeline.chunk import SAME_TIME_S
from pipeline.container import Clock, read_clock
from pipeline.decode import decode_clips, read_frames
from pipeline.decord_reader import read_decord
from pipeline.errors import BadVideo, Refused
from pipeline.records import Clip, Video
from tests.video_files import (
    CHUNK,
    clip_of,
    copy_packets,
    cut_by_edit_list,
    decoded,
    harm,
    pictures,
    scaled,
    stored,
    textured,
    time_of,
    turn,
    video_of,
    write_video,
)

SAME = 0.5  # grey levels; decord and FFmpeg's own scale filter were bit-equal
UNEVEN = np.cumsum([0, *np.random.default_rng(1).choice([10, 25, 33, 40, 90], 59)]).tolist()
MS = Fraction(1, 1000)
KINDS: dict[str, Callable[[Path], Path]] = {
    "cfr": lambda folder: write_video(folder / "cfr.mp4"),
    "vfr": lambda folder: write_video(folder / "vfr.mp4", ticks=UNEVEN, clock=MS, bf="0"),
    "b-frames": lambda folder: write_video(folder / "b.mp4", bf="3", b_adapt="0"),
    "vfr b-frames": lambda folder: write_video(folder / "both.mkv", ticks=UNEVEN, clock=MS, bf="3", b_adapt="0"),
    "late": lambda folder: write_video(folder / "late.mp4", ticks=[77 + t for t in UNEVEN], clock=MS, bf="0"),
    "negative": lambda folder: write_video(folder / "negative.ts", ticks=[t - 200 for t in UNEVEN], clock=MS),
    "hevc": lambda folder: write_video(folder / "hevc.mp4", "libx265"),
    "vp9": lambda folder: write_video(folder / "vp9.webm", "libvpx-vp9", deadline="realtime", cpu_used="8"),
    "av1": lambda folder: write_video(folder / "av1.mkv", "libsvtav1", preset="12"),
    "prores": lambda folder: write_video(folder / "prores.mov", "prores_ks", pixels="yuv422p10le"),
    "ten bits": lambda folder: write_video(folder / "ten.mp4", "libx265", pixels="yuv420p10le"),
    "gif": lambda folder: write_video(folder / "a.gif", "gif", pixels="rgb8", clock=Fraction(1, 20)),
    "mpeg2": lambda folder: write_video(folder / "a.ts", "mpeg2video", bf="2", b="4000k"),
    "grey": lambda folder: write_video(folder / "grey.mkv", "ffv1", pixels="gray"),
    "clear": lambda folder: write_video(folder / "clear.mov", "png", pixels="rgba"),
    "edit list": lambda folder: cut_by_edit_list(
        write_video(folder / "whole.mp4", g="20"), folder / "cut.mp4", 0.5, 1.2, 15360
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Video:
    return video_of(KINDS[request.param](tmp_path_factory.mktemp("video")))


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Video:
    path = tmp_path_factory.mktemp("steady") / "steady.mp4"
    write_mp4(path, pictures(60), 30)
    return video_of(path)


def by_time(video: Video, wanted_s: list[float], bucket: tuple[int, int]) -> np.ndarray:
    """All frames decoded by PyAV, the nearest of each wanted time by its own timestamp, resized and cropped."""
    scale = max(bucket[0] / video.height, bucket[1] / video.width)
    height, width = round(video.height * scale), round(video.width * scale)
    top, left = (height - bucket[0]) // 2, (width - bucket[1]) // 2
    frames, chosen = decoded(Path(video.path), video.stream), []
    for wanted in wanted_s:
        distances = [abs(time_of(frame) - wanted) for frame in frames]
        nearest = next(n for n, distance in enumerate(distances) if distance <= min(distances) + SAME_TIME_S)
        pixels = scaled(frames[nearest], height, width)
        chosen.append(pixels[top : top + bucket[0], left : left + bucket[1]])
    return np.stack(chosen)


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest mean difference of one frame, in grey levels."""
    assert found.shape == wanted.shape and found.dtype == wanted.dtype == np.uint8
    return float(np.abs(found.astype(int) - wanted).mean(axis=(1, 2, 3)).max())


def frames_of(video: Video, *clips: Clip) -> np.ndarray:
    return np.concatenate([frames for _, _, frames in decode_clips(video, clips)])


def test_the_oracle_can_tell_frames_and_offsets_apart() -> None:
    frames = pictures(60)
    assert min(difference(frames[[n]], frames[[n + 1]]) for n in range(59)) > 2 * SAME
    assert difference(frames[:1, 1:, :], frames[:1, :-1, :]) > 1.5 * SAME
    assert difference(frames[:1, :, 1:], frames[:1, :, :-1]) > 1.5 * SAME


@pytest.mark.parametrize("fps", [8.0, 24.0])
def test_frames_are_the_nearest_in_time(video: Video, fps: float) -> None:
    frames = frames_of(video, clip_of(video, 0, 1, fps, (64, 64)))
    wanted_s = [video.start_s + n / fps for n in range(CHUNK)]
    assert difference(frames, by_time(video, wanted_s, (64, 64))) < SAME


def test_every_frame_is_read_in_its_order(video: Video) -> None:
    frames = np.stack(list(read_frames(Path(video.path), video, (48, 80))))
    wanted = np.stack([scaled(frame, 48, 80) for frame in decoded(Path(video.path))])
    assert len(frames) == video.num_frames
    assert difference(frames, wanted) < SAME


def test_b_frames_are_really_there(tmp_path: Path) -> None:
    order = [packet.pts or 0 for packet in stored(KINDS["b-frames"](tmp_path))]
    assert order != sorted(order)


def test_frames_of_the_same_time_are_read_in_their_order(tmp_path: Path) -> None:
    video = video_of(write_video(tmp_path / "a.mkv", clock=Fraction(1, 3000), bf="0"))  # which rounds to 1/1000 s
    assert len(set(read_clock(Path(video.path), 0).times_s)) < 60
    frames = np.stack([frame for _, frame in read_av(Path(video.path), 0, "h264", (48, 80), *every(video))])
    assert difference(frames, np.stack([scaled(frame, 48, 80) for frame in decoded(Path(video.path))])) < SAME


def every(video: Video) -> tuple[Clock, np.ndarray]:
    return read_clock(Path(video.path), video.stream), np.arange(video.num_frames)


def test_an_avi_is_read_in_its_order(tmp_path: Path) -> None:
    video = video_of(write_video(tmp_path / "a.avi", "libx264", bf="3", crf="10"))
    frames = np.stack(list(read_frames(Path(video.path), video, (96, 160))))
    assert difference(frames, pictures(60)) < 8  # it went through h264
    assert difference(frames[1:], pictures(60)[:-1]) > 8


def test_later_clips_and_chunks_begin_where_they_should(steady: Video) -> None:
    fps, bucket = 28.0, (48, 80)
    clips = [clip_of(steady, 0, 1, fps, bucket), clip_of(steady, 17, 2, fps, bucket)]
    found = list(decode_clips(steady, clips))
    assert [(clip, number) for clip, number, _ in found] == [(clips[0], 0), (clips[1], 0), (clips[1], 1)]
    for place, (_, _, frames) in enumerate(found):
        wanted_s = [steady.start_s + (17 * place + n) / fps for n in range(CHUNK)]
        assert difference(frames, by_time(steady, wanted_s, bucket)) < SAME


def test_chunks_come_in_the_order_of_their_frames(steady: Video) -> None:
    clips = [clip_of(steady, first, 1, 30.0, (48, 80)) for first in (34, 0, 17)]
    assert [clip.first_frame for clip, _, _ in decode_clips(steady, clips)] == [0, 17, 34]


def test_a_slot_between_two_frames_repeats_the_nearest(steady: Video) -> None:
    frames = frames_of(steady, clip_of(steady, 60, 1, 60.0, (48, 80)))
    assert difference(frames, by_time(steady, [(60 + n) / 60 for n in range(CHUNK)], (48, 80))) < SAME
    assert len(np.unique(frames, axis=0)) == 9


def test_padding_repeats_the_last_frame_that_is_wanted(steady: Video) -> None:
    whole = clip_of(steady, 26, 2, 30.0, (48, 80))
    padded = frames_of(steady, replace(whole, valid_frames=20))
    assert np.array_equal(padded[:20], frames_of(steady, whole)[:20])
    assert (padded[20:] == padded[19]).all() and not np.array_equal(padded[18], padded[19])


@pytest.mark.parametrize(("first", "edge"), [(18, 20), (22, 36)])
def test_no_frame_of_another_scene_is_taken(steady: Video, first: int, edge: int) -> None:
    start_s, end_s = read_clock(Path(steady.path), 0).times_s[[20, 36]]
    clip = clip_of(steady, first, 1, 30.0, (48, 80))
    frames = frames_of(steady, replace(clip, scene_start_s=start_s, scene_end_s=end_s))
    wanted_s = [min(max(first + n, 20), 36) / 30 for n in range(CHUNK)]
    assert difference(frames, by_time(steady, wanted_s, (48, 80))) < SAME
    outside = [0, 1] if edge == 20 else [15, 16]
    assert not any(np.array_equal(frames_of(steady, clip)[n], frames[n]) for n in outside)


def test_clips_that_overlap_get_their_frames_both(steady: Video) -> None:
    clips = [clip_of(steady, 0, 3, 30.0, (48, 80)), clip_of(steady, 26, 2, 30.0, (48, 80))]
    found = list(decode_clips(steady, clips))
    assert [(clip.first_frame, number) for clip, number, _ in found] == [(0, 0), (0, 1), (0, 2), (26, 0), (26, 1)]
    for clip, number, frames in found:
        alone = frames_of(steady, clip_of(steady, clip.first_frame + 17 * number, 1, 30.0, (48, 80)))
        assert np.array_equal(frames, alone)


def test_an_image_is_a_chunk_of_one_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.gif", "gif", pictures(1), pixels="rgb8")
    image = video_of(path)
    clip = replace(clip_of(image, 0, 1, 120.0, (48, 80)), num_frames=1, valid_frames=1)
    assert frames_of(image, clip).shape == (1, 48, 80, 3)


@pytest.mark.parametrize("bucket", [(48, 96), (80, 144), (96, 48), (48, 48), (128, 256), (40, 136)])
def test_no_size_is_sheared_or_shifted(steady: Video, bucket: tuple[int, int]) -> None:
    frames = frames_of(steady, clip_of(steady, 0, 1, 30.0, bucket))
    assert difference(frames, by_time(steady, [n / 30 for n in range(CHUNK)], bucket)) < SAME


def test_an_odd_size_is_neither(tmp_path: Path) -> None:
    odd = video_of(write_video(tmp_path / "odd.mkv", frames=pictures(20, 181, 321), pixels="yuv444p"))
    frames = frames_of(odd, clip_of(odd, 0, 1, 30.0, (96, 160)))
    assert difference(frames, by_time(odd, [n / 30 for n in range(CHUNK)], (96, 160))) < SAME


@pytest.mark.parametrize("degrees", [0, 90])
def test_wide_pixels_are_spread(tmp_path: Path, degrees: int) -> None:
    wide = write_video(tmp_path / "wide.mp4", frames=pictures(17, 96, 80), aspect=Fraction(2, 1), crf="10")
    video = video_of(turn(wide, tmp_path / "turned.mp4", degrees))
    frames = frames_of(video, clip_of(video, 0, 1, 30.0, (96, 160) if degrees == 0 else (160, 96)))
    spread = scaled(decoded(wide)[0], 96, 160)
    assert difference(frames[:1], np.rot90(spread, -degrees // 90)[None]) < 3


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_both_readers_give_the_same_upright_frames(steady: Video, tmp_path: Path, degrees: int) -> None:
    turned = video_of(turn(Path(steady.path), tmp_path / "turned.mp4", degrees))
    path, wanted = Path(turned.path), np.array([0, 1, 5, 17, 18, 59])
    clock, size = read_clock(path, 0), cover_size(turned.height, turned.width, (72, 72))
    by_decord = list(read_decord(path, size, clock, wanted))
    by_av = list(read_av(path, 0, "h264", size, clock, wanted))
    assert [index for index, _ in by_decord] == [index for index, _ in by_av] == wanted.tolist()
    frames = np.stack([frame for _, frame in by_av])
    assert difference(np.stack([frame for _, frame in by_decord]), frames) < SAME
    upright = np.rot90(pictures(1)[0], -degrees // 90)
    resized = av.VideoFrame.from_ndarray(np.ascontiguousarray(upright), "rgb24").reformat(size[1], size[0], "rgb24")
    assert difference(frames[:1], resized.to_ndarray()[None]) < 8  # it went through h264


def test_another_file_under_the_same_name_is_bad(steady: Video, tmp_path: Path) -> None:
    write_mp4(tmp_path / "short.mp4", pictures(20), 30)
    with pytest.raises(
        BadVideo, match=r"^changed since `scan`: found \d+ bytes, 20 frames .*, the manifest says .* 60 f"
    ):
        frames_of(replace(steady, path=str(tmp_path / "short.mp4")), clip_of(steady, 0, 1, 30.0, (48, 80)))


def test_a_new_date_alone_is_no_other_file(steady: Video, tmp_path: Path) -> None:
    (tmp_path / "same.mp4").write_bytes(Path(steady.path).read_bytes())
    os.utime(tmp_path / "same.mp4", (1, 1))
    clip = clip_of(steady, 0, 1, 30.0, (48, 80))
    assert np.array_equal(frames_of(replace(steady, path=str(tmp_path / "same.mp4")), clip), frames_of(steady, clip))


def test_other_content_of_the_same_size_and_times_is_bad(steady: Video, tmp_path: Path) -> None:
    content = bytearray(Path(steady.path).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "other.mp4").write_bytes(content)
    with pytest.raises(BadVideo, match="^changed since `scan`: of the same size and length, but other content"):
        frames_of(replace(steady, path=str(tmp_path / "other.mp4")), clip_of(steady, 0, 1, 30.0, (48, 80)))


def test_a_scene_without_frames_is_bad(steady: Video) -> None:
    clip = replace(clip_of(steady, 0, 1, 30.0, (48, 80)), scene_start_s=99.0, scene_end_s=100.0)
    with pytest.raises(BadVideo, match=r"^changed since `scan`: no frame from 99 to 100 s$"):
        frames_of(steady, clip)


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_file_cut_short_is_bad(tmp_path: Path, ending: str) -> None:
    path = write_video(tmp_path / f"cut.{ending}")
    whole = video_of(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadVideo):
        frames_of(whole, clip_of(whole, 0, 1, 30.0, (48, 80)))


def test_frames_that_cannot_be_decoded_do_not_shift_the_others(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", g="10", bf="0")
    video = video_of(copy_packets(whole, tmp_path / "cut.mkv", [*range(20), *range(21, 60)]))  # without a key frame
    assert len(frames_of(video, clip_of(video, 0, 1, 30.0, (48, 80)))) == CHUNK
    with pytest.raises(BadVideo, match="^damaged: "):
        frames_of(video, clip_of(video, 17, 1, 30.0, (48, 80)))


@pytest.mark.parametrize("kind", ["a.mp4 libx264", "a.mkv libx264", "a.mp4 libx265", "a.mkv libx265"])
def test_a_hole_of_zeros_is_bad_wherever_it_lies(tmp_path: Path, kind: str) -> None:
    name, codec = kind.split()
    path = write_video(tmp_path / name, codec, textured(30))
    whole, content = video_of(path), path.read_bytes()
    list(read_frames(path, whole, (48, 80)))
    for number in range(1, 30):
        path.write_bytes(content)
        harm(path, number, "zeroed")
        with pytest.raises(BadVideo, match=r"^damaged: frame \d+ of 30 is partly zeros$"):
            list(read_frames(path, whole, (48, 80)))


def test_a_hole_behind_the_frames_that_are_wanted_does_no_harm(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=textured(30), bf="0")
    harm(path, 25, "zeroed")
    video = video_of(path)
    assert len(frames_of(video, clip_of(video, 0, 1, 30.0, (48, 80)))) == CHUNK


def test_a_vanished_file_stops_the_run(steady: Video, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"gone\.mp4: found by `scan`, now gone"):
        frames_of(replace(steady, path=str(tmp_path / "gone.mp4")), clip_of(steady, 0, 1, 30.0, (48, 80)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_stops_the_run(steady: Video, tmp_path: Path) -> None:
    (tmp_path / "locked.mp4").write_bytes(Path(steady.path).read_bytes())
    (tmp_path / "locked.mp4").chmod(0)
    with pytest.raises(Refused, match=r"locked\.mp4: read by `scan`, now denied"):
        frames_of(replace(steady, path=str(tmp_path / "locked.mp4")), clip_of(steady, 0, 1, 30.0, (48, 80)))


SHARED = Path(__file__).resolve().parents[2] / "../shared/videos"
REAL = [path for path in sorted(SHARED.glob("*.*")) if path.suffix != ".md"]


@pytest.mark.skipif(not REAL, reason="the collection of real videos is not here")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_videos_give_all_their_frames_or_are_bad(path: Path) -> None:
    video = video_of(path)
    if path.name == "corrupted.mp4":
        with pytest.raises(BadVideo, match=r"^damaged: \d+ of 50 frames can be decoded"):
            list(read_frames(path, video, (96, 96)))
        return
    frames = np.stack(list(read_frames(path, video, (96, 96))))
    assert len(frames) == video.num_frames
    if not video.rotation:
        wanted = np.stack([scaled(frame, 96, 96) for frame in decoded(path, video.stream)])
        assert difference(frames, wanted) == 0


@pytest.mark.skipif(not REAL, reason="the collection of real videos is not here")
@pytest.mark.parametrize("name", ["arm_wrestling.mp4", "nasa.mp4", "pancake.mkv", "av1_video.mkv", "rotated_90.mov"])
def test_both_readers_agree_to_the_bit_on_real_videos(name: str) -> None:
    path = SHARED / name
    video = video_of(path)
    clock = read_clock(path, video.stream)
    for size, stride in (((video.height, video.width), 3), ((96, 96), 1)):
        wanted = np.arange(0, len(clock.times_s), stride)
        by_decord = list(read_decord(path, size, clock, wanted))
        by_av = list(read_av(path, video.stream, video.codec, size, clock, wanted))
        assert [index for index, _ in by_decord] == [index for index, _ in by_av] == wanted.tolist()
        assert all(np.array_equal(ours, theirs) for (_, ours), (_, theirs) in zip(by_decord, by_av, strict=True))
