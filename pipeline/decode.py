"""Clips -> frames. Frames are chosen by presentation time, read in sequence, resized to cover and centre-cropped."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import av.logging
import decord
import numpy as np
from av.error import FFmpegError
from einops import rearrange

from pipeline.bucket import cover_size, crop_offset
from pipeline.chunk import frame_times, nearest_frames
from pipeline.errors import BadVideo, Refused
from pipeline.records import Clip, Video
from pipeline.scan import presentation_times

decord.logging.set_level(decord.logging.QUIET)
av.logging.set_level(av.logging.PANIC)
logger = logging.getLogger(__name__)

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
    times_s = presentation_times(path, video.stream)
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
        if np.abs(shown_s - times_s).max() > 0.5 * np.diff(times_s).mean() if len(times_s) > 1 else False:
            raise BadVideo("other timestamps than the container's")
        position = 0
        for index in wanted.tolist():
            if index > position:
                reader.skip_frames(index - position)
            yield index, _unpadded(reader.next().asnumpy(), height, width)
            position = index + 1
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
    height, width = size
    remaining = iter(wanted.tolist())
    target = next(remaining, None)
    decoded = 0
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(container.streams[stream]):
                if target is None:
                    return
                if frame.is_corrupt:
                    raise BadVideo(f"damaged: frame {decoded} of {len(times_s)} is corrupt")
                if decoded == target:
                    yield target, _upright(frame, height, width)
                    target = next(remaining, None)
                decoded += 1
    except FFmpegError as error:
        raise BadVideo(f"damaged: after {decoded} of {len(times_s)} frames: {error}") from error
    if target is not None:
        raise BadVideo(f"damaged: {decoded} of {len(times_s)} frames can be decoded")


def _upright(frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
    """A frame at display orientation and the asked size, with the resize filter that decord uses."""
    quarter_turns = round(frame.rotation / 90) % 4
    if quarter_turns % 2:
        height, width = width, height
    pixels = frame.reformat(width, height, "rgb24", interpolation="BICUBIC").to_ndarray()
    return np.rot90(pixels, quarter_turns) if quarter_turns else pixels
