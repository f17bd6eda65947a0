"""The arithmetic of chunks: which frames of a video become which clips. Pure functions of times and counts."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

# Two candidates this close to a target time count as equally near, and the earlier one is taken: Matroska rounds each
# timestamp to 1/1000 s, and that rounding must not decide between them.
SAME_TIME_S = 1.001e-3
IMAGE_FPS = 120.0  # that a single frame is said to have: by it Open-Sora tells images from videos


def clip_fps(video_fps: float, target_fps: float) -> float:
    """The rate at which a video is sampled: the target, or its own rate where that is lower (no frame is invented)."""
    return min(video_fps, target_fps)


def count_frames(start_s: float, end_s: float, fps: float) -> int:
    """How many frames a video has at `fps`, from its first to its last presentation time, both included."""
    return math.floor((end_s - start_s) * fps + 0.5) + 1


def split_scenes(starts_s: Sequence[float], start_s: float, fps: float, num_frames: int) -> list[tuple[int, int]]:
    """The times at which a video's scenes start, ascending -> each one's frames at `fps`, [first, behind the last).

    A frame belongs to the scene in which its time lies, so scenes share out all `num_frames`; some may get none.
    """
    cuts = [0]
    for cut_s in starts_s[1:]:
        first = math.ceil((cut_s - start_s - SAME_TIME_S) * fps)
        cuts.append(min(max(first, cuts[-1]), num_frames))
    return list(pairwise([*cuts, num_frames]))


class Split(NamedTuple):
    """What becomes of a scene's frames: clips as (first frame, chunks, frames that are not padding), and the rest.

    All frames that are not counted here lie in whole chunks of clips.
    """

    clips: list[tuple[int, int, int]]
    padded: int = 0  # frames of the chunk that is filled up
    short: int = 0  # dropped: the scene is shorter than the shortest clip
    rest: int = 0  # dropped: too few chunks for one more clip
    tail: int = 0  # dropped: behind the last whole chunk


def split_clips(num_frames: int, chunk_frames: int, min_chunks: int, max_chunks: int, tail: str) -> Split:
    """The frames of a scene -> consecutive clips of `min_chunks` to `max_chunks` chunks, as long as they can be.

    Tail `drop`: frames behind the last whole chunk are left out. `pad`: they count as a chunk, to be filled up with the
    last frame; a clip of padding alone is never made. `overlap`: where frames are left behind the clips, one more clip
    of `min_chunks` ends on the last frame.
    """
    whole, over = divmod(num_frames, chunk_frames)
    chunks = whole + (tail == "pad" and over > 0)
    if chunks < min_chunks:
        return Split([], short=num_frames)
    full, left = divmod(chunks, max_chunks)
    lengths = [max_chunks] * full + [left] * (left >= min_chunks)
    clips, end = [], 0
    for length in lengths:
        first, end = end, end + length * chunk_frames
        clips.append((first, length, min(end, num_frames) - first))
    if end >= num_frames:
        return Split(clips, padded=over)
    if tail == "overlap":
        return Split([*clips, (num_frames - min_chunks * chunk_frames, min_chunks, min_chunks * chunk_frames)])
    dropped = over if tail == "drop" else 0
    return Split(clips, rest=num_frames - end - dropped, tail=dropped)


def frame_times(start_s: float, first_frame: int, num_frames: int, fps: float) -> np.ndarray:
    """The times in seconds at which a clip wants its frames: (num_frames,) float64."""
    return start_s + (first_frame + np.arange(num_frames)) / fps


def nearest_frames(times_s: np.ndarray, wanted_s: np.ndarray) -> np.ndarray:
    """For each wanted time the index of the nearest presentation time (ascending `times_s`); ties go to the earlier."""
    after = np.clip(np.searchsorted(times_s, wanted_s), 1, max(len(times_s) - 1, 1))
    if len(times_s) == 1:
        return np.zeros(len(wanted_s), dtype=np.int64)
    before = after - 1
    later_is_nearer = times_s[after] - wanted_s < wanted_s - times_s[before] - SAME_TIME_S
    return np.where(later_is_nearer, after, before)
