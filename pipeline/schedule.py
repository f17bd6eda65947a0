"""Which samples make global batch number s: a pure function of the index, the seed and the epoch.

Nothing here knows of ranks or workers, so the global batches are the same however many there are, and the state to
resume from is the number of the step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class GlobalBatch:
    """One step: rows of the index, all of one bucket. Fillers have weight zero and repeat the first row."""

    rows: np.ndarray  # (batch_size,) int64
    weights: np.ndarray  # (batch_size,) float32, 1 or 0


class Schedule:
    """The order of training. Every epoch holds every row exactly once, in batches of one bucket.

    A bucket is (height, width, num_frames), so that images meet no clips. Shuffling works in windows of `window_shards`
    shards, so that reads stay near each other: shards are shuffled, then the rows within each window. A batch is due
    when its last row is.
    """

    def __init__(self, samples: pa.Table, batch_size: int, seed: int, window_shards: int = 64) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self.window_shards = window_shards
        columns = [samples[name].to_numpy() for name in ("height", "width", "num_frames")]
        kinds = np.stack(columns, axis=1)  # (rows, 3)
        self._bucket = np.unique(kinds, axis=0, return_inverse=True)[1].ravel()  # (rows,)
        self._shard = np.unique(samples["shard"].to_numpy(), return_inverse=True)[1]  # (rows,)
        counts = np.bincount(self._bucket)
        self.steps_per_epoch = int(np.sum(-(-counts // batch_size)))
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def batch(self, step: int) -> GlobalBatch:
        """The batch of a step, counted from the beginning of training."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[step_in_epoch]

    def epoch(self, epoch: int) -> list[GlobalBatch]:
        """The batches of one epoch, in order."""
        return list(self._epoch(epoch))

    def _make_epoch(self, epoch: int) -> list[GlobalBatch]:
        random = np.random.default_rng([self.seed, epoch])
        order = self._shuffled(random)
        batches: list[tuple[int, GlobalBatch]] = []
        for bucket in range(int(self._bucket.max()) + 1):
            due = np.flatnonzero(self._bucket[order] == bucket)  # places in the order
            for first in range(0, len(due), self.batch_size):
                places = due[first : first + self.batch_size]
                batches.append((int(places[-1]), self._filled(order[places])))
        return [batch for _, batch in sorted(batches, key=lambda pair: pair[0])]

    def _shuffled(self, random: np.random.Generator) -> np.ndarray:
        """All rows, in windows of shards: (rows,) int64."""
        num_shards = int(self._shard.max()) + 1
        window = random.permutation(num_shards) // self.window_shards  # of each shard
        return np.lexsort((random.permutation(len(self._shard)), window[self._shard]))

    def _filled(self, rows: np.ndarray) -> GlobalBatch:
        fillers = self.batch_size - len(rows)
        weights = np.concatenate([np.ones(len(rows), np.float32), np.zeros(fillers, np.float32)])
        return GlobalBatch(np.concatenate([rows, np.repeat(rows[:1], fillers)]), weights)


@dataclass(frozen=True)
class Slot:
    """One place in a global batch: all that a worker needs to make the sample."""

    row: int
    weight: float
    position: int  # in the global batch; random numbers are drawn by it, never by rank


def rank_slots(batch: GlobalBatch, rank: int, num_ranks: int) -> list[Slot]:
    """A rank's share of a global batch: consecutive positions, equally many on every rank.

    Where the ranks do not divide the batch, the last ones get fillers of weight zero.
    """
    per_rank = -(-len(batch.rows) // num_ranks)
    positions = range(rank * per_rank, (rank + 1) * per_rank)
    return [
        Slot(int(batch.rows[place]), float(batch.weights[place]), place)
        if place < len(batch.rows)
        else Slot(int(batch.rows[0]), 0.0, place)
        for place in positions
    ]


def rank_steps(schedule: Schedule, steps: range, rank: int, num_ranks: int) -> Iterator[list[Slot]]:
    """What one rank reads, step by step."""
    for step in steps:
        yield rank_slots(schedule.batch(step), rank, num_ranks)
