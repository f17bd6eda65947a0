"""Connect to Ray, and share work out over actors that own it."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import OutOfMemoryError, RayActorError

Item = TypeVar("Item")
Result = TypeVar("Result")
WORKER_DEAD = (RayActorError, OutOfMemoryError)  # the latter where Ray killed it because the node's memory was full


class WorkerLost(RuntimeError):
    """An item's worker died each time it was tried."""


def connect(address: str = "", num_cpus: int = 0) -> None:
    """Connect to the cluster at `address`, or inside a Ray job to its own, or start Ray on this machine.

    `num_cpus` is the least number of CPU slots that a Ray started here offers, so that two processes which wait for
    each other also run on one core. Does nothing where this process is connected already.
    """
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS", "")
    quiet: dict[str, Any] = {"logging_level": "warning", "log_to_driver": False}
    if address:
        ray.init(address=address, **quiet)
    else:
        # "local": else it would join one that somebody has started on this machine.
        ray.init("local", num_cpus=max(num_cpus, os.cpu_count() or 1), include_dashboard=False, **quiet)
        _keep_token_private()


def _keep_token_private() -> None:
    """Ray makes the token that opens its clusters readable for everybody on the machine; make it ours alone."""
    token = Path.home() / ".ray" / "auth_token"
    if token.exists():
        token.chmod(0o600)


def count(resource: str) -> int:
    """How many of a resource ("CPU", "GPU") the cluster has."""
    return int(ray.cluster_resources().get(resource, 0))


def count_free(resource: str) -> int:
    """How many of a resource nobody holds now."""
    return int(ray.available_resources().get(resource, 0))


def count_nodes() -> int:
    """How many nodes are alive."""
    return len(nodes())


@dataclass(frozen=True)
class Node:
    """What a machine of the cluster offers."""

    cpus: int
    gpus: int


def nodes() -> list[Node]:
    """Those that are alive."""
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(int(one.get("CPU", 0)), int(one.get("GPU", 0))) for one in found]


IN_FLIGHT = 2  # calls of an actor, so that it can begin with one item while it ends the one before


@dataclass(eq=False)
class _Lane(Generic[Item]):
    """One worker, the calls of it that are not done, and the item it will be given next."""

    worker: Any
    calls: dict[Any, Item] = field(default_factory=dict)  # by their references, in the order they were made
    promised: Item | None = None
    num_calls: int = 0

    def call(self, item: Item) -> None:
        self.calls[self.worker.do.remote(item, self.promised, self.num_calls)] = item
        self.num_calls += 1


def share_out(
    start_worker: Callable[[], Any], num_workers: int, items: Iterable[Item], max_attempts: int = 3
) -> Iterator[tuple[Item, Any]]:
    """Give each item to one of `num_workers` actors and yield (item, result) as they are done.

    Items are hashable. An actor has a method `do(item, upcoming, turn)`; `upcoming` is the item it will be given next
    (or None), so that it can prepare, and `turn` counts its calls from 0. It is called again before it has answered, so
    with max_concurrency = IN_FLIGHT it can begin one item while it ends another; such calls arrive in any order. When
    an actor dies it is replaced and its items are done again, the one it was at alone; WorkerLost where one has taken
    `max_attempts` actors with it. An exception of `do` itself ends the work and is raised here. An actor is given no
    more while there is not as much for the others.
    """
    waiting = deque(items)
    attempts: Counter[Item] = Counter()
    lanes = [_Lane(start_worker(), promised=waiting.popleft()) for _ in range(min(num_workers, len(waiting)))]

    def take(lane: _Lane[Item]) -> Item | None:
        return waiting.popleft() if waiting and (not lane.calls or len(waiting) >= len(lanes)) else None

    def fill(lane: _Lane[Item], most: int) -> None:
        while len(lane.calls) < most:
            item = take(lane) if lane.promised is None else lane.promised
            if item is None:
                return
            lane.promised = waiting.popleft() if len(waiting) >= len(lanes) else None
            lane.call(item)

    for most in range(1, IN_FLIGHT + 1):
        for lane in lanes:
            fill(lane, most)
    try:
        while lane_of := {call: lane for lane in lanes for call in lane.calls}:
            [done], _ = ray.wait(list(lane_of), num_returns=1)
            lane = lane_of[done]
            try:
                finished = [(lane.calls[done], ray.get(done))]
                del lane.calls[done]
            except WORKER_DEAD as error:
                ray.kill(lane.worker)  # it may be cut off only; two of them would want the same GPU
                finished = _finished(lane)
                blamed, *others = lane.calls.values()
                attempts[blamed] += 1
                if attempts[blamed] >= max_attempts:
                    raise WorkerLost(f"{max_attempts} workers died of {blamed}; the last: {error}") from error
                if lane.promised is not None:
                    others.append(lane.promised)
                waiting.extendleft(reversed(others))
                lanes[lanes.index(lane)] = replacement = _Lane(start_worker())
                replacement.call(blamed)
            else:
                fill(lane, IN_FLIGHT)
                if not lane.calls:
                    lanes.remove(lane)
                    ray.kill(lane.worker)
            yield from finished
    finally:
        for lane in lanes:
            ray.kill(lane.worker)


def _finished(lane: _Lane[Item]) -> list[tuple[Item, Any]]:
    """What the worker that died had done before, which is no longer in its lane."""
    finished = []
    for call, item in list(lane.calls.items()):
        with suppress(*WORKER_DEAD):
            finished.append((item, ray.get(call)))
            del lane.calls[call]
    return finished
