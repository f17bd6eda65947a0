"""The clock is the one by which decoded frames are shown, and facts are what a player would say; the rest is bad."""

import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext

from pipeline.container import FOLLOWING, MAX_PIXELS, read_clock, read_facts
from pipeline.errors import BadVideo
from tests.video_files import copy_packets, cut_by_edit_list, decoded, pictures, shown_at, stored, turn, write_video

UNEVEN = np.cumsum([0, *np.random.default_rng(1).choice([10, 25, 33, 40, 90], 59)]).tolist()
MS = Fraction(1, 1000)
OPEN_GROUPS = "log-level=none:open-gop=1:keyint=15:bframes=4"


KINDS = {
    "plain.mp4": {"bf": "0"},
    "b-frames.mp4": {"bf": "3", "b_adapt": "0"},
    "b-frames.ts": {"bf": "3", "b_adapt": "0"},
    "b-frames.mkv": {"bf": "3", "b_adapt": "0"},
    "vfr.mp4": {"ticks": UNEVEN, "clock": MS, "bf": "3"},
    "vfr.mkv": {"ticks": UNEVEN, "clock": MS, "bf": "3"},
    "late.mp4": {"ticks": [500 + tick for tick in UNEVEN], "clock": MS},
    "negative.mp4": {"ticks": [tick - 200 for tick in UNEVEN], "clock": MS, "bf": "0"},
    "negative.ts": {"ticks": [tick - 200 for tick in UNEVEN], "clock": MS, "bf": "2"},
    "twice.mkv": {"ticks": range(60), "clock": Fraction(1, 3000), "bf": "0"},
    "open.mkv": {"codec": "libx265", "x265_params": OPEN_GROUPS},
    "vp9.webm": {"codec": "libvpx-vp9", "deadline": "realtime", "cpu_used": "8"},
    "hidden.webm": {"codec": "libvpx-vp9", "auto_alt_ref": "1", "lag_in_frames": "19", "cpu_used": "5", "b": "200k"},
    "av1.mp4": {"codec": "libsvtav1", "preset": "12"},
    "prores.mov": {"codec": "prores_ks", "pixels": "yuv422p10le"},
    "gif.gif": {"codec": "gif", "pixels": "rgb8", "clock": Fraction(1, 10)},
    "mpeg2.mpg": {"codec": "mpeg2video", "bf": "2"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_clock_is_that_of_the_decoded_frames(tmp_path: Path, kind: str) -> None:
    path = write_video(tmp_path / kind, **KINDS[kind])
    clock = read_clock(path, 0)
    assert clock.times_s.tolist() == shown_at(path)
    assert clock.stamped
    assert clock.keys.tolist() == [frame.key_frame for frame in decoded(path)]


@pytest.mark.parametrize("first", [0, 10, 25])
def test_what_an_edit_list_cuts_is_not_shown(tmp_path: Path, first: int) -> None:
    whole = write_video(tmp_path / "whole.mp4", bf="3", g="20")
    ticks = stored(whole)[0].time_base.denominator
    path = cut_by_edit_list(whole, tmp_path / "cut.mp4", first / 30, 1.0, ticks)
    times_s = read_clock(path, 0).times_s
    assert times_s.tolist() == shown_at(path)
    assert len(times_s) == pytest.approx(30, abs=1) and times_s[0] == 0
    assert any(packet.is_discard for packet in stored(path))


def test_frames_that_lean_on_what_was_cut_away_are_not_shown(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", "libx265", x265_params=OPEN_GROUPS)
    third = [number for number, packet in enumerate(stored(whole)) if packet.is_keyframe][2]
    path = copy_packets(whole, tmp_path / "cut.mkv", range(third, 60))
    times_s = read_clock(path, 0).times_s
    assert len(times_s) < 60 - third  # its open group has frames before its key frame
    assert times_s.tolist() == shown_at(path)


def test_an_avi_has_an_order_and_no_times(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", "libx264", bf="3")
    clock = read_clock(path, 0)
    told = shown_at(path)
    assert told != sorted(told)  # which is why they are not believed
    assert not clock.stamped
    assert np.diff(clock.times_s) == pytest.approx(np.full(59, 1 / 30))


def test_a_stream_without_times_is_bad(tmp_path: Path) -> None:
    path = write_video(tmp_path / "raw.h264", container="h264")
    with pytest.raises(BadVideo, match=r"^no timestamps: 60 of 60 frames do not say when they are shown$"):
        read_facts(path)


def test_frames_at_one_time_are_bad(tmp_path: Path) -> None:
    path = write_video(tmp_path / "still.mkv", ticks=[0, 1, 2], clock=Fraction(1, 30000), frames=pictures(3), bf="0")
    with pytest.raises(BadVideo, match=r"^3 frames, all at the same time$"):
        read_facts(path)


def test_a_stream_that_is_not_there_is_bad(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=pictures(2))
    with pytest.raises(BadVideo, match=r"^changed since `scan`: its stream 1 is no video, or gone$"):
        read_clock(path, 1)


def test_facts_of_a_plain_video(tmp_path: Path) -> None:
    facts = read_facts(write_video(tmp_path / "a.mp4"))
    assert (facts.codec, facts.stream, facts.height, facts.width) == ("h264", 0, 96, 160)
    assert (facts.num_frames, facts.start_s, facts.fps, facts.variable) == (60, 0.0, 30.0, False)
    assert facts.end_s == pytest.approx(59 / 30) and facts.duration_s == pytest.approx(2.0)
    assert (facts.rotation, facts.pixel_aspect, facts.bit_depth) == (0, 1.0, 8)


@pytest.mark.parametrize(
    ("kind", "codec", "bits"),
    [("vp9.webm", "vp9", 8), ("av1.mp4", "av1", 8), ("open.mkv", "hevc", 8), ("prores.mov", "prores", 10)],
)
def test_codecs_have_their_own_names(tmp_path: Path, kind: str, codec: str, bits: int) -> None:
    facts = read_facts(write_video(tmp_path / kind, **KINDS[kind]))
    assert (facts.codec, facts.bit_depth) == (codec, bits)


@pytest.mark.parametrize(("ending", "uneven"), [("mkv", False), ("mp4", False), ("mkv", True), ("mp4", True)])
def test_rounding_to_milliseconds_is_no_variable_rate(tmp_path: Path, ending: str, uneven: bool) -> None:
    ticks: dict[str, Any] = {"ticks": UNEVEN, "clock": MS} if uneven else {"clock": Fraction(1001, 30000)}
    facts = read_facts(write_video(tmp_path / f"a.{ending}", **ticks))
    assert facts.variable is uneven
    assert uneven or facts.fps == pytest.approx(30000 / 1001, rel=1e-3)


@pytest.mark.parametrize(("degrees", "rotation"), [(0, 0), (90, 270), (180, 180), (270, 90)])
def test_a_quarter_turn_swaps_height_and_width(tmp_path: Path, degrees: int, rotation: int) -> None:
    facts = read_facts(turn(write_video(tmp_path / "a.mp4", frames=pictures(3)), tmp_path / "b.mp4", degrees))
    assert facts.rotation == rotation
    assert (facts.height, facts.width) == ((160, 96) if degrees % 180 else (96, 160))


def test_wide_pixels_make_a_wide_picture_also_when_it_is_turned(tmp_path: Path) -> None:
    wide = write_video(tmp_path / "a.mp4", frames=pictures(3), aspect=Fraction(4, 3))
    facts = read_facts(wide)
    assert (facts.height, facts.width) == (96, 213) and facts.pixel_aspect == pytest.approx(4 / 3)
    facts = read_facts(turn(wide, tmp_path / "b.mp4", 90))
    assert (facts.height, facts.width) == (213, 96)


def test_odd_sizes_are_what_they_are(tmp_path: Path) -> None:
    facts = read_facts(write_video(tmp_path / "a.mkv", frames=pictures(2, 181, 321), pixels="yuv444p"))
    assert (facts.height, facts.width) == (181, 321)


IMAGES = {
    "a.png": ("png", "rgb24"),
    "a.jpg": ("mjpeg", "yuvj420p"),
    "a.bmp": ("bmp", "bgr24"),
    "a.webp": ("libwebp", "yuv420p"),
    "grey.png": ("png", "gray"),
    "clear.png": ("png", "rgba"),
    "deep.png": ("png", "rgb48be"),
}


def write_image(path: Path, codec: str, pixels: str, height: int = 96, width: int = 160) -> Path:
    """One image; not through a container's writer, which would take `%d` for a number."""
    encoder = av.CodecContext.create(codec, "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.height, encoder.width, encoder.pix_fmt, encoder.time_base = height, width, pixels, Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(pictures(1, height, width)[0], format="rgb24").reformat(format=pixels)
    path.write_bytes(b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)]))
    return path


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_one_frame_at_time_zero(tmp_path: Path, name: str) -> None:
    facts = read_facts(write_image(tmp_path / name, *IMAGES[name]))
    assert (facts.height, facts.width, facts.num_frames) == (96, 160, 1)
    assert (facts.start_s, facts.end_s, facts.fps, facts.duration_s) == (0.0, 0.0, 1.0, 0.0)
    assert facts.bit_depth == (16 if name == "deep.png" else 8)


def test_a_gif_of_one_frame_is_an_image(tmp_path: Path) -> None:
    facts = read_facts(write_video(tmp_path / "a.gif", "gif", pictures(1), pixels="rgb8"))
    assert (facts.num_frames, facts.start_s, facts.duration_s) == (1, 0.0, 0.0)


def test_a_percent_sign_in_a_name_is_not_a_sequence(tmp_path: Path) -> None:
    write_image(tmp_path / "a1.png", "png", "rgb24")
    facts = read_facts(write_image(tmp_path / "a%d.png", "png", "rgb24", 48, 64))
    assert (facts.height, facts.width) == (48, 64)


def write_sound(path: Path, cover: bool) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.height, picture.width, picture.pix_fmt = 48, 64, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pictures(1, 48, 64)[0], format="rgb24")))
        for start in range(0, 8192, 1024):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 8000, start
            container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("cover", "found"), [(False, "audio"), (True, "a cover picture")])
def test_sound_is_no_video_with_a_cover_or_without(tmp_path: Path, cover: bool, found: str) -> None:
    with pytest.raises(BadVideo, match=f"^no video stream; found {found}$"):
        read_facts(write_sound(tmp_path / "a.mp4", cover))


def test_a_video_without_frames_is_bad(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "none.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.height, stream.width, stream.pix_fmt = 96, 160, "yuv420p"
        container.start_encoding()
    with pytest.raises(BadVideo, match="^no frame of it can be decoded$"):
        read_facts(tmp_path / "none.mkv")


@pytest.mark.parametrize("content", [b"", b"these are words, not a video " * 50, b"#EXTM3U\nhttp://127.0.0.1/a.ts\n"])
def test_a_name_does_not_make_a_video(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fake.mp4").write_bytes(content)
    with pytest.raises(BadVideo, match="^damaged or not a video: "):
        read_facts(tmp_path / "fake.mp4")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{other}\n#EXT-X-ENDLIST\n"),
        ("list.mp4", "ffconcat version 1.0\nfile 'other.ts'\n"),
        ("list.ffconcat", "ffconcat version 1.0\nfile 'other.ts'\n"),
        ("session.sdp", "v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n"),
    ],
)
def test_a_file_does_not_bring_another_one_in(tmp_path: Path, name: str, content: str) -> None:
    """Without this, a video from elsewhere on the disk would be in the cache."""
    other = write_video(tmp_path / "other.ts")
    assert read_facts(other).num_frames
    (tmp_path / name).write_text(content.format(other=other))
    with pytest.raises(BadVideo, match="^damaged or not a video: "):
        read_facts(tmp_path / name)


def test_what_would_bring_others_in_is_known_by_ffmpegs_names() -> None:
    assert {"hls", "concat", "dash", "sdp", "rtsp"} <= FOLLOWING & av.formats_available


@pytest.mark.parametrize("kept", [0.01, 0.3, 0.9])
def test_an_mp4_cut_short_is_bad(tmp_path: Path, kept: float) -> None:
    content = write_video(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(BadVideo, match="^damaged or not a video: |^no video stream|^no frame of it can be decoded$"):
        read_facts(tmp_path / "cut.mp4")


def test_a_missing_file_is_not_a_bad_one(tmp_path: Path) -> None:
    for read in (read_facts, lambda path: read_clock(path, 0)):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "gone.mp4")


def png_of(height: int, width: int) -> bytes:
    """The head of an image of that size, and almost nothing of it."""

    def part(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(bytes(999))) + part(b"IEND", b"")


@pytest.mark.parametrize(("height", "width"), [(30000, 30000), (12000, 16000), (16384, 8193)])
def test_an_absurd_size_is_bad_before_anything_is_allocated(tmp_path: Path, height: int, width: int) -> None:
    assert height * width > MAX_PIXELS
    (tmp_path / "bomb.png").write_bytes(png_of(height, width))
    with pytest.raises(BadVideo, match=f"too large: found .*, wanted .* at most {MAX_PIXELS} pixels$"):
        read_facts(tmp_path / "bomb.png")


def test_a_title_in_another_encoding_does_no_harm(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", frames=pictures(3))
    content = path.read_bytes()
    assert b"Lavf" in content
    path.write_bytes(content.replace(b"Lavf", "éàö".encode("latin-1") + b"x"))
    assert read_facts(path).num_frames == 3
