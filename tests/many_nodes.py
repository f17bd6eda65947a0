"""Ray clusters of several nodes on this machine: scenes that play in processes of their own, and who works in them."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any

import psutil
import ray

ENCODER, DECODER = "ray::ShardEncoder", "ray::decode"


def play(scene: Callable[..., Any], folder: Path, *arguments: Any, **environment: str) -> Any:
    """What a scene returns that plays in a process of its own, whose Rays have nothing to do with any other's."""
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=_tell, args=(theirs, scene, arguments))
    before = dict(os.environ)
    os.environ.update({"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(folder), **environment})
    try:
        process.start()  # with these set, for Ray reads some of them when it is imported
    finally:
        os.environ.clear()
        os.environ.update(before)
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def _tell(end: Any, scene: Callable[..., Any], arguments: Any) -> None:
    end.send(scene(*arguments))


class Nodes:
    """A head that only holds the cluster together, and nodes with CPUs; the scene's process is the driver."""

    def __init__(self, number: int, cpus: int = 2) -> None:
        from ray.cluster_utils import Cluster

        self.cpus = cpus
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.nodes = [self.add() for _ in range(number)]
        ray.init(address=self.cluster.address, log_to_driver=False)

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, *_: Any) -> None:
        ray.shutdown()
        self.cluster.shutdown()

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=self.cpus)

    def kill(self, node: Any) -> None:
        """All of its processes at once, as where a machine loses its power."""
        self.cluster.remove_node(node, allow_graceful=False)


def pid_of(node: Any) -> int:
    """Of the process that all workers of one of Nodes are children of."""
    return node.all_processes["raylet"][0].process.pid


def workers(pid: int, title: str) -> list[psutil.Process]:
    """Those below a process that are at this."""
    with suppress(psutil.Error):
        return [process for process in psutil.Process(pid).children(recursive=True) if title in _title(process)]
    return []


def is_writing(pid: int) -> bool:
    """Whether an encoder below a process has begun a shard that it has not ended."""
    with suppress(psutil.Error):
        return any(file.path.endswith(".tmp") for process in workers(pid, ENCODER) for file in process.open_files())
    return False


@contextmanager
def nobody_decodes(pid: int) -> Iterator[None]:
    """Whoever decodes below a process stands still meanwhile."""
    halted: set[psutil.Process] = set()
    is_over = Event()

    def halt() -> None:
        while not is_over.wait(0.05):
            for one in workers(pid, DECODER):
                with suppress(psutil.NoSuchProcess):
                    one.suspend()
                    halted.add(one)

    with ThreadPoolExecutor(1) as thread:
        halting = thread.submit(halt)
        try:
            yield
        finally:
            is_over.set()
            halting.result()
            for one in halted:
                with suppress(psutil.NoSuchProcess):
                    one.resume()


def end(process: psutil.Popen) -> None:
    """Kill a process and all below it."""
    with suppress(psutil.NoSuchProcess):
        for one in process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.kill()
    process.wait()


def wait_until(what: Callable[[], Any], work: Future[Any] | None = None) -> float:
    """Returns for how long, in seconds. RuntimeError where `work` is over before."""
    began_s = time.monotonic()
    while not what():
        if work and work.done():
            raise RuntimeError("all is done before anything has happened") from work.exception()
        time.sleep(0.02)
    return time.monotonic() - began_s


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""
