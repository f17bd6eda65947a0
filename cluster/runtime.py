"""Connect to Ray, and share work out over actors that own it."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
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
        ray.init(num_cpus=max(num_cpus, os.cpu_count() or 1), include_dashboard=False, **quiet)
        _keep_token_private()


def _keep_token_private() -> None:
    """Ray makes the token that opens its clusters readable for everybody on the machine; make it ours alone."""
    token = Path.home() / ".ray" / "auth_token"
    if token.exists():
        token.chmod(0o600)


def count(resource: str) -> int:
    """How many of a resource ("CPU", "GPU") the cluster has."""
    return int(ray.cluster_resources().get(resource, 0))


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


@dataclass
class _Lane(Generic[Item]):
    """One worker, what it is doing and what it does next."""

    worker: Any
    current: Item
    upcoming: Item | None


def share_out(
    start_worker: Callable[[], Any], num_workers: int, items: Iterable[Item], max_attempts: int = 3
) -> Iterator[tuple[Item, Any]]:
    """Give each item to one of `num_workers` actors and yield (item, result) as they are done.

    Items are hashable. An actor has a method `do(item, upcoming)`; `upcoming` is the item it will be given next (or
    None), so that it can prepare. When an actor dies it is replaced and its items are done again; WorkerLost where one
    item has taken `max_attempts` actors with it. An exception of `do` itself ends the work and is raised here.
    """
    waiting = deque(items)
    attempts: Counter[Item] = Counter()
    lanes: dict[Any, _Lane[Item]] = {}  # by the reference to the running call

    def start(worker: Any, current: Item) -> None:
        upcoming = waiting.popleft() if waiting else None
        lanes[worker.do.remote(current, upcoming)] = _Lane(worker, current, upcoming)

    for _ in range(min(num_workers, len(waiting))):
        if waiting:
            start(start_worker(), waiting.popleft())
    try:
        while lanes:
            [done], _ = ray.wait(list(lanes), num_returns=1)
            lane = lanes.pop(done)
            try:
                result = ray.get(done)
            except WORKER_DEAD as error:
                ray.kill(lane.worker)  # it may be cut off only; two of them would want the same GPU
                attempts[lane.current] += 1
                if attempts[lane.current] >= max_attempts:
                    raise WorkerLost(f"{max_attempts} workers died of {lane.current}; the last: {error}") from error
                if lane.upcoming is not None:
                    waiting.appendleft(lane.upcoming)
                start(start_worker(), lane.current)
                continue
            following = lane.upcoming if lane.upcoming is not None else (waiting.popleft() if waiting else None)
            if following is None:
                ray.kill(lane.worker)
            else:
                start(lane.worker, following)
            yield lane.current, result
    finally:
        for lane in lanes.values():
            ray.kill(lane.worker)
