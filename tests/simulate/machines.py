"""Machines of the simulated cluster: encoders that do shards in simulated time and commit them by the real protocol."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Protocol
from zlib import crc32

from jobs.decode import Failed, ShardWork
from jobs.encode import left_out
from pipeline.cache import Cache
from pipeline.errors import Refused
from pipeline.quarantine import set_aside
from pipeline.records import UNKNOWN, Look, Sample
from pipeline.sample import clip_start_s, make_sample
from pipeline.shard import Packed, commit_shard, writing_shard
from tests.simulate.account import Account, Attempt
from tests.simulate.clock import Clock, Process
from tests.simulate.scene import Scene

LOOK = Look(0.5, 0.1, 0.1)
HOUR_S = 3600.0
SLOWNESS = 10.0


class Driver(Protocol):
    """Who starts workers and hears of them."""

    def ready(self, worker: Worker) -> None: ...
    def done(self, worker: Worker, work: ShardWork) -> None: ...
    def failed(self, worker: Worker) -> None: ...
    def told_to_leave(self, worker: Worker) -> None: ...
    def lost(self, worker: Worker) -> None: ...


class Worker:
    """One machine with one encoder; what befalls it is drawn when it starts."""

    def __init__(
        self, scene: Scene, clock: Clock, draw: Random, cache: Cache, account: Account, driver: Driver
    ) -> None:
        self.scene, self.clock, self.draw, self.cache = scene, clock, draw, cache
        self.account, self.driver = account, driver
        self.is_alive, self.is_heard = True, True
        self.begun_s, self.ready_s = clock.now_s, None
        self.slowness = SLOWNESS if draw.random() < scene.slow else 1.0
        self.calls: deque[ShardWork] = deque()
        self.encoding: Attempt | None = None
        self.committing: dict[Attempt, Process] = {}
        clock.after(scene.start_s * draw.uniform(0.7, 1.5), self._start)
        fates: list[tuple[float, Callable[[], None]]] = [
            (scene.deaths, partial(self.die, "death")),
            (scene.evictions, partial(self.die, "eviction")),
            (scene.preemptions, self._be_told),
            (scene.cuts, self._be_cut_off),
        ]
        for rate, fate in fates:
            if rate:
                clock.after(draw.expovariate(rate / HOUR_S), fate)

    def call(self, work: ShardWork) -> None:
        self.calls.append(work)
        if self.encoding is None:
            self._begin()

    def end(self, cause: str) -> None:
        """Whatever it is at comes to nothing."""
        if not self.is_alive:
            return
        self.is_alive = False
        for process in self.committing.values():
            process.is_killed = True
        for attempt in [*self.committing, *([self.encoding] if self.encoding else [])]:
            self.account.lost(attempt, cause, self.clock.now_s)
        self.account.ended(self.begun_s, self.ready_s, self.clock.now_s)

    def die(self, cause: str) -> None:
        """Which somebody sees a while later."""
        if self.is_alive:
            self.end(cause)
            if self.is_heard:
                self.clock.after(self.scene.unnoticed_s, partial(self.driver.lost, self))

    def _start(self) -> None:
        if self.is_alive:
            self.ready_s = self.clock.now_s
            if self.is_heard:
                self.driver.ready(self)

    def _be_told(self) -> None:
        if self.is_alive and self.is_heard:
            self.driver.told_to_leave(self)
        self.clock.after(self.scene.notice_s, partial(self.die, "preemption"))

    def _be_cut_off(self) -> None:
        if self.is_alive:
            self.is_heard = False
            self.clock.after(self.scene.unnoticed_s, partial(self.driver.lost, self))
            self.clock.after(self.draw.expovariate(1 / self.scene.cut_s), partial(self.end, "cut"))

    def _begin(self) -> None:
        self.encoding = Attempt(self.calls.popleft(), self.clock.now_s) if self.calls else None
        if self.encoding:
            self.account.began(self.encoding)
        if self.encoding and self.draw.random() >= self.scene.hangs:
            took_s = shard_s(self.scene, self.encoding.work) * self.slowness
            self.clock.after(took_s * self.draw.lognormvariate(0, self.scene.chunk_spread), self._encoded)

    def _encoded(self) -> None:
        """While a shard is committed the worker is at the next one."""
        if self.is_alive and self.encoding is not None:
            attempt = self.encoding
            attempt.encoded_s = self.clock.now_s
            self.committing[attempt] = Process(self.clock, partial(self._commit, attempt))
            self._begin()

    def _commit(self, attempt: Attempt) -> None:
        try:
            write_and_commit(self.cache, attempt.work, self.scene.bad)
        except (Refused, OSError):
            if self.is_heard:
                self.clock.after(0.0, partial(self.driver.failed, self))
            return
        del self.committing[attempt]
        self.account.committed(attempt, self.clock.now_s)
        if self.is_heard:
            self.clock.after(0.0, partial(self.driver.done, self, attempt.work))


def shard_s(scene: Scene, work: ShardWork) -> float:
    """Seconds that an encoder takes for a shard."""
    return scene.chunk_s * sum(clip.num_chunks for video in work.videos for clip in video.clips)


def is_bad(video: str, share: float) -> bool:
    """Whether a video cannot be decoded, by anybody."""
    return crc32(video.encode()) < share * 2**32


def write_and_commit(cache: Cache, work: ShardWork, bad: float) -> None:
    """What an encoder does when all of a shard is encoded; one member stands for all latents, the rest is real."""
    failed = {
        one.video.id: Failed(one.video.id, "its frames end early", 2)
        for one in work.videos
        if is_bad(one.video.id, bad)
    }
    good = [(one.video, clip) for one in work.videos if one.video.id not in failed for clip in one.clips]
    with writing_shard(cache.latents, work.shard) as tar:
        stand_in = "\n".join(clip.key for _, clip in good).encode()
        where = tar.add(Packed("all", {"latent.npy": stand_in, "json": b"{}"}))
        set_aside(cache, work.shard, left_out(work, failed))
    rows = [make_sample(clip, work.shard, clip_start_s(video, clip), LOOK, UNKNOWN, where) for video, clip in good]
    commit_shard(cache.latents, work.shard, Sample, rows, {**dict(work.facts), **tar.facts})
