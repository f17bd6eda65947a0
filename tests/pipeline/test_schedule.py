"""Every epoch holds every sample once, in batches of one bucket that depend on index, seed and epoch alone."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.schedule import GlobalBatch, Schedule, rank_slots, rank_steps

KINDS = [(64, 64, 17), (64, 64, 1), (64, 96, 17), (96, 64, 34)]  # height, width, frames: the second an image


def table(kinds: list[int], shards: list[int]) -> pa.Table:
    heights, widths, frames = zip(*(KINDS[kind] for kind in kinds), strict=True)
    names = [f"s/{shard:06d}" for shard in shards]
    return pa.table({"height": heights, "width": widths, "num_frames": frames, "shard": names})


TABLES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=40).map(
    lambda rows: table([kind for kind, _ in rows], [shard for _, shard in rows])
)
SIZES, SEEDS, EPOCHS = st.integers(1, 9), st.integers(0, 2**31), st.integers(0, 5)


def contents(batches: list[GlobalBatch]) -> list[tuple[list[int], list[float]]]:
    return [(batch.rows.tolist(), batch.weights.tolist()) for batch in batches]


@given(TABLES, SIZES, SEEDS, EPOCHS)
def test_an_epoch_holds_every_row_once_and_fillers_weigh_nothing(samples, size: int, seed: int, epoch: int) -> None:
    batches = Schedule(samples, size, seed, window_shards=2).epoch(epoch)
    weighed = Counter(row for batch in batches for row, weight in zip(batch.rows, batch.weights) if weight == 1)
    assert weighed == Counter(range(samples.num_rows))
    assert {weight for batch in batches for weight in batch.weights.tolist()} <= {0.0, 1.0}
    assert all(len(batch.rows) == len(batch.weights) == size for batch in batches)
    assert all(batch.weights[0] == 1 for batch in batches)  # no batch is of fillers alone


@given(TABLES, SIZES, SEEDS)
def test_a_batch_is_of_one_bucket(samples, size: int, seed: int) -> None:
    rows = samples.select(["height", "width", "num_frames"]).to_pylist()
    for batch in Schedule(samples, size, seed).epoch(0):
        assert len({tuple(rows[row].values()) for row in batch.rows}) == 1


@given(TABLES, SIZES, SEEDS)
def test_an_epoch_takes_as_few_steps_as_its_buckets_allow(samples, size: int, seed: int) -> None:
    schedule = Schedule(samples, size, seed)
    counts = Counter(tuple(row.values()) for row in samples.drop_columns(["shard"]).to_pylist())
    assert schedule.steps_per_epoch == len(schedule.epoch(0)) == sum(-(-count // size) for count in counts.values())


@given(TABLES, SIZES, SEEDS)
def test_steps_run_on_from_epoch_to_epoch(samples, size: int, seed: int) -> None:
    schedule = Schedule(samples, size, seed)
    steps = [schedule.batch(step) for step in range(3 * schedule.steps_per_epoch)]
    assert contents(steps) == contents([batch for epoch in range(3) for batch in schedule.epoch(epoch)])


@given(TABLES, SIZES, SEEDS)
def test_the_same_seed_gives_the_same_batches(samples, size: int, seed: int) -> None:
    assert contents(Schedule(samples, size, seed).epoch(1)) == contents(Schedule(samples, size, seed).epoch(1))


def test_epochs_and_seeds_differ() -> None:
    samples = table([0] * 60, [row // 10 for row in range(60)])
    orders = [contents(Schedule(samples, 4, seed, 2).epoch(epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))


@given(TABLES, SIZES, SEEDS, st.sampled_from([1, 2, 3, 5, 8]))
def test_ranks_share_out_the_same_global_batches(samples, size: int, seed: int, num_ranks: int) -> None:
    schedule = Schedule(samples, size, seed)
    for step in range(schedule.steps_per_epoch):
        batch = schedule.batch(step)
        shares = [rank_slots(batch, rank, num_ranks) for rank in range(num_ranks)]
        assert len({len(share) for share in shares}) == 1
        slots = [slot for share in shares for slot in share]
        assert [slot.position for slot in slots] == list(range(len(slots)))
        assert [slot.row for slot in slots[:size]] == batch.rows.tolist()
        assert [slot.weight for slot in slots[:size]] == batch.weights.tolist()
        assert len(slots) - size < num_ranks
        assert all(slot.weight == 0 and slot.row in batch.rows for slot in slots[size:])  # of the same bucket


@given(TABLES, SIZES, SEEDS, st.data())
def test_resuming_gives_the_same_rest(samples, size: int, seed: int, data) -> None:
    end = 2 * Schedule(samples, size, seed).steps_per_epoch
    start = data.draw(st.integers(0, end))
    whole = list(rank_steps(Schedule(samples, size, seed), range(end), 1, 2))
    assert list(rank_steps(Schedule(samples, size, seed), range(start, end), 1, 2)) == whole[start:]


WINDOW, SHARDS, ROWS = 3, 12, 8  # shards in a window, shards, rows in a shard


def windowed(epoch: int = 0, seed: int = 5) -> list[list[int]]:
    """The shards of the rows of each batch, four batches to a window."""
    samples = table([0] * (SHARDS * ROWS), [row // ROWS for row in range(SHARDS * ROWS)])
    batches = Schedule(samples, WINDOW * ROWS // 4, seed, WINDOW).epoch(epoch)
    return [(batch.rows // ROWS).tolist() for batch in batches]


def windows(epoch: int = 0) -> list[frozenset[int]]:
    batches = windowed(epoch)
    return [frozenset().union(*batches[first : first + 4]) for first in range(0, len(batches), 4)]


def test_reads_stay_within_a_window_of_shards() -> None:
    assert [len(window) for window in windows()] == [WINDOW] * (SHARDS // WINDOW)
    assert frozenset.union(*windows()) == frozenset(range(SHARDS))


def test_rows_are_mixed_within_a_window() -> None:
    assert all(len(set(shards)) > 1 for shards in windowed())
    assert sum(shards != sorted(shards) for shards in windowed()) > len(windowed()) / 2


def test_windows_hold_other_shards_each_epoch() -> None:
    assert set(windows(0)) != set(windows(1))
    neighbours = [frozenset(range(first, first + WINDOW)) for first in range(0, SHARDS, WINDOW)]
    assert set(windows(0)) != set(neighbours)


@pytest.mark.parametrize("size", [1, 4])
def test_buckets_are_interleaved(size: int) -> None:
    samples = table([row % 2 for row in range(80)], [0] * 80)
    heights = np.array([KINDS[row % 2][2] for row in range(80)])
    order = [int(heights[batch.rows[0]]) for batch in Schedule(samples, size, 0).epoch(0)]
    assert order != sorted(order) and order != sorted(order, reverse=True)
