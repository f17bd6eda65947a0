"""A video read from its middle is the one read from its beginning, and damage that the decoder sees is never shown."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline.av_reader as reader
from pipeline.av_reader import SEEKING_SAVES, first_needed, read_av
from pipeline.container import Clock, read_clock, read_facts
from pipeline.errors import BadVideo
from tests.video_files import harm, pictures, textured, write_video

LONG = 2 * SEEKING_SAVES
SMALL = (48, 80)


def clock_of(keys: list[int], frames: int = 10 * SEEKING_SAVES, stamped: bool = True) -> Clock:
    return Clock(np.arange(frames) / 30, np.isin(np.arange(frames), keys), stamped)


def test_reading_begins_at_the_key_frame_before_the_last() -> None:
    clock = clock_of([0, 400, 800, 1200])
    assert [first_needed(clock, "h264", index) for index in (0, 399, 400, 800, 1199, 1200)] == [0, 0, 0, 400, 400, 800]


def test_reading_begins_at_the_beginning_where_little_would_be_saved_or_much_risked() -> None:
    keys = [0, SEEKING_SAVES - 1, SEEKING_SAVES + 9, SEEKING_SAVES + 20]
    assert first_needed(clock_of(keys), "h264", SEEKING_SAVES + 15) == 0
    assert first_needed(clock_of(keys), "h264", SEEKING_SAVES + 25) == SEEKING_SAVES + 9
    assert first_needed(clock_of(keys), "gif", SEEKING_SAVES + 25) == 0
    assert first_needed(clock_of(keys, stamped=False), "h264", SEEKING_SAVES + 25) == 0


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "h264.mp4": ("libx264", {"bf": "3", "g": "25"}),
    "h264.ts": ("libx264", {"bf": "3", "g": "25"}),
    "open.mp4": ("libx265", {"x265_params": "log-level=none:open-gop=1:keyint=25:bframes=4:preset=ultrafast"}),
    "open.mkv": ("libx265", {"x265_params": "log-level=none:open-gop=1:keyint=25:bframes=4:preset=ultrafast"}),
    "vp9.webm": ("libvpx-vp9", {"g": "40", "cpu_used": "5", "auto_alt_ref": "1", "lag_in_frames": "19"}),
    "av1.mp4": ("libsvtav1", {"g": "25", "preset": "12"}),
}


def read_both(path: Path, first: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list, list, Counter]:
    """Five frames from `first` on, read from the middle and from the beginning, and where reading began."""
    facts, clock = read_facts(path), read_clock(path, 0)
    wanted = np.arange(first, min(first + 5, facts.num_frames))
    from_middle, begun = [], Counter()
    whole = reader._read

    def watched(*arguments):
        begun[arguments[-1]] += 1
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(reader, "SEEKING_SAVES", 1)
        patch.setattr(reader, "_read", watched)
        from_middle = list(read_av(path, 0, facts.codec, SMALL, clock, wanted))
    return from_middle, list(whole(path, 0, SMALL, clock, wanted, 0)), begun


def assert_same(ours: list, theirs: list) -> None:
    assert [index for index, _ in ours] == [index for index, _ in theirs]
    assert all(np.array_equal(one, other) for (_, one), (_, other) in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_frames_from_the_middle_are_those_from_the_beginning(tmp_path: Path, kind: str, monkeypatch) -> None:
    codec, options = KINDS[kind]
    path = write_video(tmp_path / kind, codec, pictures(130, 48, 80), **options)
    keys = np.flatnonzero(read_clock(path, 0).keys)
    assert len(keys) >= 4
    for first in [int(keys[2]), int(keys[2]) - 1, int(keys[2]) + 1, int(keys[3]) - 3, 127]:
        from_middle, from_beginning, begun = read_both(path, first, monkeypatch)
        assert_same(from_middle, from_beginning)
        assert set(begun) == {int(keys[keys <= first][-2])}  # and it did not have to start over


def test_a_container_that_leads_elsewhere_is_read_from_the_beginning(tmp_path: Path, monkeypatch) -> None:
    path = write_video(tmp_path / "a.mp4", frames=pictures(130, 48, 80), g="25")
    monkeypatch.setattr(reader, "REORDERED", -26)  # it seeks too far, to the last key frame
    from_middle, from_beginning, begun = read_both(path, 60, monkeypatch)
    assert_same(from_middle, from_beginning)
    assert begun[0] == 1


SHARED = Path(__file__).resolve().parents[2] / "../shared/videos"


@pytest.mark.skipif(not SHARED.exists(), reason="the collection of real videos is not here")
@pytest.mark.parametrize("name", ["arm_wrestling.mp4", "pancake.mkv", "h265_video.mp4"])
def test_real_videos_can_be_read_from_the_middle(name: str, monkeypatch) -> None:
    keys = np.flatnonzero(read_clock(SHARED / name, 0).keys)
    for first in [int(keys[-1]), int(keys[-1]) + 1]:
        from_middle, from_beginning, begun = read_both(SHARED / name, first, monkeypatch)
        assert_same(from_middle, from_beginning)
        assert set(begun) == {int(keys[-2])}


def read_all(path: Path, frames: int) -> list:
    clock = read_clock(path, 0)
    return list(read_av(path, 0, read_facts(path).codec, SMALL, clock, np.arange(frames)))


@pytest.mark.parametrize("how", ["flipped", "cut out"])
@pytest.mark.parametrize("kind", ["a.mp4 libx264", "a.mkv libx264", "a.mkv libx265", "a.ts mpeg2video"])
def test_damage_is_bad_and_says_where(tmp_path: Path, kind: str, how: str) -> None:
    name, codec = kind.split()
    hashes: dict[str, Any] = {"x265_params": "log-level=none:hash=1"} if codec == "libx265" else {}
    path = write_video(tmp_path / name, codec, textured(30), **hashes)
    assert len(read_all(path, 30)) == 30
    harm(path, 20, how)
    with pytest.raises(BadVideo, match="^damaged"):
        read_all(path, 30)


def test_damage_behind_the_frames_that_are_wanted_does_no_harm(tmp_path: Path) -> None:
    path = harm(write_video(tmp_path / "a.mp4", frames=textured(30), bf="0"), 20, "flipped")
    assert len(read_all(path, 20)) == 20
    with pytest.raises(BadVideo, match="^damaged: .*20 of 30"):
        read_all(path, 21)


def test_damage_that_a_decoder_only_notes_is_bad(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mov", "prores_ks", textured(5), pixels="yuv422p10le")
    harm(path, 3, "zeroed")
    with pytest.raises(BadVideo, match="^damaged: frame 3 of 5 is corrupt$"):
        read_all(path, 5)


def test_a_hole_in_a_transport_stream_is_bad(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.ts", frames=textured(30), bf="3")
    content = path.read_bytes()
    middle = len(content) // 188 // 2 * 188
    path.write_bytes(content[:middle] + content[middle + 20 * 188 :])
    frames = len(read_clock(path, 0).times_s)
    assert frames < 30
    with pytest.raises(BadVideo, match="^damaged"):
        read_all(path, frames)


def test_a_frame_behind_the_last_is_bad(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=pictures(20))
    clock = clock_of([0], 21)
    with pytest.raises(BadVideo, match="^damaged: 20 of 21 frames can be decoded$"):
        list(read_av(path, 0, "h264", SMALL, clock, np.array([19, 20])))


def test_frames_that_change_their_size_on_the_way_come_out_alike(tmp_path: Path) -> None:
    small = write_video(tmp_path / "small.ts", frames=pictures(20, 64, 160), bf="0")
    large = write_video(tmp_path / "large.ts", frames=pictures(20, 128, 160), ticks=range(20, 40), bf="0")
    joined = tmp_path / "joined.ts"
    joined.write_bytes(small.read_bytes() + large.read_bytes())
    clock = read_clock(joined, 0)
    frames = [frame for _, frame in read_av(joined, 0, "h264", SMALL, clock, np.arange(len(clock.times_s)))]
    assert len(frames) == 40 and {frame.shape for frame in frames} == {(48, 80, 3)}
