"""Files -> clocks and facts: what a container says about its video, before more than one frame of it is decoded."""

import math
from dataclasses import dataclass
from pathlib import Path

import av
import av.logging
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.stream import VideoStream

from pipeline.chunk import SAME_TIME_S
from pipeline.errors import BadVideo

av.logging.set_level(av.logging.PANIC)

MAX_PIXELS = 1 << 27  # of one frame: 11585x11585; more is a mistake or an attack, and would be allocated at once
# What opens further files, devices or addresses that a file names: a text renamed to a video can be a playlist.
FOLLOWING = {
    *("concat", "dash", "hls", "imf", "mlv", "vobsub", "webm_dash_manifest", "avisynth", "vapoursynth", "lavfi"),
    *("rtp", "rtsp", "sap", "sdp", "alsa", "fbdev", "jack", "kmsgrab", "pulse", "video4linux2,v4l2", "x11grab"),
}
OPEN_OPTIONS = {
    "format_whitelist": ",".join(sorted(av.formats_available - FOLLOWING)),
    "protocol_whitelist": "file",
    "pattern_type": "none",  # `a%d.png` is the name of one image, not of a sequence
    "max_pixels": str(MAX_PIXELS),
}
# By default FFmpeg conceals what it cannot decode and goes on, and takes as many threads as there are processors.
DECODER_OPTIONS = {"err_detect": "crccheck+explode", "max_pixels": str(MAX_PIXELS), "threads": "1"}
WITHOUT_PRESENTATION_TIMES = {"avi"}  # containers whose frames are known by their order: FFmpeg's pts are guesses
# Codecs whose packets, in containers that give the lengths of their parts, never hold three zeros in a row except in
# such a length. Their decoders take a hole for a still picture, and say nothing.
WITHOUT_ZEROS = {"h264", "hevc"}
GIVING_LENGTHS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
HOLE = bytes(16)


@dataclass(frozen=True, eq=False)
class Clock:
    """When the frames of a stream are shown, in presentation order."""

    times_s: np.ndarray  # (N,) float64, ascending
    keys: np.ndarray  # (N,) bool: whether decoding can begin at the frame
    stamped: bool = True  # whether the decoded frames carry these times; else they are known by their order only
    container: str = ""  # FFmpeg's name of the format
    holes: tuple[int, ...] = ()  # frames with zeros where there can be none: a download that did not come to its end


@dataclass(frozen=True)
class Facts:
    """What the manifest states of a container; each is explained at `Video`."""

    codec: str
    stream: int
    height: int
    width: int
    num_frames: int
    start_s: float
    end_s: float
    fps: float
    duration_s: float
    variable: bool
    rotation: int
    pixel_aspect: float
    bit_depth: int


def open_container(path: Path) -> InputContainer:
    """A local file, opened; FFmpegError where it is nothing that FFmpeg knows."""
    return av.open(f"file:{path}", metadata_errors="ignore", options=OPEN_OPTIONS)


def read_clock(path: Path, stream: int) -> Clock:
    """The clock of a stream, from its packets alone; BadVideo where it has none.

    Not shown, hence not in it: what an edit list discards, and frames before the first key frame, which lean on
    frames that were cut away.
    """
    try:
        with open_container(path) as container:
            return _read_clock(container, stream)
    except (FileNotFoundError, PermissionError):
        raise
    except FFmpegError as error:
        raise BadVideo(f"damaged or not a video: {error.strerror}") from error


def _read_clock(container: InputContainer, stream: int) -> Clock:
    video = choose_stream(container, stream)
    name = container.format.name
    dense = video.codec_context.name in WITHOUT_ZEROS and name in GIVING_LENGTHS
    packets = [  # not as they are, which would hold the whole file
        (packet.pts, packet.dts, packet.is_keyframe, packet.is_discard, packet.is_corrupt, dense and _has_hole(packet))
        for packet in container.demux(video)
        if packet.size
    ]
    first_key = next((pts for pts, _, key, *_ in packets if key and pts is not None), -math.inf)
    shown = [
        (pts, dts, key, hole)
        for pts, dts, key, hidden, _, hole in packets
        if not hidden and (pts is None or pts >= first_key)
    ]
    if not shown:
        raise BadVideo("no frames in it")
    if video.frames and packets[-1][4]:  # MPEG-TS, which may end anywhere, does not count its frames
        raise BadVideo(f"damaged: cut short, within one of its {video.frames} frames")
    stamped = all(pts is not None for pts, *_ in shown)
    ticks = [pts if stamped else dts for pts, dts, *_ in shown]
    if None in ticks and len(ticks) > 1:
        missing = ticks.count(None)
        raise BadVideo(f"no timestamps: {missing} of {len(ticks)} frames do not say when they are shown")
    ticks = np.array([tick or 0 for tick in ticks], dtype=np.int64)
    order = np.argsort(ticks, kind="stable")
    times_s = ticks[order] * float(video.time_base or 0)
    keys = np.array([key for _, _, key, _ in shown])[order]
    holes = np.flatnonzero(np.array([hole for *_, hole in shown])[order])
    return Clock(times_s, keys, stamped and name not in WITHOUT_PRESENTATION_TIMES, name, tuple(holes.tolist()))


def _has_hole(packet: Packet) -> bool:
    return HOLE in bytes(packet).rstrip(b"\0")  # some writers fill up the end


def choose_stream(container: InputContainer, stream: int) -> VideoStream:
    """The video stream of that index, strictly decoded and alone read from then on; BadVideo where there is none."""
    videos = [one for one in container.streams.video if one.index == stream]
    if not videos:
        raise BadVideo(f"changed since `scan`: its stream {stream} is no video, or gone")
    for other in container.streams:
        other.discard = Discard.default if other.index == stream else Discard.all
    videos[0].codec_context.options = DECODER_OPTIONS
    return videos[0]


def read_facts(path: Path) -> Facts:
    """The facts of a file, for which its first frame is decoded; BadVideo with the reason where it is no video."""
    try:
        with open_container(path) as container:
            stream = choose_stream(container, _best_stream(container).index)
            codec = stream.codec_context
            _check_size(codec.width, codec.height)
            first = next(container.decode(stream))
            index, name, aspect = stream.index, codec.codec.canonical_name, float(stream.sample_aspect_ratio or 1)
    except (FileNotFoundError, PermissionError):
        raise
    except (EOFError, StopIteration) as error:
        raise BadVideo("no frame of it can be decoded") from error
    except FFmpegError as error:
        raise BadVideo(f"damaged or not a video: {error.strerror}") from error
    clock = read_clock(path, index)
    rotation = round(first.rotation / 90) % 4 * 90
    height, width = displayed_size(first.height, first.width, aspect, rotation)
    return Facts(name, index, height, width, *_facts_of(clock), rotation, aspect, first.format.components[0].bits)


def _best_stream(container: InputContainer) -> VideoStream:
    """The stream that FFmpeg, and so every player, takes; never the cover picture of a song."""
    streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
    if not streams:
        found = ", ".join(sorted({one.type for one in container.streams})) or "nothing"
        raise BadVideo(f"no video stream; found {'a cover picture' if container.streams.video else found}")
    best = container.streams.best("video")
    return next((one for one in streams if best is not None and one.index == best.index), streams[0])


def _check_size(width: int, height: int) -> None:
    if width <= 0 or height <= 0:  # FFmpeg itself forgets sizes that are too large
        raise BadVideo(f"damaged or too large: found no size of its frames, wanted one of at most {MAX_PIXELS} pixels")
    if width * height > MAX_PIXELS:
        raise BadVideo(f"too large: found frames of {width}x{height}, wanted at most {MAX_PIXELS} pixels")


def displayed_size(height: int, width: int, pixel_aspect: float, rotation: int) -> tuple[int, int]:
    """The (height, width) at which frames stored as `height` x `width` are displayed."""
    width = max(1, round(width * pixel_aspect))
    return (width, height) if rotation % 180 else (height, width)


def _facts_of(clock: Clock) -> tuple[int, float, float, float, float, bool]:
    """num_frames, start_s, end_s, fps, duration_s, variable."""
    times_s = clock.times_s
    span_s = float(times_s[-1] - times_s[0])
    if len(times_s) == 1:
        return 1, float(times_s[0]), float(times_s[0]), 1.0, 0.0, False
    if span_s <= 0:
        raise BadVideo(f"{len(times_s)} frames, all at the same time")
    step_s = span_s / (len(times_s) - 1)
    # Matroska rounds each time to 1/1000 s, so that steps of a constant rate differ by that much.
    variable = bool(np.abs(np.diff(times_s) - step_s).max() > SAME_TIME_S)
    return len(times_s), float(times_s[0]), float(times_s[-1]), round(1 / step_s, 6), span_s + step_s, variable
