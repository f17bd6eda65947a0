"""Which samples make global batch number s: a pure function of the index, the seed and the epoch.

Nothing here knows of ranks or workers, so the global batches are the same however many there are, and the state to
resume from is (epoch, step).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from einops import rearrange

from pipeline.lengths import Bucket, Lengths

WINDOW_SHARDS = 64
BLOCK = 2**20  # rows that are looked at together
WAY, ORDER, START, PHASE = range(1, 5)  # what random numbers are drawn for; 0 would be as the seed alone


@dataclass(frozen=True)
class GlobalBatch:
    """One step: rows of the index, all of one bucket. Fillers have weight zero and repeat the first row."""

    bucket: Bucket
    rows: np.ndarray  # (B,) int64
    first_chunks: np.ndarray  # (B,) int64: where in its clip each sample begins
    weights: np.ndarray  # (B,) float32, 0 for fillers; they add up to 1


@dataclass(frozen=True)
class Rows:
    """What a schedule knows of each clip, a row: two bytes. Rows of one shard follow each other."""

    shard_ends: np.ndarray  # (shards,) int64
    kinds: tuple[Bucket, ...]
    kind: np.ndarray  # (rows,) uint16, into `kinds`
    times: tuple[float, ...] | None = None  # (kinds,): how often per epoch a row is wanted; None = once


class Shown(NamedTuple):
    """Every way to show every kind of row, as tables by kind and way."""

    buckets: tuple[Bucket, ...]
    batch_sizes: np.ndarray  # (buckets,) int64
    bucket_of: np.ndarray  # (kinds, ways) uint16
    until: np.ndarray  # (kinds, ways) float32: the probability of this way or one before it
    times: np.ndarray  # (kinds,) float64: how often per epoch

    @classmethod
    def of(cls, rows: Rows, lengths: Sequence[Lengths]) -> "Shown":
        """Kinds that meet in a bucket have its batch in common: that of its size and length."""
        ways = [[_bucket(kind, way.num_chunks) for way in one.ways] for kind, one in zip(rows.kinds, lengths)]
        batch = {bucket: way.batch for row, one in zip(ways, lengths) for bucket, way in zip(row, one.ways)}
        number = {bucket: place for place, bucket in enumerate(sorted(batch))}
        most = max(map(len, ways))
        until = [np.cumsum([way.probability for way in one.ways]).tolist() for one in lengths]
        return cls(
            tuple(number),
            np.array([batch[bucket] for bucket in number]),
            np.array([[number[bucket] for bucket in row] + [0] * (most - len(row)) for row in ways], np.uint16),
            np.array([row[:-1] + [1.0] * (most - len(row) + 1) for row in until], np.float32),
            np.array([one.share for one in lengths]) * (1.0 if rows.times is None else np.array(rows.times)),
        )


def _bucket(kind: Bucket, num_chunks: int) -> Bucket:
    return Bucket(kind.height, kind.width, num_chunks * kind.chunk_frames, num_chunks)


class Epoch(NamedTuple):
    """One epoch: its rows by bucket, and where each step's begin."""

    rows: np.ndarray  # (shown,) int32: the rows of the first bucket in their order, of the second, ...
    ends: np.ndarray  # (buckets,) int64: where each bucket's end
    bucket: np.ndarray  # (steps,) uint16
    first: np.ndarray  # (steps,) int32, into `rows`


class Count(NamedTuple):
    """One bucket in one epoch."""

    bucket: Bucket
    batch_size: int
    samples: int
    batches: int


class Schedule:
    """The order of training. Every epoch shows every row once, in batches of one bucket.

    A row may be shown more or less often: the times and the share of its kind multiply to how often per epoch, and over
    n epochs it is shown n times as often, to within one. At which of its kind's lengths it is shown, and from which
    chunk on, is drawn anew in each epoch. Shuffling works in windows of `window_shards` shards, so that reads stay near
    each other: shards are shuffled, then the rows within each window. A batch is due when its last row is.

    `begins` is the step of training that it begins at, and the epoch that it begins with.
    """

    def __init__(
        self,
        rows: Rows,
        lengths: Callable[[Bucket], Lengths],
        seed: int,
        window_shards: int = WINDOW_SHARDS,
        begins: tuple[int, int] = (0, 0),
    ) -> None:
        self.rows, self.seed, self.window_shards, self.begins = rows, seed, window_shards, begins
        self.shown = Shown.of(rows, [lengths(kind) for kind in rows.kinds])
        self._num_chunks = np.array([kind.num_chunks for kind in rows.kinds])
        self._all_once = bool((self.shown.times == 1).all())
        self._same_length = self._all_once and self.shown.until.shape[1] == 1
        self.num_steps = lru_cache(maxsize=None)(self._count_steps)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def locate(self, step: int) -> tuple[int, int]:
        """A step counted from the beginning of training -> (epoch, step in that epoch)."""
        first_step, epoch = self.begins
        step -= first_step
        if self._same_length:
            passed, step = divmod(step, self.num_steps(0))
            return epoch + passed, step
        while step >= self.num_steps(epoch):
            step -= self.num_steps(epoch)
            epoch += 1
        return epoch, step

    def batch(self, epoch: int, step: int) -> GlobalBatch:
        """The batch of a step of an epoch."""
        made = self._epoch(epoch)
        bucket, first = int(made.bucket[step]), int(made.first[step])
        size = int(self.shown.batch_sizes[bucket])
        rows = made.rows[first : min(first + size, int(made.ends[bucket]))].astype(np.int64)
        fillers = size - len(rows)
        weights = np.repeat(np.array([1 / len(rows), 0], np.float32), [len(rows), fillers])
        rows = np.concatenate([rows, np.repeat(rows[:1], fillers)])
        spare = self._num_chunks[self.rows.kind[rows]] - self.shown.buckets[bucket].num_chunks
        starts = self._random(START, epoch, step).integers(0, spare + 1)
        return GlobalBatch(self.shown.buckets[bucket], rows, starts, weights)

    def batches(self, epoch: int = 0, step: int = 0) -> Iterator[GlobalBatch]:
        """The batches from a step of an epoch on, without end."""
        while True:
            for number in range(step, self.num_steps(epoch)):
                yield self.batch(epoch, number)
            epoch, step = epoch + 1, 0

    def counts(self, epoch: int) -> list[Count]:
        """What an epoch holds of each bucket."""
        made = self._epoch(epoch)
        samples = np.diff(made.ends, prepend=0).tolist()
        batches = np.bincount(made.bucket, minlength=len(samples)).tolist()
        return [Count(*row) for row in zip(self.shown.buckets, self.shown.batch_sizes.tolist(), samples, batches)]

    def _random(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *purpose])

    def _shown(self, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The rows that an epoch shows, each as often as it does, and the bucket of each, its way drawn.

        In the order of the index, a block at a time: (shown,) int32 and uint16.
        """
        phases, ways = self._random(PHASE), self._random(WAY, epoch)
        for first in range(0, len(self.rows.kind), BLOCK):
            kind = np.asarray(self.rows.kind[first : first + BLOCK])
            rows = np.arange(first, first + len(kind), dtype=np.int32)
            if not self._all_once:
                times = self._times_shown(kind, phases.random(len(kind), np.float32), epoch)
                rows, kind = np.repeat(rows, times), np.repeat(kind, times)
            yield rows, self.shown.bucket_of[kind, self._drawn_ways(kind, ways)]

    def _times_shown(self, kind: np.ndarray, phase: np.ndarray, epoch: int) -> np.ndarray:
        """How often an epoch shows each row: whenever e * times, from a start of its own, passes a whole number.

        A start is a multiple of 2^-24, so that a sum with a whole number is exact: who is wanted once is shown once.
        """
        times = self.shown.times[kind]
        return (np.floor((epoch + 1) * times + phase) - np.floor(epoch * times + phase)).astype(np.int64)

    def _drawn_ways(self, kind: np.ndarray, random: np.random.Generator) -> np.ndarray | int:
        """At which of its kind's lengths each row is shown: (shown,) uint8; 0 where all have but one."""
        if self.shown.until.shape[1] == 1:
            return 0
        drawn = random.random(len(kind), np.float32)
        way = np.zeros(len(kind), np.uint8)
        for until in rearrange(self.shown.until[:, :-1], "kinds ways -> ways kinds"):
            way += drawn >= until[kind]
        return way

    def _count(self, bucket: np.ndarray) -> np.ndarray:
        """How many there are of each bucket: (buckets,) int64."""
        return np.bincount(bucket, minlength=len(self.shown.buckets))

    def _count_steps(self, epoch: int) -> int:
        if self._same_length and epoch:
            return self.num_steps(0)
        counts = np.sum([self._count(bucket) for _, bucket in self._shown(epoch)], axis=0)
        return int(np.sum(-(-counts // self.shown.batch_sizes)))

    def _make_epoch(self, epoch: int) -> Epoch:
        """Go through the epoch window by window: put each row behind those of its bucket, note which batches are due.

        So memory is bounded: 10 bytes a row, of which 4 are kept, and what a window needs.
        """
        blocks = list(self._shown(epoch))
        rows, bucket = (np.concatenate(parts) for parts in zip(*blocks))
        counts = np.sum([self._count(part) for _, part in blocks], axis=0)
        del blocks
        ends, sizes, done = np.cumsum(counts), self.shown.batch_sizes, np.zeros_like(counts)
        begins = ends - counts
        placed, due = np.empty_like(rows), []
        for places in self._windows(rows, epoch):
            order = np.argsort(bucket[places], kind="stable")  # of the first bucket, of the second, ...
            of, here = bucket[places[order]], self._count(bucket[places])
            number = np.arange(len(of)) + (done + here - np.cumsum(here))[of]  # of each row in its bucket
            placed[begins[of] + number] = rows[places[order]]
            done += here
            last = np.flatnonzero((number % sizes[of] == sizes[of] - 1) | (number == counts[of] - 1))  # of a batch
            last = last[np.argsort(order[last])]
            first = number[last] - number[last] % sizes[of[last]]
            due.append((of[last], (begins[of[last]] + first).astype(np.int32)))
        return Epoch(placed, ends, *(np.concatenate(parts) for parts in zip(*due)))

    def _windows(self, rows: np.ndarray, epoch: int) -> Iterator[np.ndarray]:
        """The places of rows in the order of an epoch, a window at a time: (n,) int32."""
        random = self._random(ORDER, epoch)
        ends = np.searchsorted(rows, self.rows.shard_ends.astype(rows.dtype)).tolist()  # of each shard, of rows shown
        begins = [0, *ends[:-1]]
        shards = random.permutation(len(ends))
        for first in range(0, len(shards), self.window_shards):
            window = shards[first : first + self.window_shards].tolist()
            places = np.concatenate([np.arange(begins[shard], ends[shard], dtype=np.int32) for shard in window])
            random.shuffle(places)
            yield places


@dataclass(frozen=True)
class Slot:
    """One place in a global batch: all that a worker needs to make the sample."""

    row: int
    first_chunk: int
    num_chunks: int
    weight: float  # in the mean over the global batch
    position: int  # in the global batch; random numbers are drawn by it, never by rank


def rank_slots(batch: GlobalBatch, rank: int, num_ranks: int) -> list[Slot]:
    """A rank's share of a global batch: consecutive positions, equally many on every rank.

    Where the ranks do not divide the batch, the last ones get fillers of weight zero.
    """
    per_rank = -(-len(batch.rows) // num_ranks)
    places = [
        (place, place if place < len(batch.rows) else 0) for place in range(rank * per_rank, (rank + 1) * per_rank)
    ]
    return [
        Slot(
            int(batch.rows[source]),
            int(batch.first_chunks[source]),
            batch.bucket.num_chunks,
            float(batch.weights[source]) if place == source else 0.0,
            place,
        )
        for place, source in places
    ]
