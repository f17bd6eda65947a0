"""The frames of a clip are those nearest in presentation time, whoever decodes them, or the video is bad."""

import struct
from collections.abc import Iterable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.filter import Graph

from jobs.mp4 import write_mp4
from pipeline.bucket import cover_size
from pipeline.chunk import SAME_TIME_S
from pipeline.decode import _read_av, _read_decord, decode_clips
from pipeline.errors import BadVideo, Refused
from pipeline.plan import clip_key
from pipeline.records import Clip, Source, Video
from pipeline.scan import presentation_times, probe

CHUNK = 17
SAME = 0.5  # grey levels; decord and FFmpeg's own scale filter were bit-equal


def pictures(count: int, height: int = 96, width: int = 160) -> np.ndarray:
    """Hills in which nothing lies in the middle, and a bar that moves four pixels each frame: no two are alike."""
    rows, columns = np.mgrid[:height, :width]
    hills = 100 + 35 * np.sin(rows / 7) + 35 * np.sin(columns / 9 + 1)
    frames = np.repeat(np.stack([hills, 255 - hills, hills / 2 + rows / 2], axis=-1)[None], count, axis=0)
    for index in range(count):
        left = 4 * index % (width - 8)
        frames[index, :, left : left + 8] = 255 - index % 40 * 2
    return frames.astype(np.uint8)


def write_with(path: Path, ticks: Iterable[int], clock: Fraction, options: dict[str, str], count: int) -> None:
    """An h264 file whose frames are shown at `ticks`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "10", **options})
        stream.height, stream.width, stream.pix_fmt = 96, 160, "yuv420p"
        stream.codec_context.time_base = stream.time_base = clock
        for pixels, tick in zip(pictures(count), ticks, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = tick, clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


UNEVEN = np.cumsum([0, *np.random.default_rng(1).choice([10, 25, 33, 40, 90], 59)]).tolist()


def write_kind(kind: str, path: Path) -> None:
    """60 frames: at 30 fps, at a variable rate, or with three B-frames in a row."""
    if kind == "cfr":
        write_mp4(path, pictures(60), 30)
    elif kind == "vfr":
        write_with(path, UNEVEN, Fraction(1, 1000), {"bf": "0"}, 60)
    else:
        write_with(path, range(60), Fraction(1, 30), {"bf": "3", "b-adapt": "0"}, 60)


@pytest.fixture(scope="module", params=["cfr", "vfr", "b-frames"])
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Video:
    path = tmp_path_factory.mktemp("video") / f"{request.param}.mp4"
    write_kind(request.param, path)
    return probe(Source(str(path), ""))


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Video:
    path = tmp_path_factory.mktemp("steady") / "steady.mp4"
    write_kind("cfr", path)
    return probe(Source(str(path), ""))


def clip_of(video: Video, first_frame: int, num_chunks: int, fps: float, bucket: tuple[int, int]) -> Clip:
    frames, key = num_chunks * CHUNK, clip_key(video.id, first_frame, bucket)
    scene = (video.start_s, video.end_s)
    return Clip(key, "s", video.id, first_frame, num_chunks, frames, frames, fps, *bucket, *scene)


def by_time(video: Video, wanted_s: list[float], bucket: tuple[int, int]) -> np.ndarray:
    """All frames decoded by PyAV, the nearest of each wanted time by its own timestamp, resized and cropped."""
    with av.open(video.path) as container:
        decoded = list(container.decode(container.streams[video.stream]))
    scale = max(bucket[0] / video.height, bucket[1] / video.width)
    height, width = round(video.height * scale), round(video.width * scale)
    top, left = (height - bucket[0]) // 2, (width - bucket[1]) // 2
    chosen = []
    for wanted in wanted_s:
        distances = [abs(float(frame.pts * frame.time_base) - wanted) for frame in decoded]
        nearest = next(n for n, distance in enumerate(distances) if distance <= min(distances) + SAME_TIME_S)
        pixels = scaled(decoded[nearest], height, width)
        chosen.append(pixels[top : top + bucket[0], left : left + bucket[1]])
    return np.stack(chosen)


def scaled(frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
    """What `ffmpeg -vf scale=WIDTH:HEIGHT:flags=bicubic,format=rgb24` makes of a frame."""
    graph = Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    graph.link_nodes(
        source,
        graph.add("scale", f"{width}:{height}:flags=bicubic"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ).configure()
    graph.push(frame)
    return graph.pull().to_ndarray()


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest mean difference of one frame, in grey levels."""
    assert found.shape == wanted.shape and found.dtype == wanted.dtype == np.uint8
    return float(np.abs(found.astype(int) - wanted).mean(axis=(1, 2, 3)).max())


def test_the_oracle_can_tell_frames_and_offsets_apart() -> None:
    frames = pictures(60)
    assert min(difference(frames[[n]], frames[[n + 1]]) for n in range(59)) > 2 * SAME
    assert difference(frames[:1, 1:, :], frames[:1, :-1, :]) > 1.5 * SAME
    assert difference(frames[:1, :, 1:], frames[:1, :, :-1]) > 1.5 * SAME


@pytest.mark.parametrize("fps", [8.0, 24.0])
def test_frames_are_the_nearest_in_time(video: Video, fps: float) -> None:
    clip = clip_of(video, 0, 1, fps, (64, 64))
    ((_, _, frames),) = decode_clips(video, [clip], CHUNK)
    wanted_s = [video.start_s + n / fps for n in range(CHUNK)]
    assert difference(frames, by_time(video, wanted_s, (64, 64))) < SAME


def test_b_frames_are_really_there(tmp_path: Path) -> None:
    write_kind("b-frames", tmp_path / "b.mp4")
    with av.open(str(tmp_path / "b.mp4")) as container:
        stored = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert stored != sorted(stored)


def test_later_clips_and_chunks_begin_where_they_should(video: Video) -> None:
    fps, bucket = 28.0, (48, 80)
    clips = [clip_of(video, 0, 1, fps, bucket), clip_of(video, 17, 2, fps, bucket)]
    found = list(decode_clips(video, clips, CHUNK))
    assert [(clip, number) for clip, number, _ in found] == [(clips[0], 0), (clips[1], 0), (clips[1], 1)]
    for place, (_, _, frames) in enumerate(found):
        wanted_s = [video.start_s + (17 * place + n) / fps for n in range(CHUNK)]
        assert difference(frames, by_time(video, wanted_s, bucket)) < SAME


def test_chunks_come_in_the_order_of_their_frames(steady: Video) -> None:
    clips = [clip_of(steady, first, 1, 30.0, (48, 80)) for first in (34, 0, 17)]
    assert [clip.first_frame for clip, _, _ in decode_clips(steady, clips, CHUNK)] == [0, 17, 34]


def test_a_slot_between_two_frames_repeats_the_nearest(steady: Video) -> None:
    ((_, _, frames),) = decode_clips(steady, [clip_of(steady, 60, 1, 60.0, (48, 80))], CHUNK)
    assert difference(frames, by_time(steady, [(60 + n) / 60 for n in range(CHUNK)], (48, 80))) < SAME
    assert len(np.unique(frames, axis=0)) == 9


@pytest.mark.parametrize("bucket", [(48, 96), (80, 144), (96, 48), (48, 48), (128, 256), (40, 136)])
def test_no_size_is_sheared_or_shifted(steady: Video, bucket: tuple[int, int]) -> None:
    ((_, _, frames),) = decode_clips(steady, [clip_of(steady, 0, 1, 30.0, bucket)], CHUNK)
    assert difference(frames, by_time(steady, [n / 30 for n in range(CHUNK)], bucket)) < SAME


MATRICES = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}  # clockwise


@pytest.mark.parametrize("degrees", MATRICES)
def test_both_readers_give_the_same_upright_frames(steady: Video, tmp_path: Path, degrees: int) -> None:
    content = bytearray(Path(steady.path).read_bytes())
    at = content.index(b"tkhd") + 44  # behind name, version, times, duration, layer and volume
    a, b, c, d = (65536 * one for one in MATRICES[degrees])
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path = tmp_path / "turned.mp4"
    path.write_bytes(content)
    turned = probe(Source(str(path), ""))
    times_s, wanted = presentation_times(path, 0), np.array([0, 1, 5, 17, 18, 59])
    size = cover_size(turned.height, turned.width, (72, 72))
    by_decord = list(_read_decord(path, size, times_s, wanted))
    by_av = list(_read_av(path, 0, size, times_s, wanted))
    assert [index for index, _ in by_decord] == [index for index, _ in by_av] == wanted.tolist()
    frames = np.stack([frame for _, frame in by_av])
    assert difference(np.stack([frame for _, frame in by_decord]), frames) < SAME
    upright = np.rot90(pictures(1)[0], -degrees // 90)
    resized = av.VideoFrame.from_ndarray(np.ascontiguousarray(upright), "rgb24").reformat(size[1], size[0], "rgb24")
    assert difference(frames[:1], resized.to_ndarray()[None]) < 8  # it went through h264


def test_the_first_reader_gives_way_where_it_disagrees_with_the_container(steady: Video) -> None:
    times_s = presentation_times(Path(steady.path), 0)
    for other_s in (times_s[:-1], times_s * 2):
        with pytest.raises(BadVideo):
            list(_read_decord(Path(steady.path), (96, 160), other_s, np.array([0])))


def test_the_other_reader_takes_over_in_a_video_that_starts_late(tmp_path: Path) -> None:
    write_with(tmp_path / "late.mp4", [77 + tick for tick in UNEVEN], Fraction(1, 1000), {"bf": "0"}, 60)
    late = probe(Source(str(tmp_path / "late.mp4"), ""))
    assert late.start_s == pytest.approx(0.077)
    ((_, _, frames),) = decode_clips(late, [clip_of(late, 0, 1, 20.0, (96, 160))], CHUNK)
    assert difference(frames, by_time(late, [late.start_s + n / 20 for n in range(CHUNK)], (96, 160))) < SAME


def test_a_frame_behind_the_last_is_bad(steady: Video) -> None:
    times_s = np.arange(61) / 30
    with pytest.raises(BadVideo, match="60 of 61 frames can be decoded"):
        list(_read_av(Path(steady.path), 0, (96, 160), times_s, np.array([59, 60])))


def decode_all(video: Video, num_chunks: int = 3) -> list[np.ndarray]:
    clips = [clip_of(video, 17 * n, 1, 30.0, (48, 80)) for n in range(num_chunks)]
    return [frames for _, _, frames in decode_clips(video, clips, CHUNK)]


def test_a_file_that_became_shorter_is_bad(steady: Video, tmp_path: Path) -> None:
    write_mp4(tmp_path / "short.mp4", pictures(20), 30)
    with pytest.raises(BadVideo):
        decode_all(replace(steady, path=str(tmp_path / "short.mp4")))


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_file_cut_short_is_bad(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"cut.{ending}"
    write_with(path, range(60), Fraction(1, 30), {}, 60)
    whole = probe(Source(str(path), ""))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadVideo):
        decode_all(whole)


def test_words_in_place_of_a_video_are_bad(steady: Video, tmp_path: Path) -> None:
    (tmp_path / "words.mp4").write_bytes(b"no longer a video " * 99)
    with pytest.raises(BadVideo):
        decode_all(replace(steady, path=str(tmp_path / "words.mp4")))


def test_frames_that_cannot_be_decoded_do_not_shift_the_others(tmp_path: Path) -> None:
    write_with(tmp_path / "whole.mp4", range(60), Fraction(1, 30), {"g": "10", "bf": "0"}, 60)
    with av.open(str(tmp_path / "whole.mp4")) as whole, av.open(str(tmp_path / "cut.mkv"), "w") as cut:
        stream = cut.add_stream_from_template(whole.streams.video[0])
        for number, packet in enumerate(whole.demux(video=0)):
            if number and packet.dts is not None:  # without the key frame that nine others lean on
                packet.stream = stream
                cut.mux(packet)
    video = probe(Source(str(tmp_path / "cut.mkv"), ""))
    with pytest.raises(BadVideo):  # the first chunk wants frames that no decoder has
        decode_all(video, num_chunks=1)


def test_a_vanished_file_stops_the_run(steady: Video, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"gone\.mp4: found by `scan`, now gone"):
        decode_all(replace(steady, path=str(tmp_path / "gone.mp4")))


SHARED = Path(__file__).resolve().parents[2] / "../shared/videos"
BROKEN = {"corrupted.mp4", "mm_test.avi"}  # decord refuses the first or we refuse it, and it has no clock for the other


@pytest.mark.skipif(not SHARED.exists(), reason="the collection of real videos is not here")
@pytest.mark.parametrize("path", sorted(SHARED.glob("*.m*[4kv]")), ids=lambda path: path.name)
@pytest.mark.parametrize("stride", [1, 3])
def test_both_readers_agree_to_the_bit_on_real_videos(path: Path, stride: int) -> None:
    if path.name in BROKEN:
        pytest.skip("only one reader reads it")
    video = probe(Source(str(path), ""))
    times_s = presentation_times(path, video.stream)
    wanted = np.arange(0, len(times_s), stride)
    for size in ((video.height, video.width), (96, 96)):
        by_decord = list(_read_decord(path, size, times_s, wanted))
        by_av = list(_read_av(path, video.stream, size, times_s, wanted))
        assert [index for index, _ in by_decord] == [index for index, _ in by_av] == wanted.tolist()
        assert all(np.array_equal(ours, theirs) for (_, ours), (_, theirs) in zip(by_decord, by_av))
