"""Batches hold every chunk once in plan order, and the next one is on its way while one is dealt with."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest

from jobs.batches import ChunkBatch, batches, computed
from jobs.decode import Decoded, Failed, Passed, ShardWork, Slot, VideoWork
from jobs.intake import Intake
from pipeline.records import Clip, Look, Video

SIZE = (17, 8, 8)
WAIT_S = 60.0


def shard_work(*videos: str) -> ShardWork:
    """A shard of one clip of two chunks from each video."""
    works = []
    for name in videos:
        clip = Clip(f"{name}-0", "s", name, 0, 2, 34, 34, 8.0, 8, 8, 0.0, 99.0)
        works.append(VideoWork(Video(name, f"/{name}", "", 1, 1, "h264", 0, 8, 8, 99, 0.0, 9.0, 8.0), (clip,)))
    return ShardWork("s", SIZE, tuple(works), (), ())


def level(slot: Slot) -> int:
    """The grey that a chunk is filled with."""
    return 10 * ord(slot.video) % 200 + slot.number + 1


def intake_of(work: ShardWork, failing: str = "") -> Intake:
    def items():
        for video in work.videos:
            if video.video.id == failing:
                yield Failed(failing, "damaged", 2)
                continue
            for slot in work.slots:
                if slot.video == video.video.id:
                    yield Decoded(slot, np.full((*SIZE, 3), level(slot), np.uint8), Look(0.5, 0.1, 0.2))
            yield Passed(video.video.id, tuple(clip.key for clip in video.clips))

    return Intake(items())


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_every_chunk_is_in_one_batch_in_plan_order_and_the_rest_is_zeros(size: int) -> None:
    work = shard_work("a", "b", "c")
    found = [(b.first, list(b.slots), b.frames[:, 0, 0, 0, 0].tolist()) for b in batches(work, intake_of(work), size)]
    assert [slot for _, slots, _ in found for slot in slots] == work.slots
    assert [first for first, _, _ in found] == list(range(0, 6, size))
    for _, slots, levels in found:
        assert levels == [level(slot) for slot in slots] + [0] * (size - len(slots))


def test_chunks_of_a_video_that_failed_are_zeros() -> None:
    work = shard_work("a", "b")
    [batch] = batches(work, intake_of(work, failing="a"), 4)
    assert batch.frames[:2].max() == 0 and batch.frames[2:].min() > 0


def test_the_frames_of_a_batch_are_still_there_when_the_next_one_is() -> None:
    work = shard_work("a", "b", "c")
    found = batches(work, intake_of(work), 2)
    first = next(found)
    before = first.frames.copy()
    next(found)
    assert np.array_equal(first.frames, before)


def test_the_next_batch_is_computed_while_one_is_dealt_with() -> None:
    numbers = [ChunkBatch(first, (), np.zeros(0)) for first in range(3)]
    begun = [Event() for _ in numbers]

    def compute(batch: ChunkBatch) -> np.ndarray:
        begun[batch.first].set()
        return np.array(batch.first)

    with ThreadPoolExecutor(1) as thread:
        for batch, result in computed(numbers, compute, thread):
            assert result == batch.first
            assert all(one.wait(WAIT_S) for one in begun[: batch.first + 2])


def test_what_goes_wrong_in_the_thread_is_raised() -> None:
    def compute(batch: ChunkBatch) -> np.ndarray:
        raise MemoryError("no room")

    with ThreadPoolExecutor(1) as thread, pytest.raises(MemoryError, match="no room"):
        list(computed([ChunkBatch(0, (), np.zeros(0))], compute, thread))
