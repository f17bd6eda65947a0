"""Clips -> frames. Frames are chosen by presentation time, read in sequence, resized to cover and centre-cropped."""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path

import av
import av.logging
import decord
import numpy as np
from av.error import FFmpegError
from av.filter import Graph
from einops import rearrange

from pipeline.bucket import cover_size, crop_offset
from pipeline.chunk import frame_times, nearest_frames
from pipeline.errors import BadVideo, Refused
from pipeline.records import Clip, Video
from pipeline.scan import presentation_times

decord.logging.set_level(decord.logging.QUIET)
av.logging.set_level(av.logging.PANIC)
logger = logging.getLogger(__name__)

CLOCK_TOLERANCE_S = 5e-3  # decord tells times in float32: 0.25 ms apart after an hour
PEEK_FRAMES = 16  # enough to see whether a decoder's timestamps are in order
# How a frame is brought upright, by its rotation in quarter turns: FFmpeg filters and their arguments.
UPRIGHT = {0: (), 1: (("transpose", "cclock"),), 2: (("hflip", None), ("vflip", None)), 3: (("transpose", "clock"),)}

Chunk = np.ndarray  # (chunk_frames, H, W, 3) uint8 RGB


def decode_clips(video: Video, clips: Sequence[Clip], chunk_frames: int) -> Iterator[tuple[Clip, int, Chunk]]:
    """The chunks of `clips` (all of one video and bucket), as (clip, number of the chunk in it, frames).

    One pass through the file, from its start: seeking by frame number is wrong on real files. decord reads;
    where it disagrees with the container about the number or the times of the frames, or fails, PyAV does.
    BadVideo where neither can, Refused where the file is gone.
    """
    path = Path(video.path)
    if not path.exists():
        raise Refused(f"{path}: found by `scan`, now gone; bring it back or run `scan` again")
    clips = sorted(clips, key=lambda clip: clip.first_frame)
    bucket = (clips[0].height, clips[0].width)
    size = cover_size(video.height, video.width, bucket)
    try:
        times_s = presentation_times(path, video.stream)
    except (FFmpegError, IndexError) as error:
        raise BadVideo(f"damaged or not a video: {getattr(error, 'strerror', 'its stream is gone')}") from error
    if len(times_s) != video.num_frames:
        raise BadVideo(f"changed since `scan`: {len(times_s)} frames, the manifest says {video.num_frames}")
    wanted = np.stack([_chunk_frames(video, clip, times_s, n, chunk_frames) for clip, n in _chunks(clips)])
    frames = _in_sequence(path, video, size, times_s, np.unique(wanted))
    top, left = crop_offset(size, bucket)
    recent: dict[int, np.ndarray] = {}
    for (clip, number), indices in zip(_chunks(clips), wanted, strict=True):
        while int(indices[-1]) not in recent:
            index, frame = next(frames)
            recent[index] = frame[top : top + bucket[0], left : left + bucket[1]]
        recent = {index: frame for index, frame in recent.items() if index >= indices[0]}
        yield clip, number, np.stack([recent[int(index)] for index in indices])
    for _ in frames:
        pass  # a reader may find only at the end that frames are missing


def _chunks(clips: Sequence[Clip]) -> Iterator[tuple[Clip, int]]:
    return ((clip, number) for clip in clips for number in range(clip.num_chunks))


def _chunk_frames(video: Video, clip: Clip, times_s: np.ndarray, number: int, chunk_frames: int) -> np.ndarray:
    """The frames of the file that make one chunk: (chunk_frames,) indices in presentation order, ascending."""
    first = clip.first_frame + number * chunk_frames
    return nearest_frames(times_s, frame_times(video.start_s, first, chunk_frames, clip.fps))


def _in_sequence(
    path: Path, video: Video, size: tuple[int, int], times_s: np.ndarray, wanted: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """(index, frame (H, W, 3) uint8 of `size`) for each wanted index, ascending."""
    done = -1
    try:
        for index, frame in _read_decord(path, size, times_s, wanted):
            yield index, frame
            done = index
        return
    except BadVideo as error:
        logger.info("%s: decord: %s; reading it with PyAV", path, error)
    yield from _read_av(path, video.stream, size, times_s, wanted[wanted > done])


def _read_decord(
    path: Path, size: tuple[int, int], times_s: np.ndarray, wanted: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    height, width = size
    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), height=height, width=width, num_threads=1)
        if len(reader) != len(times_s):
            raise BadVideo(f"{len(reader)} frames where the container has {len(times_s)}")
        shown_s = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
        if np.abs(shown_s - times_s).max() > CLOCK_TOLERANCE_S:
            raise BadVideo("other timestamps than the container's")
        chosen = set(wanted.tolist())
        for index in range(max(chosen) + 1):  # one by one: even `skip_frames` returns other frames on some HEVC files
            frame = reader.next()
            if index in chosen:
                yield index, _unpadded(frame.asnumpy(), height, width)
    except (decord.DECORDError, RuntimeError, StopIteration) as error:
        raise BadVideo(str(error).strip().splitlines()[0] if str(error) else "ends early") from error


def _unpadded(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """decord 3 hands out rows with their padding, as a fourth "channel", where the padding is as wide as the frame."""
    if frame.shape[2] == 3:
        return frame
    rows = rearrange(frame, "h w c -> h (w c)")
    return rearrange(rows[:, : 3 * width], "h (w c) -> h w c", c=3)


def _read_av(
    path: Path, stream: int, size: tuple[int, int], times_s: np.ndarray, wanted: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """Frames by their own timestamps; by their order where the decoder's timestamps are not in order, as in AVI."""
    height, width = size
    missing = deque(wanted.tolist())
    decoded = 0
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            frames = container.decode(container.streams[stream])
            head = list(islice(frames, PEEK_FRAMES))
            by_time = _in_order([frame.time for frame in head])
            for frame in chain(head, frames):
                if by_time and not missing:
                    return
                if frame.is_corrupt:
                    raise BadVideo(f"damaged: frame {decoded} of {len(times_s)} is corrupt")
                index = int(np.abs(times_s - frame.time).argmin()) if by_time and frame.time is not None else decoded
                if missing and index > missing[0]:
                    raise BadVideo(f"damaged: frame {missing[0]} of {len(times_s)} cannot be decoded")
                if missing and index == missing[0]:
                    yield missing.popleft(), _upright(frame, height, width)
                decoded += 1
    except FFmpegError as error:
        raise BadVideo(f"damaged: {decoded} of {len(times_s)} frames can be decoded: {error.strerror}") from error
    if missing or (not by_time and decoded != len(times_s)):
        raise BadVideo(f"damaged: {decoded} of {len(times_s)} frames can be decoded")


def _in_order(times_s: list[float | None]) -> bool:
    known = [time_s for time_s in times_s if time_s is not None]
    return len(known) == len(times_s) and known == sorted(known)


def _upright(frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
    """A frame at display orientation and the asked size, by the filters that decord uses: bit-equal to it."""
    filters = (
        *UPRIGHT[round(frame.rotation / 90) % 4],
        ("scale", f"{width}:{height}:flags=bicubic"),
        ("format", "rgb24"),
        ("buffersink", None),
    )
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1)
    )
    graph.link_nodes(source, *(graph.add(name, arguments) for name, arguments in filters)).configure()
    graph.push(frame)
    upright = graph.pull()
    assert isinstance(upright, av.VideoFrame)
    return upright.to_ndarray()
