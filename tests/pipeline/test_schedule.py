"""Every epoch shows every row as often as it is wanted, in batches of one bucket that depend on nothing but the rows,
the seed and the epoch."""

import tracemalloc
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.lengths import Bucket, Entry, Lengths, lengths_of, whole
from pipeline.schedule import GlobalBatch, Rows, Schedule, Slot, rank_slots

LONG, IMAGE = Bucket(64, 64, 102, 6), Bucket(64, 64, 1, 1)
KINDS = (Bucket(64, 64, 17, 1), IMAGE, Bucket(64, 96, 17, 1), Bucket(96, 64, 34, 2), LONG)
TABLE = {"64x64": {17: Entry(1, 1, 4), 34: Entry(1, 0.5, 3), 51: Entry(1, 0.5, 2), 102: Entry(1, 0.25, 1)}}
RANKS = st.sampled_from([1, 2, 3, 5, 8])


def index(clips: list[tuple[int, int]], times: tuple[float, ...] | None = None) -> Rows:
    """Rows of (shard, kind), sorted by shard, as an index is."""
    shards, kind = zip(*sorted(clips))
    ends = np.cumsum(np.unique(shards, return_counts=True)[1])
    return Rows(ends, KINDS, np.array(kind, np.uint16), times)


def evenly(num_rows: int, num_shards: int, kind: int = 0) -> Rows:
    return index([(row * num_shards // num_rows, kind) for row in range(num_rows)])


INDEXES = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=40).map(index)
TIMES = st.tuples(*[st.floats(0.1, 3)] * len(KINDS))
SIZES, SEEDS, EPOCHS = st.integers(1, 9), st.integers(0, 2**31), st.integers(0, 5)


def as_cached(rows: Rows, size: int = 4, seed: int = 0, window: int = 2) -> Schedule:
    return Schedule(rows, lambda kind: whole(kind, size), seed, window)


def five(num_frames: int, height: int, width: int) -> int:
    return 5


def by_table(rows: Rows, seed: int = 0) -> Schedule:
    return Schedule(rows, lambda kind: lengths_of(kind, TABLE, (8, 8), five), seed, window_shards=2)


def epoch_of(schedule: Schedule, epoch: int = 0) -> list[GlobalBatch]:
    return [schedule.batch(epoch, step) for step in range(schedule.num_steps(epoch))]


def contents(batches: list[GlobalBatch]) -> list[tuple]:
    return [(b.bucket, b.rows.tolist(), b.first_chunks.tolist(), b.weights.tolist()) for b in batches]


def counted(batches: list[GlobalBatch]) -> Counter[int]:
    """How often each row counts."""
    return Counter(row for batch in batches for row, weight in zip(batch.rows.tolist(), batch.weights) if weight)


@given(INDEXES, SIZES, SEEDS, EPOCHS)
def test_an_epoch_holds_every_row_once_and_fillers_weigh_nothing(rows: Rows, size: int, seed: int, epoch: int) -> None:
    batches = epoch_of(as_cached(rows, size, seed), epoch)
    assert counted(batches) == Counter(range(len(rows.kind)))
    assert all(set(batch.weights.tolist()) <= {0.0, batch.weights[0]} for batch in batches)
    assert all(batch.weights.sum() == pytest.approx(1) for batch in batches)
    assert all(len(batch.rows) == len(batch.weights) == len(batch.first_chunks) == size for batch in batches)
    assert all(batch.weights[0] > 0 for batch in batches)  # no batch is of fillers alone


@given(INDEXES, SEEDS, EPOCHS)
def test_a_table_of_lengths_shows_every_row_once_too(rows: Rows, seed: int, epoch: int) -> None:
    batches = epoch_of(by_table(rows, seed), epoch)
    assert counted(batches) == Counter(range(len(rows.kind)))
    for batch in batches:
        for row, first in zip(batch.rows.tolist(), batch.first_chunks.tolist()):
            clip = KINDS[rows.kind[row]]
            assert (clip.height, clip.width, clip.chunk_frames) == (*batch.bucket[:2], batch.bucket.chunk_frames)
            assert 0 <= first <= clip.num_chunks - batch.bucket.num_chunks


@given(INDEXES, SIZES, SEEDS)
def test_an_epoch_takes_as_few_steps_as_its_buckets_allow(rows: Rows, size: int, seed: int) -> None:
    counts = Counter(rows.kind.tolist())
    assert as_cached(rows, size, seed).num_steps(0) == sum(-(-count // size) for count in counts.values())


@given(INDEXES, SEEDS, EPOCHS)
def test_counts_are_those_of_the_batches(rows: Rows, seed: int, epoch: int) -> None:
    schedule = by_table(rows, seed)
    batches, samples = Counter(), Counter()
    for batch in epoch_of(schedule, epoch):
        batches[batch.bucket] += 1
        samples[batch.bucket] += int((batch.weights > 0).sum())
    told = schedule.counts(epoch)
    assert {one.bucket: one.samples for one in told if one.samples} == samples
    assert {one.bucket: one.batches for one in told if one.batches} == batches


def test_images_and_clips_of_one_size_never_share_a_batch() -> None:
    rows = index([(row % 3, row % 2) for row in range(60)])
    for batch in epoch_of(as_cached(rows)):
        assert len({KINDS[rows.kind[row]].num_frames for row in batch.rows.tolist()}) == 1


def test_a_clip_of_six_chunks_is_served_at_all_lengths_of_a_table() -> None:
    schedule = by_table(index([(0, KINDS.index(LONG))]))
    served = {schedule.batch(epoch, 0).bucket.num_frames for epoch in range(60)}
    assert served == {17, 34, 51, 102}


@given(INDEXES, SEEDS)
def test_steps_run_on_from_epoch_to_epoch(rows: Rows, seed: int) -> None:
    schedule = by_table(rows, seed)
    whole_run = [batch for epoch in range(3) for batch in epoch_of(schedule, epoch)]
    assert contents(list(islice(schedule.batches(), len(whole_run)))) == contents(whole_run)
    located = [schedule.locate(step) for step in range(len(whole_run))]
    assert located == [(epoch, step) for epoch in range(3) for step in range(schedule.num_steps(epoch))]


@given(rows=INDEXES, seed=SEEDS, times=TIMES, first_step=st.integers(0, 99), epoch=EPOCHS)
def test_a_schedule_may_take_over_at_any_step_and_with_any_epoch(
    rows: Rows, seed: int, times: tuple[float, ...], first_step: int, epoch: int
) -> None:
    for asked in (rows, replace(rows, times=times)):
        plain = as_cached(asked, seed=seed)
        late = Schedule(asked, lambda kind: whole(kind, 4), seed, 2, begins=(first_step, epoch))
        passed = sum(plain.num_steps(number) for number in range(epoch))
        assert [late.locate(first_step + step) for step in range(9)] == [plain.locate(passed + n) for n in range(9)]


@given(INDEXES, SEEDS, TIMES, st.data())
def test_resuming_from_an_epoch_and_a_step_gives_the_same_rest(rows: Rows, seed: int, times, data) -> None:
    rows = replace(rows, times=times)
    whole_run = [batch for epoch in range(2) for batch in epoch_of(by_table(rows, seed), epoch)]
    start = data.draw(st.integers(0, len(whole_run)))
    fresh = by_table(rows, seed)
    rest = islice(fresh.batches(*fresh.locate(start)), len(whole_run) - start)
    assert contents(list(rest)) == contents(whole_run[start:])


@given(INDEXES, SEEDS, RANKS)
def test_ranks_share_out_the_same_global_batches(rows: Rows, seed: int, num_ranks: int) -> None:
    for batch in epoch_of(by_table(rows, seed)):
        size = len(batch.rows)
        shares = [rank_slots(batch, rank, num_ranks) for rank in range(num_ranks)]
        assert len({len(share) for share in shares}) == 1
        slots = [slot for share in shares for slot in share]
        assert [slot.position for slot in slots] == list(range(len(slots)))
        assert [(slot.row, slot.first_chunk, slot.weight) for slot in slots[:size]] == list(
            zip(batch.rows.tolist(), batch.first_chunks.tolist(), batch.weights.tolist())
        )
        assert len(slots) - size < num_ranks
        assert all(slot.weight == 0 and slot.row == batch.rows[0] for slot in slots[size:])


def rank_run(rows: Rows, seed: int, start: int, end: int, rank: int, num_ranks: int) -> list[list[Slot]]:
    """What one rank reads from step `start` to `end`, by a schedule of its own."""
    schedule = by_table(rows, seed)
    batches = islice(schedule.batches(*schedule.locate(start)), end - start)
    return [rank_slots(batch, rank, num_ranks) for batch in batches]


def seen(rows: Rows, seed: int, start: int, end: int, num_ranks: int) -> Counter[tuple[int, int, int]]:
    """What all ranks together count: rows, where each begins and how long it is."""
    ranks = [rank_run(rows, seed, start, end, rank, num_ranks) for rank in range(num_ranks)]
    slots = [slot for run in ranks for step in run for slot in step if slot.weight]
    return Counter((slot.row, slot.first_chunk, slot.num_chunks) for slot in slots)


@given(INDEXES, SEEDS, TIMES, st.data())
def test_a_run_stopped_on_four_ranks_goes_on_as_one_on_two_or_eight(rows: Rows, seed: int, times, data) -> None:
    rows = replace(rows, times=times)
    schedule = by_table(rows, seed)
    end = schedule.num_steps(0) + schedule.num_steps(1)
    stop = data.draw(st.integers(0, end))
    rest = seen(rows, seed, stop, end, 4)
    assert seen(rows, seed, stop, end, 2) == seen(rows, seed, stop, end, 8) == rest
    assert seen(rows, seed, 0, stop, 4) + rest == seen(rows, seed, 0, end, 1)


@given(INDEXES, SEEDS, RANKS)
def test_ranks_agree_on_the_size_and_the_length_of_every_step(rows: Rows, seed: int, num_ranks: int) -> None:
    steps = by_table(rows, seed).num_steps(0)
    runs = [rank_run(rows, seed, 0, steps + 3, rank, num_ranks) for rank in range(num_ranks)]
    for shares in zip(*runs, strict=True):
        assert len({(len(share), *(slot.num_chunks for slot in share)) for share in shares}) == 1


def test_epochs_and_seeds_differ() -> None:
    rows = evenly(60, 6)
    orders = [contents(epoch_of(as_cached(rows, 4, seed), epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert all(orders[i] != orders[j] for i in range(4) for j in range(i))


def test_lengths_are_drawn_as_often_as_the_table_says() -> None:
    told = by_table(evenly(4000, 8, KINDS.index(LONG))).counts(0)
    shown = {one.bucket.num_frames: one.samples for one in told if one.samples}
    assert shown[102] / 4000 == pytest.approx(0.25, abs=0.03)
    assert shown[51] / 4000 == pytest.approx(0.75 * 0.5, abs=0.03)
    assert shown[34] / 4000 == pytest.approx(0.375 * 0.5, abs=0.03)


def test_every_chunk_of_a_clip_is_a_beginning_sooner_or_later() -> None:
    rows = evenly(300, 1, KINDS.index(LONG))
    schedule = Schedule(rows, lambda kind: lengths_of(kind, {"*": {34: Entry(1, 1, 8)}}, (8, 8), five), 0)
    starts = Counter(first for batch in epoch_of(schedule) for first in batch.first_chunks.tolist())
    assert set(starts) == set(range(5)) and max(starts.values()) < 2 * min(starts.values())


@given(INDEXES, TIMES, st.integers(1, 12), SEEDS)
def test_a_row_is_shown_as_often_as_it_is_wanted_to_within_one(rows: Rows, times, epochs: int, seed: int) -> None:
    schedule = as_cached(replace(rows, times=times), 3, seed)
    shown = sum((counted(epoch_of(schedule, epoch)) for epoch in range(epochs)), Counter())
    assert all(abs(shown[row] - epochs * times[kind]) <= 1 for row, kind in enumerate(rows.kind.tolist()))


@given(INDEXES, st.integers(1, 3), EPOCHS, SEEDS)
def test_whole_times_are_whole_in_every_epoch(rows: Rows, times: int, epoch: int, seed: int) -> None:
    """Beside kinds that are wanted now and then, too."""
    schedule = as_cached(replace(rows, times=(0.3, *[float(times)] * 4)), 3, seed)
    shown = counted(epoch_of(schedule, epoch))
    assert all(shown[row] == times for row, kind in enumerate(rows.kind.tolist()) if kind)


def test_a_share_shows_part_of_the_rows_in_each_epoch_and_all_in_several() -> None:
    schedule = Schedule(evenly(100, 1), lambda kind: Lengths(0.25, whole(kind, 5).ways), 0)
    epochs = [counted(epoch_of(schedule, epoch)) for epoch in range(4)]
    assert all(10 < len(epoch) < 40 for epoch in epochs)
    assert sum(epochs, Counter()) == Counter(range(100))


def test_epochs_that_show_nothing_are_passed_over() -> None:
    schedule = as_cached(index([(0, 0)], times=(0.2,) * 5), size=1)
    shown = [schedule.num_steps(epoch) for epoch in range(10)]
    assert sorted(shown) == [0] * 8 + [1] * 2
    assert schedule.locate(1) == (shown.index(1, shown.index(1) + 1), 0)
    assert contents(list(islice(schedule.batches(), 2))) == contents([schedule.batch(*schedule.locate(0))] * 2)


def test_one_kind_of_two_caches_makes_common_batches() -> None:
    """Each has its own entry among the kinds, as the caches are shown differently often."""
    mixed = Rows(np.array([6, 12]), (KINDS[0], KINDS[0]), np.repeat(np.arange(2, dtype=np.uint16), 6), (1.0, 2.0))
    schedule = as_cached(mixed, size=6)
    assert counted(epoch_of(schedule)) == Counter([*range(12), *range(6, 12)])
    assert schedule.num_steps(0) == 3


@pytest.mark.parametrize("block", [1, 7])
def test_a_schedule_is_the_same_in_blocks_of_any_size(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = replace(index([(row // 9, row % 5) for row in range(60)]), times=(1.0, 0.5, 2.0, 1.0, 1.5))
    expected = [contents(epoch_of(by_table(rows), epoch)) for epoch in range(2)]
    monkeypatch.setattr("pipeline.schedule.BLOCK", block)
    assert [contents(epoch_of(by_table(rows), epoch)) for epoch in range(2)] == expected


def test_an_epoch_takes_a_few_bytes_a_row() -> None:
    """Ten million clips fit beside a model, in every process."""
    num_rows, rows_per_shard = 10**6, 1000
    kind = np.random.default_rng(1).integers(0, len(KINDS), num_rows).astype(np.uint16)
    ends = np.arange(rows_per_shard, num_rows + 1, rows_per_shard)
    schedule = Schedule(Rows(ends, KINDS, kind), lambda kind: lengths_of(kind, TABLE, (8, 8), five), 0)
    tracemalloc.start()
    schedule.batch(0, 0)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 8 * num_rows
    assert peak < 25 * num_rows  # a third of it is the windows', and does not grow with the rows


WINDOW, SHARDS, ROWS = 3, 12, 8  # shards in a window, shards, rows in a shard


def windowed(epoch: int = 0, seed: int = 5) -> list[list[int]]:
    """The shards of the rows of each batch, four batches to a window."""
    batches = epoch_of(as_cached(evenly(SHARDS * ROWS, SHARDS), WINDOW * ROWS // 4, seed, WINDOW), epoch)
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


@given(INDEXES, SEEDS)
def test_batches_come_in_the_order_in_which_they_are_full(rows: Rows, seed: int) -> None:
    """A batch reaches no further ahead than its last row: with windows of one shard, shards come one after another."""
    schedule = Schedule(rows, lambda kind: whole(kind, 3), seed, window_shards=1)
    shard = np.searchsorted(rows.shard_ends, np.arange(len(rows.kind)), side="right")
    batches = [batch.rows[batch.weights > 0] for batch in epoch_of(schedule)]
    newest = [shard[batch[-1]] for batch in batches]
    assert all(
        newest[place] not in newest[:place] or newest[place - 1] == newest[place] for place in range(len(newest))
    )


@pytest.mark.parametrize("size", [1, 4])
def test_buckets_are_interleaved(size: int) -> None:
    rows = index([(0, row % 2) for row in range(80)])
    order = [batch.bucket.num_frames for batch in epoch_of(as_cached(rows, size))]
    assert order != sorted(order) and order != sorted(order, reverse=True)
