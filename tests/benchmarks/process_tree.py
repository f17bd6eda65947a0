"""What this process and all below it cost: CPU seconds, and memory at its peak. Ray's processes are below it."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread

import psutil

SAMPLE_S = 0.1  # a process that ends between two samples takes so much of its costs along, at the most


@dataclass(frozen=True)
class Cost:
    """What one run took."""

    wall_s: float
    cpu_s: float
    peak_bytes: int = 0  # in RAM, shared pages counted once


def measure(work: Callable[[], object], memory: bool = False) -> Cost:
    """One run of `work`; `memory` asks for the peak of the tree's memory too, which takes a while each time."""
    with _sampling(memory) as sampler:
        before_cpu_s, before_s = sampler.cpu_s(), time.perf_counter()
        work()
        wall_s, cpu_s = time.perf_counter() - before_s, sampler.cpu_s() - before_cpu_s
    return Cost(wall_s, cpu_s, sampler.peak_bytes)


def interleaved(ways: Sequence[Callable[[], Cost]], rounds: int) -> list[list[Cost]]:
    """Each way once a round, so that a busy minute of the machine meets all of them: the costs by way."""
    return [list(column) for column in zip(*([way() for way in ways] for _ in range(rounds)))]


def tree_bytes() -> int:
    """Memory of the tree that is in RAM, shared pages counted once."""
    return sum(process.memory_full_info().pss for process in _tree())


def median(costs: Sequence[Cost], name: str) -> float:
    return statistics.median(getattr(cost, name) for cost in costs)


def median_ratio(costs: Sequence[Cost], others: Sequence[Cost], name: str) -> float:
    """Of `costs` by `others`, round by round."""
    return statistics.median(getattr(one, name) / getattr(other, name) for one, other in zip(costs, others))


def _tree() -> list[psutil.Process]:
    return [psutil.Process(), *psutil.Process().children(recursive=True)]


class _Sampler:
    """Looks at the tree from time to time, because Ray's processes end unseen and take their CPU times along."""

    def __init__(self, memory: bool) -> None:
        self.memory = memory
        self.peak_bytes = 0
        self.own_s = 0.0  # CPU seconds of looking
        self.seen: dict[tuple[int, float], float] = {}  # (process id, when it began) -> CPU seconds

    def look(self) -> None:
        began_s, total = time.thread_time(), 0
        for process in _tree():
            try:
                times = process.cpu_times()
                self.seen[process.pid, process.create_time()] = times.user + times.system
                total += process.memory_full_info().pss if self.memory else 0
            except psutil.NoSuchProcess:
                continue
        self.peak_bytes = max(self.peak_bytes, total)
        self.own_s += time.thread_time() - began_s

    def cpu_s(self) -> float:
        """CPU seconds of the tree so far, those of its dead too, without what looking took."""
        self.look()
        return sum(self.seen.values()) - self.own_s


@contextmanager
def _sampling(memory: bool) -> Iterator[_Sampler]:
    sampler, done = _Sampler(memory), Event()

    def sample() -> None:
        while not done.wait(SAMPLE_S):
            sampler.look()

    thread = Thread(target=sample)
    thread.start()
    try:
        yield sampler
    finally:
        done.set()
        thread.join()
