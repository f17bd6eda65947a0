"""Frames read by PyAV: known by their own timestamps, exactly, and refused where the decoder sees damage."""

import logging
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.filter import Graph
from av.packet import Packet
from av.video.stream import VideoStream

from pipeline.container import Clock, choose_stream, open_container
from pipeline.errors import BadVideo

logger = logging.getLogger(__name__)

SEEKING_SAVES = 300  # frames that need not be decoded, at the least, for a file to be read from its middle
# Codecs whose key frames were seen to be true beginnings. A GIF calls all its frames so, and they lean on each other.
SEEKABLE = {"h264", "hevc", "vp9", "av1"}
REORDERED = 16  # frames that a packet may lie before its place in the presentation: some demuxers seek by that place
# How a frame is brought upright, by its rotation in quarter turns: FFmpeg filters and their arguments.
UPRIGHT = {0: (), 1: (("transpose", "cclock"),), 2: (("hflip", None), ("vflip", None)), 3: (("transpose", "clock"),)}

Filter = tuple[str, str | None]  # its name in FFmpeg, and its arguments
Indexed = tuple[int, np.ndarray]  # a frame's number in the presentation, and its pixels (H, W, 3) uint8


def first_needed(clock: Clock, codec: str, index: int) -> int:
    """The frame from which to decode in order to get frame `index`: 0, or a key frame where that saves much.

    The key frame before the last one: frames stored behind a key frame may lean on those before it (an open group).
    """
    keys = np.flatnonzero(clock.keys[: index + 1])
    if not clock.stamped or codec not in SEEKABLE or len(keys) < 2 or keys[-2] < SEEKING_SAVES:
        return 0
    return int(keys[-2])


def read_av(
    path: Path, stream: int, codec: str, size: tuple[int, int], clock: Clock, wanted: np.ndarray
) -> Iterator[Indexed]:
    """(index, frame of `size`) for each wanted index, ascending; BadVideo where one cannot be decoded."""
    done = -1
    start = first_needed(clock, codec, int(wanted[0])) if len(wanted) else 0
    if start:
        try:
            for index, frame in _read(path, stream, size, clock, wanted, start):
                yield index, frame
                done = index
            return
        except BadVideo as error:
            logger.info("%s: from frame %d: %s; reading it from its beginning", path, start, error)
    yield from _read(path, stream, size, clock, wanted[wanted > done], 0)


def _read(
    path: Path, stream: int, size: tuple[int, int], clock: Clock, wanted: np.ndarray, start: int
) -> Iterator[Indexed]:
    missing = deque(wanted.tolist())
    total, index = len(clock.times_s), start - 1
    upright = Upright(*size)
    try:
        with open_container(path) as container:
            for frame in _decode(container, choose_stream(container, stream), clock, start):
                index, previous = _index(frame, clock, index), index
                if index == previous:
                    continue
                if missing and index > missing[0]:
                    raise BadVideo(f"damaged: frame {missing[0]} of {total} cannot be decoded")
                if frame.is_corrupt:
                    raise BadVideo(f"damaged: frame {index} of {total} is corrupt")
                if missing and index == missing[0]:
                    yield missing.popleft(), upright(frame)
                if clock.stamped and not missing:
                    return
    except FFmpegError as error:
        raise BadVideo(f"damaged: {index + 1} of {total} frames can be decoded: {error.strerror}") from error
    if missing or index + 1 != total:  # known by their order alone, frames are right only when none is missing
        raise BadVideo(f"damaged: {index + 1} of {total} frames can be decoded")


def _index(frame: av.VideoFrame, clock: Clock, previous: int) -> int:
    """The number of a decoded frame; `previous` where it is not one of the clock's, as before the first key frame."""
    if not clock.stamped or frame.pts is None:
        return previous + 1
    shown_s = frame.pts * float(frame.time_base or 0)
    index = max(int(np.searchsorted(clock.times_s, shown_s)), previous + 1)  # several may have the same time
    return index if index < len(clock.times_s) and clock.times_s[index] == shown_s else previous


def _decode(container: InputContainer, video: VideoStream, clock: Clock, start: int) -> Iterator[av.VideoFrame]:
    for packet in _packets_from(container, video, clock, start) if start else container.demux(video):
        yield from packet.decode()


def _packets_from(container: InputContainer, video: VideoStream, clock: Clock, start: int) -> Iterator[Packet]:
    """The packets from the key frame `start` on, or from an earlier one, without frames shown before that."""
    tick_s = float(video.time_base or 0)
    step_s = (clock.times_s[-1] - clock.times_s[0]) / (len(clock.times_s) - 1)
    container.seek(round((clock.times_s[start] - REORDERED * step_s) / tick_s), stream=video, backward=True)
    first = None
    for packet in container.demux(video):
        if first is None and packet.is_keyframe and packet.pts is not None:
            first = packet.pts
            if first * tick_s > clock.times_s[start]:
                raise BadVideo(f"the container does not lead to frame {start}")
        if first is not None and (packet.pts is None or packet.pts >= first):
            yield packet


def upright_filters(rotation: int, height: int, width: int) -> tuple[Filter, ...]:
    """What makes frames (height, width, 3) uint8 RGB as displayed: the filters that decord uses, bit-equal to it."""
    return (*UPRIGHT[rotation // 90], ("scale", f"{width}:{height}:flags=bicubic"), ("format", "rgb24"))


class Upright:
    """Frames -> (height, width, 3) uint8 RGB as displayed.

    The filters are set up once for each kind of frame, not once for each frame.
    """

    def __init__(self, height: int, width: int) -> None:
        self.size = (height, width)
        self.kind: tuple | None = None
        self.graph = Graph()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        kind = (frame.width, frame.height, frame.format.name, round(frame.rotation / 90) % 4 * 90)
        if kind != self.kind:
            self.kind, self.graph = kind, self._build(frame, upright_filters(kind[-1], *self.size))
        self.graph.push(frame)
        upright = self.graph.pull()
        assert isinstance(upright, av.VideoFrame)
        return upright.to_ndarray()

    def _build(self, frame: av.VideoFrame, filters: tuple[Filter, ...]) -> Graph:
        graph = Graph()
        graph.threads = 1
        clock = frame.time_base or Fraction(1)
        source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=clock)
        nodes = (graph.add(name, arguments) for name, arguments in (*filters, ("buffersink", None)))
        graph.link_nodes(source, *nodes).configure()
        return graph
