"""decord is believed only where it agrees with the container and complains of nothing."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.container import read_clock
from pipeline.decode import read_frames
from pipeline.decord_reader import read_decord, suits_decord
from pipeline.errors import BadVideo
from tests.video_files import harm, pictures, textured, video_of, write_video

SIZE = (48, 80)


def test_it_is_asked_only_for_many_frames_of_files_on_which_it_is_right(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=pictures(40))
    video, clock, every = video_of(path), read_clock(path, 0), np.arange(40)
    assert suits_decord(video, clock, every)
    assert not suits_decord(video, clock, every[::2])
    assert not suits_decord(replace(video, codec="hevc"), clock, every)
    assert not suits_decord(video, replace(clock, container="mpegts"), every)
    assert not suits_decord(video, replace(clock, stamped=False), every)


def test_it_gives_way_where_it_disagrees_with_the_container(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    clock = read_clock(path, 0)
    with pytest.raises(BadVideo, match="^60 frames where the container has 59$"):
        list(read_decord(path, SIZE, replace(clock, times_s=clock.times_s[:-1]), np.array([0])))
    with pytest.raises(BadVideo, match="^other timestamps than the container's$"):
        list(read_decord(path, SIZE, replace(clock, times_s=2 * clock.times_s), np.array([0])))


@pytest.mark.parametrize("number", [6, 9, 20, 21])
def test_it_gives_way_where_its_decoder_complains_before_a_wrong_frame_is_out(tmp_path: Path, number: int) -> None:
    path = write_video(tmp_path / "a.mp4", frames=textured(30))
    clock = read_clock(path, 0)
    good = [frame for _, frame in read_decord(path, SIZE, clock, np.arange(30))]
    harm(path, number, "flipped")
    frames = []
    with pytest.raises(BadVideo):
        for _, frame in read_decord(path, SIZE, clock, np.arange(30)):
            frames.append(frame)
    assert len(frames) < 30 and all(np.array_equal(*pair) for pair in zip(frames, good[: len(frames)], strict=True))


def test_damage_that_decord_conceals_makes_a_video_bad(tmp_path: Path) -> None:
    path = harm(write_video(tmp_path / "a.mp4", frames=textured(30)), 20, "flipped")
    video = video_of(path)
    assert suits_decord(video, read_clock(path, 0), np.arange(30))
    with pytest.raises(BadVideo, match=r"^damaged: \d+ of 30 frames can be decoded"):
        list(read_frames(path, video, SIZE))


def test_what_others_write_to_stderr_meanwhile_still_comes_out(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    path = write_video(tmp_path / "a.mp4", frames=pictures(20))
    capfd.readouterr()
    for index, _ in read_decord(path, SIZE, read_clock(path, 0), np.arange(20)):
        os.write(2, b"frame %d\n" % index)
    assert capfd.readouterr().err == "".join(f"frame {index}\n" for index in range(20))
    os.write(2, b"and afterwards\n")
    assert capfd.readouterr().err == "and afterwards\n"


def test_a_reader_left_early_gives_stderr_back(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    path = write_video(tmp_path / "a.mp4", frames=pictures(20))
    for _ in read_decord(path, SIZE, read_clock(path, 0), np.arange(20)):
        break
    os.write(2, b"back\n")
    assert capfd.readouterr().err.endswith("back\n")
