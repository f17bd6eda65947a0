"""Every frame of a video is used or dropped, once, and clips show the frames nearest to the times they want."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.chunk import SAME_TIME_S, clip_fps, count_frames, frame_times, nearest_frames, split_clips

COUNTS = st.integers(1, 40)
GAPS_S = st.lists(st.integers(5, 400), max_size=60)  # milliseconds between frames


@given(st.integers(0, 3000), COUNTS, COUNTS)
def test_every_frame_is_used_or_dropped_once(frames: int, chunk_frames: int, max_chunks: int) -> None:
    clips, dropped = split_clips(frames, chunk_frames, max_chunks)
    used = [first + n for first, chunks in clips for n in range(chunks * chunk_frames)]
    assert used == list(range(frames - dropped))  # consecutive, from the first frame on, without overlap
    assert 0 <= dropped < chunk_frames


@given(st.integers(0, 3000), COUNTS, COUNTS)
def test_clips_are_as_long_as_allowed_but_for_the_last(frames: int, chunk_frames: int, max_chunks: int) -> None:
    lengths = [chunks for _, chunks in split_clips(frames, chunk_frames, max_chunks)[0]]
    assert all(chunks == max_chunks for chunks in lengths[:-1])
    assert all(1 <= chunks <= max_chunks for chunks in lengths)


def test_sixteen_frames_give_no_clip() -> None:
    assert split_clips(16, 17, 4) == ([], 16)


def test_seventeen_frames_are_one_chunk() -> None:
    assert split_clips(17, 17, 4) == ([(0, 1)], 0)


def test_a_long_video_becomes_several_clips() -> None:
    assert split_clips(17 * 5 + 3, 17, 2) == ([(0, 2), (34, 2), (68, 1)], 3)


def test_ten_seconds_of_thirty_fps_are_248_frames_at_24() -> None:
    assert count_frames(0.0, 309 / 30, clip_fps(30.0, 24.0)) == 248


def test_a_late_start_changes_no_count() -> None:
    assert count_frames(5.0, 5.0 + 309 / 30, 24.0) == 248


def test_a_single_frame_counts_as_one() -> None:
    assert count_frames(3.5, 3.5, 24.0) == 1


@given(st.integers(2, 500), st.floats(1, 24), st.floats(0, 100))
def test_a_slow_video_keeps_its_own_frames(frames: int, video_fps: float, start_s: float) -> None:
    times_s = start_s + np.arange(frames) / video_fps
    fps = clip_fps(video_fps, 24.0)
    assert count_frames(times_s[0], times_s[-1], fps) == frames
    assert nearest_frames(times_s, frame_times(times_s[0], 0, frames, fps)).tolist() == list(range(frames))


@given(st.floats(24.01, 240), st.integers(1, 1000))
def test_a_fast_video_is_sampled_at_the_target(video_fps: float, frames: int) -> None:
    end_s = (frames - 1) / video_fps
    last_s = frame_times(0.0, count_frames(0.0, end_s, clip_fps(video_fps, 24.0)) - 1, 1, 24.0)[0]
    assert abs(last_s - end_s) <= 0.5 / 24 + 1e-9  # neither beyond the end nor a frame short of it


def test_a_clip_wants_frames_from_its_place_in_the_video() -> None:
    assert frame_times(2.0, 10, 3, 5.0).tolist() == [4.0, 4.2, 4.4]


@given(GAPS_S, st.lists(st.integers(-300, 8000), min_size=1, max_size=40))
def test_the_nearest_frame_is_chosen_and_ties_go_to_the_earlier(gaps: list[int], wanted_ms: list[int]) -> None:
    times_s = np.cumsum([0, *gaps]) / 1000  # a variable rate, unless all gaps are equal
    chosen = nearest_frames(times_s, np.array(wanted_ms) / 1000)
    for wanted, index in zip(np.array(wanted_ms) / 1000, chosen.tolist(), strict=True):
        distances = np.abs(times_s - wanted)
        assert index == np.flatnonzero(distances <= distances.min() + SAME_TIME_S)[0]


@pytest.mark.parametrize(("wanted_s", "index"), [(0.49, 0), (0.5, 0), (0.51, 1), (1.5, 1), (2.0, 2), (-9.0, 0), (9, 2)])
def test_half_way_is_still_the_earlier_frame(wanted_s: float, index: int) -> None:
    assert nearest_frames(np.array([0.0, 1.0, 2.0]), np.array([wanted_s])).tolist() == [index]


def test_a_clock_of_milliseconds_chooses_the_same_frames() -> None:
    times_s = np.arange(310) / 30  # 30 fps at 24: every fourth wanted time is half way between two frames
    wanted_s = frame_times(0.0, 0, 248, 24.0)
    rounded = nearest_frames(np.round(times_s, 3), wanted_s)  # as Matroska writes them
    assert rounded.tolist() == nearest_frames(times_s, wanted_s).tolist()
