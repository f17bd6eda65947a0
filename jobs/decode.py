"""Decode tasks on Ray, and the encoder's view of them: chunks in plan order, decoded ahead, within a memory bound."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError

from pipeline.decode import at_hand
from pipeline.errors import BadVideo
from pipeline.looked import decode_and_look
from pipeline.records import Clip, Look, Video
from pipeline.sandbox import Limits, sandbox_here

if TYPE_CHECKING:  # a decode task does without torch, which the configuration's checks import
    from jobs.config import DataConfig, EncodeConfig

DECODE_ATTEMPTS = 2
NODE_LOST = (NodeDiedError, ObjectLostError)  # dead or cut off, with the tasks there and what they had yielded
PROCESS_LOST = (WorkerCrashedError, OutOfMemoryError, *NODE_LOST)


@dataclass(frozen=True)
class VideoWork:
    """One video and clips of it that a shard wants, in the order of their frames."""

    video: Video
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class Slot:
    """One chunk's place in the shard's plan."""

    video: str
    key: str
    number: int  # of the chunk in its clip


@dataclass(frozen=True)
class ShardWork:
    """A shard's clips by video, in plan order, and the facts that its sidecar will state."""

    shard: str
    size: tuple[int, int, int]  # (frames, height, width) of each of its chunks
    videos: tuple[VideoWork, ...]
    removed: tuple[Video, ...]  # planned, and no longer in the source: their clips are left out
    facts: tuple[tuple[str, str], ...]

    @cached_property
    def slots(self) -> list[Slot]:
        """Every chunk to be decoded, in plan order."""
        clips = (clip for video in self.videos for clip in video.clips)
        return [Slot(clip.video, clip.key, number) for clip in clips for number in range(clip.num_chunks)]


@dataclass(frozen=True)
class Decoded:
    """One chunk as a decode task yields it."""

    slot: Slot
    frames: np.ndarray  # (F, H, W, 3) uint8
    look: Look


@dataclass(frozen=True)
class Passed:
    """Clips of a video that were decoded to their end: nothing that comes later takes them back."""

    video: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Failed:
    """A video that cannot be decoded, as a decode task yields it."""

    video: str
    reason: str
    attempts: int
    stderr: str = ""
    stage: str = "decode"


@dataclass(frozen=True)
class Spent:
    """What a decode task has cost, as it yields it at its end."""

    cpu_s: float


Group = tuple[VideoWork, ...]
Yielded = Decoded | Passed | Failed | Spent


def decode_groups(work: ShardWork, frames_per_task: int) -> Iterator[Group]:
    """A shard's clips in groups for one decode task each: at most `frames_per_task` frames, one clip at the least."""
    group: list[VideoWork] = []
    frames = 0
    for video in work.videos:
        for part in _parts(video, frames_per_task):
            wanted = sum(clip.num_frames for clip in part.clips)
            if group and frames + wanted > frames_per_task:
                yield tuple(group)
                group, frames = [], 0
            group.append(part)
            frames += wanted
    if group:
        yield tuple(group)


def _parts(work: VideoWork, frames_per_task: int) -> Iterator[VideoWork]:
    """A video that is too long for one task in parts, each of which begins to read where its clips begin."""
    clips: list[Clip] = []
    for clip in work.clips:
        if clips and sum(one.num_frames for one in clips) + clip.num_frames > frames_per_task:
            yield VideoWork(work.video, tuple(clips))
            clips = []
        clips.append(clip)
    yield VideoWork(work.video, tuple(clips))


def reader_limits(data: DataConfig) -> Limits:
    """What a process that reads videos may use."""
    return Limits(data.deadline_s, data.reader_bytes, data.reader_videos)


@ray.remote(max_retries=0)
def decode(group: Group, limits: Limits) -> Iterator[Yielded]:
    """Decode the clips of some videos chunk by chunk; a video that fails twice is reported, and the next one begun.

    The second try of a video yields its first chunks again.
    """
    sandbox = sandbox_here(limits)
    cpu_s = 0.0
    for work in group:
        for attempt in range(1, DECODE_ATTEMPTS + 1):
            try:
                with at_hand(work.video) as video:
                    seen = sandbox.stream(decode_and_look, video, work.clips, lasts_s=video.duration_s)
                    for clip, number, frames, look in seen:
                        yield Decoded(Slot(video.id, clip.key, number), frames, look)
                yield Passed(work.video.id, tuple(clip.key for clip in work.clips))
                break
            except BadVideo as error:
                if attempt == DECODE_ATTEMPTS:
                    yield Failed(work.video.id, str(error), attempt, error.stderr)
            finally:
                cpu_s += sandbox.cpu_s
    yield Spent(cpu_s)


@dataclass
class _Tasks:
    """The decode tasks of one shard."""

    waiting: deque[Group]
    running: deque[tuple[Group, Any]] = field(default_factory=deque)  # groups and their streams
    failed: set[str] = field(default_factory=set)  # videos of which no more is decoded


class Decoders:
    """The decode tasks of one encoder: those of the shard it encodes and, as they run out, of the shard after it.

    At most `settings.decode_tasks` tasks exist at once, and together they hold at most `settings.decode_ahead_bytes`
    of frames that were not asked for yet, beside the few chunks on their way out of a sandbox. Tasks are read in the
    order they were started, on nodes that have these labels.
    """

    def __init__(self, settings: EncodeConfig, limits: Limits, labels: Mapping[str, str] | None = None) -> None:
        self.settings = settings
        self.limits = limits
        self.labels = dict(labels or {})
        self.tasks: dict[str, _Tasks] = {}  # by shard

    def read(self, work: ShardWork, upcoming: ShardWork | None) -> Iterator[Yielded]:
        """All that the videos of `work` yield, in plan order; tasks of `upcoming` start once those of `work` have."""
        shards = [work, upcoming] if upcoming else [work]
        for shard in shards:
            if shard.shard not in self.tasks:
                self.tasks[shard.shard] = _Tasks(deque(decode_groups(shard, self.settings.frames_per_task)))
        tasks = self.tasks[work.shard]
        self._start(shards)
        while tasks.running:
            group, stream = tasks.running[0]
            for item in self._read_task(group, stream, attempt=1):
                if isinstance(item, Failed):
                    tasks.failed.add(item.video)
                yield item
            tasks.running.popleft()
            self._start(shards)
        del self.tasks[work.shard]

    def _start(self, shards: list[ShardWork]) -> None:
        """Start tasks while there is room, the earlier shard's first: were the later one's ahead, both could stall."""
        for tasks in [self.tasks[shard.shard] for shard in shards]:
            while tasks.waiting and self.count_running() < self.settings.decode_tasks:
                group = tuple(one for one in tasks.waiting.popleft() if one.video.id not in tasks.failed)
                if group:
                    tasks.running.append((group, self._launch(group)))

    def count_running(self) -> int:
        return sum(len(tasks.running) for tasks in self.tasks.values())

    def _launch(self, group: Group) -> Any:
        clip = group[0].clips[0]
        chunk_bytes = clip.chunk_frames * clip.height * clip.width * 3
        chunks_ahead = max(1, self.settings.decode_ahead_bytes // (self.settings.decode_tasks * chunk_bytes))
        options: dict[str, Any] = {"num_cpus": self.settings.decode_cpus, "label_selector": self.labels}
        options |= {"_generator_backpressure_num_objects": chunks_ahead}
        return decode.options(**options).remote(group, self.limits)

    def _read_task(self, group: Group, stream: Any, attempt: int) -> Iterator[Yielded]:
        """What a task yields. When its process dies, its videos are decoded again one by one to find the culprit, but
        for those that had passed. When its node is lost, no video is to blame."""
        passed: set[tuple[str, ...]] = set()
        try:
            for reference in stream:
                item: Any = ray.get(reference)
                if isinstance(item, Passed):
                    passed.add(item.keys)
                yield item
        except PROCESS_LOST as error:
            left = tuple(one for one in group if tuple(clip.key for clip in one.clips) not in passed)
            if isinstance(error, NODE_LOST):
                yield from self._read_task(left, self._launch(left), attempt) if left else ()
            elif attempt == DECODE_ATTEMPTS:
                reason = f"the process that decoded it died: {type(error).__name__}"
                yield from (Failed(one.video.id, reason, attempt) for one in left)
            else:
                for one in left:
                    yield from self._read_task((one,), self._launch((one,)), attempt + 1)
