"""Clips -> frames. Frames are chosen by presentation time, read in sequence, resized to cover and centre-cropped."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from einops import rearrange

from pipeline.av_reader import Indexed, first_needed, read_av
from pipeline.bucket import cover_size, crop_offset
from pipeline.chunk import frame_times, nearest_frames
from pipeline.container import Clock, read_clock
from pipeline.decord_reader import read_decord, suits_decord
from pipeline.errors import BadVideo, Refused
from pipeline.files import local_copy
from pipeline.identity import is_still
from pipeline.location import Location
from pipeline.records import Clip, Video

logger = logging.getLogger(__name__)

SAME_S = 1e-6  # times of one clock that are told apart by arithmetic only

Chunk = np.ndarray  # (chunk_frames, H, W, 3) uint8 RGB


def decode_clips(video: Video, clips: Sequence[Clip]) -> Iterator[tuple[Clip, int, Chunk]]:
    """The chunks of `clips` (all of one video and bucket), as (clip, number of the chunk in it, frames).

    In the order of their frames, in one pass through the file; clips may overlap. BadVideo where the file is damaged
    or is not the one that was scanned, Refused where it is gone.
    """
    clips = sorted(clips, key=lambda clip: clip.first_frame)
    bucket = (clips[0].height, clips[0].width)
    size = cover_size(video.height, video.width, bucket)
    top, left = crop_offset(size, bucket)
    with at_hand(video) as here, local_copy(here.path) as path:
        clock = read_clock(path, video.stream)
        _check_unchanged(video, path, clock)
        wanted = np.concatenate([_chunk_indices(video, clip, clock.times_s) for clip in clips])  # (chunks, frames)
        oldest = np.minimum.accumulate(wanted[::-1, 0])[::-1]  # that this chunk or a later one needs
        frames = _in_sequence(path, video, size, clock, np.unique(wanted))
        recent: dict[int, np.ndarray] = {}
        chunks = ((clip, number) for clip in clips for number in range(clip.num_chunks))
        for (clip, number), indices, needed in zip(chunks, wanted.tolist(), oldest, strict=True):
            recent = {index: frame for index, frame in recent.items() if index >= needed}
            while indices[-1] not in recent:
                index, frame = next(frames)
                recent[index] = frame[top : top + bucket[0], left : left + bucket[1]]
            yield clip, number, np.stack([recent[index] for index in indices])
        for _ in frames:
            pass  # a reader may find only at the end that frames are missing


class ClipFrames(NamedTuple):
    """Which frames of its file make a clip, and when they are shown."""

    indices: np.ndarray  # (num_frames,) in presentation order, from 0; one that is shown for longer comes again
    times_s: np.ndarray  # (num_frames,) by the container's clock
    container: str  # FFmpeg's name of the format


def find_frames(video: Video, clip: Clip) -> ClipFrames:
    """The frames that `decode_clips` takes for a clip, none of them decoded; errors as there."""
    with at_hand(video) as here, local_copy(here.path) as path:
        clock = read_clock(path, video.stream)
        _check_unchanged(video, path, clock)
        indices = rearrange(_chunk_indices(video, clip, clock.times_s), "chunks frames -> (chunks frames)")
        return ClipFrames(indices, clock.times_s[indices], clock.container)


def read_frames(path: Path, video: Video, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Every frame of a local file in presentation order, as (height, width, 3) uint8 of `size`; errors as above."""
    clock = read_clock(path, video.stream)
    for _, frame in _in_sequence(path, video, size, clock, np.arange(len(clock.times_s))):
        yield frame


@contextmanager
def at_hand(video: Video) -> Iterator[Video]:
    """A video whose file is on this machine: what a sandbox, which reaches no network, can read.

    Refused where there is none: a broken mount is not a thousand bad videos. A local file is not touched here.
    """
    try:
        if not Location.of(video.path).bucket:
            yield video
            return
        with local_copy(video.path) as path:
            yield replace(video, path=str(path))
    except FileNotFoundError as error:
        raise Refused(f"{video.path}: found by `scan`, now gone; bring it back or run `scan` again") from error
    except PermissionError as error:
        raise Refused(f"{video.path}: read by `scan`, now denied; allow it to be read, or run `scan` again") from error


def _check_unchanged(video: Video, path: Path, clock: Clock) -> None:
    """BadVideo where size, times or content are not the manifest's; a new date alone does not make another file."""
    found = (path.stat().st_size, len(clock.times_s), float(clock.times_s[0]), float(clock.times_s[-1]))
    wanted = (video.size_bytes, video.num_frames, video.start_s, video.end_s)
    if found != wanted:
        told = "{} bytes, {} frames from {:g} to {:g} s"
        raise BadVideo(
            f"changed since `scan`: found {told.format(*found)}, the manifest says {told.format(*wanted)}; "
            f"run `scan` again"
        )
    if path.stat().st_mtime_ns != video.mtime_ns and not is_still(path, video.id):
        raise BadVideo("changed since `scan`: of the same size and length, but other content; run `scan` again")


def _chunk_indices(video: Video, clip: Clip, times_s: np.ndarray) -> np.ndarray:
    """The frames of the file that make a clip: (chunks, chunk_frames) indices in presentation order, of its scene."""
    first, end = np.searchsorted(times_s, [clip.scene_start_s - SAME_S, clip.scene_end_s + SAME_S])
    if first == end:
        raise BadVideo(f"changed since `scan`: no frame from {clip.scene_start_s:g} to {clip.scene_end_s:g} s")
    slots_s = frame_times(video.start_s, clip.first_frame, clip.num_frames, clip.fps)
    indices = first + nearest_frames(times_s[first:end], slots_s)
    indices[clip.valid_frames :] = indices[clip.valid_frames - 1]
    return rearrange(indices, "(chunks frames) -> chunks frames", chunks=clip.num_chunks)


def _in_sequence(
    path: Path, video: Video, size: tuple[int, int], clock: Clock, wanted: np.ndarray
) -> Iterator[Indexed]:
    """(index, frame (H, W, 3) uint8 of `size`) for each wanted index, ascending.

    decord reads; where it disagrees with the container, complains or fails, PyAV does, as it does where it is faster
    and where decord is not trusted.
    """
    start, done = first_needed(clock, video.codec, int(wanted[0])), -1
    hole = next((index for index in clock.holes if start <= index <= wanted[-1]), None)
    if hole is not None:
        raise BadVideo(f"damaged: frame {hole} of {len(clock.times_s)} is partly zeros")
    if suits_decord(video, clock, wanted) and start == 0:
        try:
            for index, frame in read_decord(path, size, clock, wanted):
                yield index, frame
                done = index
            return
        except BadVideo as error:
            logger.info("%s: decord: %s; reading it with PyAV", path, error)
    yield from read_av(path, video.stream, video.codec, size, clock, wanted[wanted > done])
