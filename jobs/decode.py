"""Decode tasks on Ray, and the encoder's view of them: chunks in plan order, decoded ahead, within a memory bound."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError, OwnerDiedError, WorkerCrashedError

from jobs.config import EncodeConfig
from pipeline.decode import decode_clips
from pipeline.errors import BadVideo
from pipeline.records import Clip, Video

DECODE_ATTEMPTS = 2
PROCESS_LOST = (WorkerCrashedError, ObjectLostError, OwnerDiedError, OutOfMemoryError)


@dataclass(frozen=True)
class VideoWork:
    """One video and the clips of it that a shard wants, in the order of their frames."""

    video: Video
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class ShardWork:
    """A shard's clips by video, in plan order, and the facts that its sidecar will state."""

    shard: str
    videos: tuple[VideoWork, ...]
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Decoded:
    """One chunk as a decode task yields it."""

    key: str
    number: int  # of the chunk in its clip
    frames: np.ndarray  # (chunk_frames, H, W, 3) uint8


@dataclass(frozen=True)
class Failed:
    """A video that cannot be decoded, as a decode task yields it."""

    video: str
    reason: str
    attempts: int


Group = tuple[VideoWork, ...]


def decode_groups(work: ShardWork, chunk_frames: int, frames_per_task: int) -> Iterator[Group]:
    """A shard's videos in groups for one decode task each: about `frames_per_task` frames, one video at the least."""
    group: list[VideoWork] = []
    frames = 0
    for video in work.videos:
        wanted = sum(clip.num_chunks for clip in video.clips) * chunk_frames
        if group and frames + wanted > frames_per_task:
            yield tuple(group)
            group, frames = [], 0
        group.append(video)
        frames += wanted
    if group:
        yield tuple(group)


@ray.remote(num_cpus=1, max_retries=0)
def decode(group: Group, chunk_frames: int) -> Iterator[Decoded | Failed]:
    """Decode the clips of some videos chunk by chunk; a video that fails twice is reported, and the next one begun."""
    for work in group:
        for attempt in range(1, DECODE_ATTEMPTS + 1):
            try:
                for clip, number, frames in decode_clips(work.video, work.clips, chunk_frames):
                    yield Decoded(clip.key, number, frames)
                break
            except BadVideo as error:
                if attempt == DECODE_ATTEMPTS:
                    yield Failed(work.video.id, str(error), attempt)


class Decoders:
    """The decode tasks of one encoder: those of the shard it encodes and, as they run out, of the shard after it.

    At most `settings.decode_tasks` tasks exist at once, and together they hold at most `settings.decode_ahead_bytes`
    of frames that were not asked for yet. Tasks are read in the order they were started.
    """

    def __init__(self, settings: EncodeConfig, chunk_frames: int) -> None:
        self.settings = settings
        self.chunk_frames = chunk_frames
        self.waiting: dict[str, deque[Group]] = {}  # not started yet, by shard
        self.running: dict[str, deque[tuple[Group, Any]]] = {}  # groups and their streams, by shard

    def read(self, work: ShardWork, upcoming: ShardWork | None) -> Iterator[Decoded | Failed]:
        """All that the videos of `work` yield, in plan order; tasks of `upcoming` start once those of `work` have."""
        shards = [work, upcoming] if upcoming else [work]
        for shard in shards:
            if shard.shard not in self.waiting:
                groups = decode_groups(shard, self.chunk_frames, self.settings.frames_per_task)
                self.waiting[shard.shard], self.running[shard.shard] = deque(groups), deque()
        self._start(shards)
        while self.running[work.shard]:
            group, stream = self.running[work.shard][0]
            yield from self._read_task(group, stream, attempt=1)
            self.running[work.shard].popleft()
            self._start(shards)
        del self.waiting[work.shard], self.running[work.shard]

    def _start(self, shards: list[ShardWork]) -> None:
        """Start tasks while there is room, the earlier shard's first: were the later one's ahead, both could stall."""
        for shard in shards:
            while self.waiting[shard.shard] and sum(map(len, self.running.values())) < self.settings.decode_tasks:
                group = self.waiting[shard.shard].popleft()
                self.running[shard.shard].append((group, self._launch(group)))

    def _launch(self, group: Group) -> Any:
        clip = group[0].clips[0]
        chunk_bytes = self.chunk_frames * clip.height * clip.width * 3
        chunks_ahead = max(1, self.settings.decode_ahead_bytes // (self.settings.decode_tasks * chunk_bytes))
        options: dict[str, Any] = {"_generator_backpressure_num_objects": chunks_ahead}
        return decode.options(**options).remote(group, self.chunk_frames)

    def _read_task(self, group: Group, stream: Any, attempt: int) -> Iterator[Decoded | Failed]:
        """What a task yields. When its process dies, its videos are decoded again one by one to find the culprit."""
        try:
            for reference in stream:
                yield ray.get(reference)
        except PROCESS_LOST as error:
            if attempt == DECODE_ATTEMPTS:
                reason = f"the process that decoded it died: {type(error).__name__}"
                yield Failed(group[0].video.id, reason, attempt)
                return
            for video in group:
                yield from self._read_task((video,), self._launch((video,)), attempt + 1)
