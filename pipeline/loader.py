"""Doors to a cache: batches in the order of a schedule; `stream`, a plain WebDataset pipeline over the same tars."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader

from pipeline.batch_reader import Batch, BatchReader
from pipeline.location import Location
from pipeline.schedule import Schedule, Slot, rank_slots
from pipeline.shard_cache import ShardCache
from pipeline.storage import THREADS
from pipeline.stream import stream
from pipeline.training_set import TrainingSet

__all__ = ["RankSteps", "load_batches", "read_ahead", "stream"]

AHEAD = 4  # batches
Item = TypeVar("Item")


class RankSteps:
    """The batch sampler of one rank: what it reads at each step; a fresh iterator each time, as DataLoader expects."""

    def __init__(self, schedule: Schedule, steps: range, rank: int, num_ranks: int) -> None:
        self.schedule, self.steps, self.rank, self.num_ranks = schedule, steps, rank, num_ranks

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Slot]]:
        for batch in islice(self.schedule.batches(*self.schedule.locate(self.steps.start)), len(self.steps)):
            yield rank_slots(batch, self.rank, self.num_ranks)


def load_batches(
    training_set: TrainingSet,
    schedule: Schedule,
    steps: range,
    rank: int,
    num_ranks: int,
    num_threads: int,
    shard_cache: ShardCache | None = None,
) -> Iterator[Batch]:
    """One rank's batches for the given steps, in order, the next ones read ahead by `num_threads`; 0 = none is.

    They are in page-locked memory where there is a GPU. What comes from an object store is kept in `shard_cache`.
    By threads and not by DataLoader's processes: these would hand batches over in shared memory, whose fresh pages cost
    more than reading does, and a store's client does not survive a fork.
    """
    is_remote = any(isinstance(part.cache.root, Location) for part in training_set.parts)
    threads = ThreadPoolExecutor(max(num_threads, THREADS * is_remote)) if num_threads else None
    loader = DataLoader(
        BatchReader(training_set, threads, shard_cache, pin_memory=torch.cuda.is_available()),
        batch_sampler=RankSteps(schedule, steps, rank, num_ranks),  # pyright: ignore[reportArgumentType]  # of slots
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # else it would draw from that of the model's weights
    )
    if threads is None:
        yield from loader
        return
    try:
        yield from read_ahead(iter(loader), AHEAD)
    finally:
        threads.shutdown(cancel_futures=True)


def _as_it_is(batch: Any) -> Any:
    return batch


def read_ahead(items: Iterator[Item], ahead: int) -> Iterator[Item]:
    """The same items, so many of them brought together by a thread before they are asked for."""
    thread = ThreadPoolExecutor(1)
    try:
        pending = deque(thread.submit(next, items, None) for _ in range(ahead))
        while (item := pending.popleft().result()) is not None:
            pending.append(thread.submit(next, items, None))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)
