"""Every frame of a scene is used, padded or dropped, once, and clips show the frames nearest to the times they want."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.chunk import (
    SAME_TIME_S,
    Split,
    clip_fps,
    count_frames,
    frame_times,
    nearest_frames,
    split_clips,
    split_scenes,
)

TAILS = ("drop", "pad", "overlap")
GAPS_S = st.lists(st.integers(5, 400), max_size=60)  # milliseconds between frames


def test_a_scene_shorter_than_the_shortest_clip_gives_none() -> None:
    assert split_clips(16, 17, 1, 4, "drop") == Split([], short=16)
    assert split_clips(16, 17, 1, 4, "overlap") == Split([], short=16)
    assert split_clips(33, 17, 2, 4, "drop") == Split([], short=33)


@pytest.mark.parametrize("tail", TAILS)
def test_seventeen_frames_are_one_chunk(tail: str) -> None:
    assert split_clips(17, 17, 1, 4, tail) == Split([(0, 1, 17)])


def test_a_long_video_becomes_several_clips() -> None:
    assert split_clips(17 * 5 + 3, 17, 1, 2, "drop") == Split([(0, 2, 34), (34, 2, 34), (68, 1, 17)], tail=3)


def test_chunks_too_few_for_a_clip_are_left_out() -> None:
    assert split_clips(17 * 5 + 3, 17, 2, 4, "drop") == Split([(0, 4, 68)], rest=17, tail=3)


def test_padding_joins_the_last_clip_where_it_has_room() -> None:
    assert split_clips(17 + 3, 17, 1, 2, "pad") == Split([(0, 2, 20)], padded=3)
    assert split_clips(34 + 3, 17, 1, 2, "pad") == Split([(0, 2, 34), (34, 1, 3)], padded=3)
    assert split_clips(3, 17, 1, 2, "pad") == Split([(0, 1, 3)], padded=3)


def test_padding_invents_no_whole_chunk() -> None:
    assert split_clips(17, 17, 2, 4, "pad") == Split([], short=17)
    assert split_clips(18, 17, 2, 4, "pad") == Split([(0, 2, 18)], padded=1)
    assert split_clips(68 + 3, 17, 2, 4, "pad") == Split([(0, 4, 68)], rest=3)


def test_an_overlapping_clip_ends_on_the_last_frame() -> None:
    assert split_clips(34 + 3, 17, 1, 2, "overlap") == Split([(0, 2, 34), (20, 1, 17)])
    assert split_clips(34 + 3, 17, 2, 2, "overlap") == Split([(0, 2, 34), (3, 2, 34)])
    assert split_clips(68 + 20, 17, 2, 4, "overlap") == Split([(0, 4, 68), (54, 2, 34)])
    assert split_clips(34, 17, 1, 2, "overlap") == Split([(0, 2, 34)])  # nothing is left


LENGTHS = st.integers(0, 3000)
CHUNKS = st.tuples(st.integers(1, 8), st.integers(1, 8)).map(lambda pair: (min(pair), max(pair)))


@given(LENGTHS, st.sampled_from([1, 5, 17, 81]), CHUNKS, st.sampled_from(TAILS))
def test_every_frame_of_a_scene_has_one_place(
    frames: int, chunk_frames: int, chunks: tuple[int, int], tail: str
) -> None:
    split = split_clips(frames, chunk_frames, chunks[0], chunks[1], tail)
    spans = [range(first, first + valid) for first, _, valid in split.clips]
    overlapping = bool(spans) and tail == "overlap" and len(spans) > 1 and spans[-1].start < spans[-2].stop
    body = spans[:-1] if overlapping else spans
    assert [frame for span in body for frame in span] == list(
        range(sum(map(len, body)))
    )  # from the first on, each once
    covered = {frame for span in spans for frame in span}
    assert len(covered) + split.short + split.rest + split.tail == frames
    assert covered == set(range(len(covered)))
    for place, (_, num_chunks, valid) in enumerate(split.clips):
        assert chunks[0] <= num_chunks <= chunks[1]
        is_padded = tail == "pad" and place == len(spans) - 1 and frames % chunk_frames and not split.rest
        assert (num_chunks - bool(is_padded)) * chunk_frames + (split.padded if is_padded else 0) == valid
    assert all(num_chunks == chunks[1] for _, num_chunks, _ in split.clips[: len(body) - 1])
    if overlapping:
        assert spans[-1].stop == frames and len(spans[-1]) == chunks[0] * chunk_frames
    if tail == "overlap" and frames >= chunks[0] * chunk_frames:
        assert len(covered) == frames
    if tail != "pad":
        assert split.padded == 0
    assert (split.short > 0) == (frames > 0 and not spans)


def test_a_frame_belongs_to_the_scene_in_which_its_time_lies() -> None:
    assert split_scenes([0.0], 0.0, 10.0, 30) == [(0, 30)]
    assert split_scenes([0.0, 1.0, 1.55], 0.0, 10.0, 30) == [(0, 10), (10, 16), (16, 30)]
    assert split_scenes([5.0, 6.0], 5.0, 10.0, 30) == [(0, 10), (10, 30)]  # the video begins late


def test_the_rounding_of_timestamps_moves_no_frame_across_a_cut() -> None:
    for first in range(1, 300):
        for cut_s in (round(first / 24, 3), first / 24, first / 24.000001):
            assert split_scenes([0.0, cut_s], 0.0, 24.0, 400) == [(0, first), (first, 400)]


def test_scenes_shorter_than_the_sampling_get_no_frames() -> None:
    assert split_scenes([0.0, 0.01, 0.02, 9.0], 0.0, 10.0, 30) == [(0, 1), (1, 1), (1, 30), (30, 30)]


@given(st.lists(st.floats(0, 100), max_size=8).map(sorted), st.floats(-50, 50), st.floats(0.5, 60), st.integers(1, 500))
def test_scenes_share_out_all_frames_by_their_times(cuts: list[float], start_s: float, fps: float, frames: int) -> None:
    starts_s = [start_s, *(start_s + cut_s for cut_s in cuts)]
    spans = split_scenes(starts_s, start_s, fps, frames)
    assert [frame for span in spans for frame in range(*span)] == list(range(frames))
    times_s = frame_times(start_s, 0, frames, fps)
    for number, span in enumerate(spans):
        assert all(times_s[slice(*span)] >= starts_s[number] - SAME_TIME_S - 1e-9)
        assert all(times_s[slice(*span)] < (*starts_s, np.inf)[number + 1] - SAME_TIME_S + 1e-9)


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
