"""What an encoder takes in: the decode tasks' items, sorted into slots, looks, videos that passed or failed, costs."""

import time
from collections.abc import Iterator

import numpy as np

from jobs.decode import Decoded, Failed, Passed, Slot, Spent, VideoWork, Yielded
from pipeline.look import join_looks
from pipeline.looked import valid_in_chunk
from pipeline.records import Clip, Look


class Intake:
    """Takes what the decode tasks of a shard yield, and hands out the frames of each slot when they are there."""

    def __init__(self, items: Iterator[Yielded]) -> None:
        self.items = items
        self.arrived: dict[Slot, np.ndarray] = {}
        self.looks: dict[Slot, Look] = {}
        self.failed: dict[str, Failed] = {}  # by video
        self.passed: set[str] = set()  # keys of clips that were decoded to their end
        self.wait_s = 0.0
        self.decode_cpu_s = 0.0

    def frames(self, slot: Slot) -> np.ndarray | None:
        """(F, H, W, 3) uint8, or None where the slot's video has failed."""
        started_s = time.monotonic()
        while slot not in self.arrived and slot.video not in self.failed:
            self._take(next(self.items))
        self.wait_s += time.monotonic() - started_s
        return self.arrived.pop(slot, None)

    def finish(self) -> None:
        """Read the tasks to their end."""
        for item in self.items:
            self._take(item)

    def has_passed(self, work: VideoWork) -> bool:
        """Whether all that is wanted of a video was decoded to its end."""
        return work.video.id not in self.failed and all(clip.key in self.passed for clip in work.clips)

    def fail(self, failed: Failed) -> None:
        """Give a video up; its first reason counts."""
        self.failed.setdefault(failed.video, failed)
        self.arrived = {slot: frames for slot, frames in self.arrived.items() if slot.video != failed.video}

    def look(self, clip: Clip) -> Look:
        """How a whole clip looks: its chunks, by how many frames of them are its own."""
        slots = [Slot(clip.video, clip.key, number) for number in range(clip.num_chunks)]
        return join_looks([self.looks[slot] for slot in slots], [valid_in_chunk(clip, slot.number) for slot in slots])

    def _take(self, item: Yielded) -> None:
        if isinstance(item, Spent):
            self.decode_cpu_s += item.cpu_s
        elif isinstance(item, Failed):
            self.fail(item)
        elif isinstance(item, Passed):
            self.passed.update(item.keys)
        elif isinstance(item, Decoded) and item.slot.video not in self.failed and item.slot not in self.looks:
            self.looks[item.slot] = item.look  # which also tells what a second try yields again
            self.arrived[item.slot] = item.frames
