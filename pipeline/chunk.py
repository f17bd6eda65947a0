"""The arithmetic of chunks: which frames of a video become which clips. Pure functions of times and counts."""

import numpy as np

# Two candidates this close to a target time count as equally near, and the earlier one is taken: Matroska rounds each
# timestamp to 1/1000 s, and that rounding must not decide between them.
SAME_TIME_S = 1.001e-3


def clip_fps(video_fps: float, target_fps: float) -> float:
    """The rate at which a video is sampled: the target, or its own rate where that is lower (no frame is invented)."""
    return min(video_fps, target_fps)


def count_frames(start_s: float, end_s: float, fps: float) -> int:
    """How many frames a video has at `fps`, from its first to its last presentation time, both included."""
    return int(np.floor((end_s - start_s) * fps + 0.5)) + 1


def split_clips(num_frames: int, chunk_frames: int, max_chunks: int) -> tuple[list[tuple[int, int]], int]:
    """Frames -> ([(first_frame, num_chunks), ...], frames dropped behind the last whole chunk).

    Clips are consecutive and as long as `max_chunks` allows; used + dropped = num_frames.
    """
    chunks, dropped = divmod(num_frames, chunk_frames)
    firsts = range(0, chunks, max_chunks)
    return [(first * chunk_frames, min(max_chunks, chunks - first)) for first in firsts], dropped


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
