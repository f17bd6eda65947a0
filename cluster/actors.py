"""Work shared out over Ray actors that own it, as many as the cluster has room for."""

import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

import ray
from ray._private.state import state
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError

from cluster.sharing import Call, Sharing, WorkerLost

Item = TypeVar("Item", bound=Hashable)
WORKER_DEAD = (RayActorError, OutOfMemoryError)  # the latter where Ray killed it because the node's memory was full
LOOK_EVERY_S = 5.0  # for room for more actors, and for nodes that will be taken away
WAITING_S = 30.0  # after which, and as often as which, it is told that no actor is at work
END_S = 10.0  # that killed actors have to be gone
# For actors that read what tasks on other nodes yield: Ray itself takes seven minutes to notice that a node is cut off
# which such a task runs on.
PINGS = {"RAY_grpc_client_keepalive_time_ms": "10000", "RAY_grpc_client_keepalive_timeout_ms": "20000"}


def share_out(
    start_worker: Callable[[], Any],
    count_workers: Callable[[], int],
    items: Iterable[Item],
    on_waiting: Callable[[float], None],
    max_attempts: int = 3,
) -> Iterator[tuple[Item, Any]]:
    """Give each item to an actor and yield (item, result) as they are done.

    Items are hashable. `count_workers` tells how many actors are worth asking for, and is asked again every few
    seconds: the cluster may grow and shrink. Those that have no room yet hold no items; while none is at work
    `on_waiting(seconds)` tells so. An actor has a method `do(item, upcoming, turn)`; `upcoming` is the item it will be
    given next (or None), so that it can prepare, and `turn` counts its calls from 0. It is called again before it has
    answered, so with max_concurrency = IN_FLIGHT it can begin one item while it ends another; such calls arrive in any
    order. An actor whose node is about to be taken away is given no more. When one dies its items are done by others;
    WorkerLost where an item has taken `max_attempts` actors with it. What `do` or the actor's constructor raises ends
    the work and is raised here.
    """
    crew = _Crew(start_worker, Sharing(items, max_attempts))
    try:
        while crew.sharing.left:
            crew.look(count_workers, on_waiting)
            if news := crew.next_news():
                yield from crew.take(news)
    finally:
        crew.dismiss()


@dataclass(frozen=True)
class _News(Generic[Item]):
    """A call has ended: an actor's answer to an item, or, where that is None, on which node it is now ready."""

    worker: Any
    item: Item | None
    answer: Future[Any]


class _Crew(Generic[Item]):
    """The actors: those on their way, and those at work."""

    def __init__(self, start_worker: Callable[[], Any], sharing: Sharing[Item]) -> None:
        self.start_worker, self.sharing = start_worker, sharing
        self.starting: dict[Any, None] = {}
        self.nodes: dict[Any, str] = {}  # of those at work
        self.news: SimpleQueue[_News[Item]] = SimpleQueue()
        self.unanswered: set[Future[Any]] = set()
        self.failed_start: Exception | None = None  # since it was looked the last time
        self.failed_starts = 0  # looks in a row that found one
        self.was_crowded = False
        self.look_at_s = float("-inf")
        self.idle_since_s = self.told_s = time.monotonic()

    def look(self, count_workers: Callable[[], int], on_waiting: Callable[[float], None]) -> None:
        """Every few seconds: heed what the cluster has become."""
        now_s = time.monotonic()
        if now_s < self.look_at_s:
            return
        self.look_at_s = now_s + LOOK_EVERY_S
        self._heed_failed_starts()
        self._heed_notices()
        most = count_workers()
        self._heed_crowding(most)
        self._adjust(self.sharing.wanted(most, now_s))
        if self.sharing.num_working:
            self.idle_since_s = self.told_s = now_s
        elif now_s - self.told_s >= WAITING_S:
            self.told_s = now_s
            on_waiting(now_s - self.idle_since_s)

    def next_news(self) -> _News[Item] | None:
        """What happens next; None where that is not before it is time to look again."""
        try:
            return self.news.get(timeout=max(0.0, self.look_at_s - time.monotonic()))
        except Empty:
            return None

    def take(self, news: _News[Item]) -> Iterator[tuple[Item, Any]]:
        """Do what follows; an item's first result is yielded."""
        self.unanswered.discard(news.answer)
        if news.worker not in self.starting and news.worker not in self.sharing.lanes:
            return  # it was given up
        try:
            answer = news.answer.result()
        except WORKER_DEAD as error:
            self._lose(news.worker, error)
            return
        if news.item is None:
            self._begin(news.worker, answer)
            return
        is_first = news.item in self.sharing.left
        self._call(news.worker, self.sharing.did(news.worker, news.item, time.monotonic()))
        if is_first:
            yield news.item, answer

    def dismiss(self) -> None:
        """End all actors, and wait until they are gone: with what they hold, and what they would still write."""
        for worker in [*self.starting, *self.sharing.lanes]:
            ray.kill(worker)
        wait(self.unanswered, timeout=END_S)

    def _adjust(self, wanted: int) -> None:
        """Have as many at work and on their way as are wanted."""
        while len(self.starting) + self.sharing.num_working < wanted:
            worker = self.start_worker()
            self.starting[worker] = None
            self._listen(worker, None, worker.__ray_call__.remote(_node_here))
        while self.starting and len(self.starting) + self.sharing.num_working > wanted:
            ray.kill(self.starting.popitem()[0])

    def _heed_failed_starts(self) -> None:
        """Those of one node may all die at once, and of nothing that is their own: that counts once."""
        self.failed_starts += self.failed_start is not None
        if self.failed_starts >= self.sharing.max_attempts:
            raise WorkerLost(f"workers die as they begin; the last: {self.failed_start}") from self.failed_start
        self.failed_start = None

    def _heed_notices(self) -> None:
        """Give no more to those whose nodes will be taken away."""
        if draining := state.get_draining_nodes():
            for worker in self.sharing.lanes:
                if self.nodes[worker] in draining:
                    self.sharing.leaves(worker)

    def _heed_crowding(self, most: int) -> None:
        """End the one that came last where more are at work than the cluster has room for, two looks in a row.

        So it may be when nodes are lost: those that are left are then full of actors, with no CPU for what these need
        of others.
        """
        is_crowded = self.sharing.num_working > most
        if is_crowded and self.was_crowded:
            last = next(one for one in reversed(self.nodes) if not self.sharing.lanes[one].is_leaving)
            self.sharing.ends(last)
            self._end(last)
        self.was_crowded = is_crowded

    def _listen(self, worker: Any, item: Item | None, reference: Any) -> None:
        answer: Future[Any] = reference.future()
        self.unanswered.add(answer)
        answer.add_done_callback(lambda answer: self.news.put(_News(worker, item, answer)))

    def _begin(self, worker: Any, node: str) -> None:
        del self.starting[worker]
        self.nodes[worker], self.failed_starts, self.failed_start = node, 0, None
        self._call(worker, self.sharing.came(worker, time.monotonic()))

    def _call(self, worker: Any, calls: list[Call[Item]]) -> None:
        """Give an actor what it is to do, or let it go where there is nothing more for it."""
        for call in calls:
            self._listen(worker, call.item, worker.do.remote(call.item, call.upcoming, call.turn))
        if worker not in self.sharing.lanes:
            self._end(worker)

    def _lose(self, worker: Any, error: Exception) -> None:
        """An actor is dead, or cut off: then two of them would want the same GPU, and it is killed too."""
        if worker in self.starting:
            del self.starting[worker]
            ray.kill(worker)
            if getattr(error, "actor_init_failed", False):
                raise error.args[0].as_instanceof_cause()  # what its constructor raised
            self.failed_start = error
            return
        with_node = isinstance(error, ActorUnavailableError) or not _is_alive(self.nodes[worker])
        self.sharing.died(worker, error, with_node)
        self._end(worker)
        self.look_at_s = float("-inf")

    def _end(self, worker: Any) -> None:
        del self.nodes[worker]
        ray.kill(worker)


def _node_here(actor: object) -> str:
    return ray.get_runtime_context().get_node_id()


def _is_alive(node: str) -> bool:
    return any(one["NodeID"] == node and one["Alive"] for one in ray.nodes())
