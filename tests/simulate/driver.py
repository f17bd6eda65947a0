"""The driver of the simulated cluster: what `encode` and its `share_out` do, by the real parts of both."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import psutil

from cluster.sharing import Call, Sharing, WorkerLost
from jobs.config import RunConfig
from jobs.configured import configured_recipe
from jobs.decode import ShardWork
from jobs.encode import find_missing, shard_work
from jobs.plan import read_manifest, read_plan
from pipeline.errors import Refused
from pipeline.index import merge_index
from pipeline.plan import shards_of
from pipeline.records import Sample
from pipeline.storage import THREADS
from tests.simulate.account import Account
from tests.simulate.clock import Clock
from tests.simulate.machines import HOUR_S, Worker
from tests.simulate.scene import Scene
from tests.simulate.store import Store

LOOK_EVERY_S = 5.0  # as share_out
NEVER = 100  # times as long as the work should take


class Driver:
    """Starts workers, gives them shards, hears of their end, merges the index; may itself end and be started again."""

    def __init__(self, scene: Scene, config: RunConfig, clock: Clock, store: Store, account: Account) -> None:
        self.scene, self.clock, self.store, self.account = scene, clock, store, account
        self.cache, self.recipe = config.cache, configured_recipe(config)
        self.draw = Random(scene.seed)
        self.begun_bytes = psutil.Process().memory_info().rss
        self.planned = shards_of(read_plan(self.cache))
        self.videos = {video.id: video for video in read_manifest(self.cache)}
        chunks = sum(clip.num_chunks for clips in self.planned.values() for clip in clips)
        self.never_s = NEVER * (HOUR_S + chunks * scene.chunk_s / scene.workers)
        self.sharing: Sharing[ShardWork] | None = None  # while it runs
        self.starting: set[Worker] = set()
        self.is_done = False
        self.scheduling_cpu_s, self.num_events = 0.0, 0
        self.cpu_s: dict[str, float] = {}  # of its other parts

    def begin(self) -> None:
        """A driver that knows only what is in the cache."""
        if self.is_done:
            return
        asked = sum(self.store.requests.values())
        try:
            with self._timed("find_missing"):
                missing = find_missing(self.cache, self.planned, self.recipe)
        except OSError:
            self._stop("store")
            return
        with self._timed("shard_work"):
            works = [shard_work(shard, clips, self.videos, self.recipe) for shard, clips in missing.items()]
        self.account.driver_bytes = self.account.driver_bytes or psutil.Process().memory_info().rss - self.begun_bytes
        asked = sum(self.store.requests.values()) - asked
        self.clock.after(asked * self.store.weather.latency_s / THREADS, lambda: self._share(works))

    def crash(self) -> None:
        """Its workers end with it, as those of Ray do."""
        if self.sharing is not None:
            self._stop("crash")

    def ready(self, worker: Worker) -> None:
        self.starting.discard(worker)
        self._call(worker, lambda sharing, now_s: sharing.came(worker, now_s))

    def done(self, worker: Worker, work: ShardWork) -> None:
        if self.sharing is None or worker not in self.sharing.lanes:
            return
        self._call(worker, lambda sharing, now_s: sharing.did(worker, work, now_s))
        if not self.sharing.left:
            self._finish()

    def told_to_leave(self, worker: Worker) -> None:
        if self.sharing is not None and worker in self.sharing.lanes:
            with self._scheduling():
                self.sharing.leaves(worker)

    def failed(self, worker: Worker) -> None:
        """An error of `do` itself ends the work."""
        if self.sharing is not None and worker in self.sharing.lanes:
            self._stop("store")

    def lost(self, worker: Worker) -> None:
        self.starting.discard(worker)
        if self.sharing is None or worker not in self.sharing.lanes:
            return
        try:
            with self._scheduling():
                self.sharing.died(worker, "its node is gone", with_node=True)
        except WorkerLost:
            self._stop("worker lost")
        else:
            self._adjust()

    def _share(self, works: list[ShardWork]) -> None:
        self.sharing = Sharing(works)
        if works:
            self._look(self.sharing)
        else:
            self._finish()

    def _look(self, sharing: Sharing[ShardWork]) -> None:
        if self.sharing is sharing:
            assert self.clock.now_s < self.never_s, f"{len(sharing.left)} shards are never done"
            self._adjust()
            self.clock.after(LOOK_EVERY_S, lambda: self._look(sharing))

    def _adjust(self) -> None:
        """Have as many workers as there is work for and the cluster has room for."""
        assert self.sharing is not None
        room = min(self.scene.workers, 1 + int(self.scene.joining * self.clock.now_s))
        with self._scheduling():
            wanted = self.sharing.wanted(room, self.clock.now_s)
        while len(self.starting) + self.sharing.num_working < wanted:
            self.starting.add(Worker(self.scene, self.clock, self.draw, self.cache, self.account, self))
        while self.starting and len(self.starting) + self.sharing.num_working > wanted:
            self.starting.pop().end("not needed")

    def _call(self, worker: Worker, event) -> None:
        if self.sharing is None:
            return
        with self._scheduling():
            calls: list[Call[ShardWork]] = event(self.sharing, self.clock.now_s)
        for call in calls:
            call.worker.call(call.item)
        if worker not in self.sharing.lanes:
            worker.end("not needed")

    def _finish(self) -> None:
        self._end_workers("done elsewhere")
        try:
            with self._timed("merge_index"):
                merge_index(self.cache.index, self.cache.latents, list(self.planned), Sample)
        except (Refused, OSError):
            self._stop("merge refused")
        else:
            self.is_done = True

    def _stop(self, cause: str) -> None:
        """And another one is started."""
        self.account.stops[cause] += 1
        self._end_workers(cause)
        self.clock.after(self.scene.restart_s, self.begin)

    def _end_workers(self, cause: str) -> None:
        for worker in [*self.starting, *(self.sharing.lanes if self.sharing else [])]:
            if worker.is_heard:
                worker.end(cause)
        self.starting.clear()
        self.sharing = None

    @contextmanager
    def _scheduling(self) -> Iterator[None]:
        begun_s = time.thread_time()
        yield
        self.scheduling_cpu_s += time.thread_time() - begun_s
        self.num_events += 1

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        begun_s = time.process_time()
        yield
        self.cpu_s[part] = time.process_time() - begun_s
