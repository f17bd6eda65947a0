"""A shard's chunks in batches for the VAE: one is brought together while the one before it is computed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from jobs.decode import ShardWork, Slot
from jobs.intake import Intake


@dataclass(frozen=True)
class ChunkBatch:
    """Chunks that go to the VAE together; those of videos that failed, and of no slot, are zeros."""

    first: int  # number of the first slot in the shard
    slots: Sequence[Slot]
    frames: np.ndarray  # (batch, F, H, W, 3) uint8


def batches(work: ShardWork, intake: Intake, size: int) -> Iterator[ChunkBatch]:
    """All chunks of a shard in plan order, `size` together.

    Two arrays take turns: the frames of a batch are there until the next but one is asked for.
    """
    arrays = np.zeros((2, size, *work.size, 3), np.uint8)
    for turn, first in enumerate(range(0, len(work.slots), max(1, size))):
        frames, slots = arrays[turn % 2], work.slots[first : first + size]
        for place, slot in enumerate(slots):
            arrived = intake.frames(slot)
            frames[place] = 0 if arrived is None else arrived
        frames[len(slots) :] = 0
        yield ChunkBatch(first, slots, frames)


def computed(
    found: Iterable[ChunkBatch], compute: Callable[[ChunkBatch], np.ndarray], thread: Executor
) -> Iterator[tuple[ChunkBatch, np.ndarray]]:
    """Batches and what `compute` makes of each, in a thread: it has the next one when it is done with one.

    So the VAE waits neither for frames to be copied nor for latents to be checked and written, which both happen here.
    """
    before = None
    for batch in found:
        after = batch, thread.submit(compute, batch)
        if before is not None:
            yield before[0], before[1].result()
        before = after
    if before is not None:
        yield before[0], before[1].result()
