"""Clips -> frames and how they look: what a decode task has done in its sandbox."""

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.decode import decode_clips
from pipeline.look import look_at
from pipeline.records import Clip, Look, Video


def decode_and_look(video: Video, clips: Sequence[Clip]) -> Iterator[tuple[Clip, int, np.ndarray, Look]]:
    """The chunks of clips, as `decode_clips` yields them, each with its look. What pads a tail is not looked at."""
    for clip, number, frames in decode_clips(video, clips):
        yield clip, number, frames, look_at(frames[: valid_in_chunk(clip, number)])


def valid_in_chunk(clip: Clip, number: int) -> int:
    """How many frames of one chunk are the clip's own, and not there to pad its tail."""
    return min(clip.chunk_frames, clip.valid_frames - number * clip.chunk_frames)
