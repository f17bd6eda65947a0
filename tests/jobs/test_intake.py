"""Whatever order decode tasks yield in, each slot gets its own frames, once, and a failed video none."""

from collections.abc import Iterator

import numpy as np
import pytest

from jobs.decode import Decoded, Failed, Passed, Slot, Spent, VideoWork, Yielded
from jobs.intake import Intake
from pipeline.records import Clip, Look, Video


def chunk(video: str, number: int, luminance: float = 0.5) -> Decoded:
    frames = np.full((17, 8, 8, 3), number, np.uint8)
    return Decoded(Slot(video, f"{video}-clip", number), frames, Look(luminance, 0.1, 0.2))


def taken(items: list[Yielded]) -> Intake:
    intake = Intake(iter(items))
    intake.finish()
    return intake


def test_a_slot_gets_its_own_frames() -> None:
    intake = Intake(iter([chunk("b", 0), chunk("a", 1), chunk("a", 0)]))
    for slot in (Slot("a", "a-clip", 0), Slot("a", "a-clip", 1), Slot("b", "b-clip", 0)):
        frames = intake.frames(slot)
        assert frames is not None and (frames == slot.number).all()
    assert not intake.arrived


def test_what_a_second_try_yields_again_is_dropped() -> None:
    intake = Intake(iter([chunk("a", 0), chunk("a", 0), chunk("a", 1)]))
    assert intake.frames(Slot("a", "a-clip", 0)) is not None
    assert intake.frames(Slot("a", "a-clip", 1)) is not None
    assert not intake.arrived


def test_nothing_is_kept_of_a_failed_video() -> None:
    """Another task may go on decoding its other clips: a long video would fill the memory."""
    intake = taken([chunk("a", 0), chunk("b", 0), Failed("a", "damaged", 2), Failed("a", "other", 2), chunk("a", 1)])
    assert [slot.video for slot in intake.arrived] == ["b"]
    assert intake.frames(Slot("a", "a-clip", 0)) is None
    assert intake.failed == {"a": Failed("a", "damaged", 2)}


def test_waiting_ends_with_the_failure() -> None:
    def items() -> Iterator[Yielded]:
        yield Failed("a", "damaged", 2)
        raise AssertionError("nothing more needs to be read")

    assert Intake(items()).frames(Slot("a", "a-clip", 3)) is None


def test_a_video_has_passed_when_all_its_clips_have() -> None:
    """A long video is decoded by several tasks, each of which passes some of its clips."""
    video = Video("a", "/a.mp4", "", 1, 1, "h264", 0, 8, 8, 34, 0.0, 33 / 8, 8.0)
    clips = tuple(Clip(key, "s", "a", first, 1, 17, 17, 8.0, 8, 8, 0.0, 9.0) for key, first in (("k", 0), ("l", 17)))
    work = VideoWork(video, clips)
    assert not taken([Passed("a", ("k",))]).has_passed(work)
    assert taken([Passed("a", ("k",)), Passed("a", ("l",))]).has_passed(work)
    assert not taken([Passed("a", ("k", "l")), Failed("a", "damaged", 2)]).has_passed(work)


def test_the_cost_of_all_tasks_is_added_up() -> None:
    assert taken([Spent(1.5), chunk("a", 0), Spent(2.0)]).decode_cpu_s == 3.5


def test_a_clip_looks_as_its_own_frames_do() -> None:
    """17 of the first chunk and 3 of the second, which is filled up."""
    clip = Clip("a-clip", "s", "a", 0, 2, 34, 20, 24.0, 8, 8, 0.0, 9.0)
    look = taken([chunk("a", 0, luminance=0.2), chunk("a", 1, luminance=0.8)]).look(clip)
    assert look.luminance == pytest.approx((17 * 0.2 + 3 * 0.8) / 20)
    assert (look.motion, look.sharpness) == pytest.approx((0.1, 0.2))
