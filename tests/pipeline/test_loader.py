"""The batches of a step are the same however many ranks and threads read them, and errors reach who asks for them."""

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.batch_reader import Batch
from pipeline.cache import Cache, tar_path
from pipeline.errors import Refused
from pipeline.lengths import Length, Lengths
from pipeline.loader import RankSteps, load_batches
from pipeline.schedule import Schedule
from pipeline.training_set import TrainingSet
from tests.tars import Clips, open_set, own_scratch, write_cache

SHARDS = [Clips(3), Clips(4, size=(64, 96)), Clips(3, 1, 1, 1), Clips(2, 6, 102, 95)]
LENGTHS = {1: [(1, 1.0)], 6: [(6, 0.4), (3, 0.3), (1, 0.3)]}  # chunks and probability, by chunks of the clip
BY_SAMPLE = ("latents", "filled", "text_mask", "fps", "height", "width", "weights")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingSet]:
    """Clips and images of two sizes, some of which are shown at several lengths."""
    root = tmp_path_factory.mktemp("loader")
    with own_scratch(root / "scratch"):
        yield open_set(write_cache(root / "cache", SHARDS))


def schedule_of(data: TrainingSet) -> Schedule:
    return Schedule(
        data.schedule_rows(),
        lambda kind: Lengths(1.0, tuple(Length(chunks, share, 5) for chunks, share in LENGTHS[kind.num_chunks])),
        seed=3,
        window_shards=2,
    )


def load(data: TrainingSet, rank: int = 0, num_ranks: int = 1, num_threads: int = 0, steps: range | None = None):
    schedule = schedule_of(data)
    steps = steps or range(schedule.num_steps(0) + schedule.num_steps(1))
    return load_batches(data, schedule, steps, rank, num_ranks, num_threads)


def together(shares: tuple[Batch, ...]) -> list[dict[str, Any]]:
    """The samples of a global batch, from what each rank has of it; fillers of weight zero left out."""
    samples = []
    for share in shares:
        for place, position in enumerate(share.positions.tolist()):
            assert position == len(samples)
            found = {name: getattr(share, name)[place] for name in BY_SAMPLE}
            text = share.text[place][share.text_mask[place]]
            found["text_mask"] = text.shape
            samples.append({**found, "text": text, "key": share.keys[place], "num_frames": share.num_frames})
    return [sample for sample in samples if sample["weights"]]


def assert_same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert [one["key"] for one in found] == [one["key"] for one in wanted]
    for one, other in zip(found, wanted):
        for name, value in one.items():
            assert torch.equal(value, other[name]) if isinstance(value, Tensor) else value == other[name], name


@pytest.mark.parametrize("num_threads", [0, 1, 2])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5, 8])
def test_ranks_and_threads_change_nothing(data: TrainingSet, num_ranks: int, num_threads: int) -> None:
    ranks = [load(data, rank, num_ranks, num_threads) for rank in range(num_ranks)]
    found = [together(shares) for shares in zip(*ranks, strict=True)]
    wanted = [together((batch,)) for batch in load(data)]
    assert len(found) == len(wanted) > 8
    for one, other in zip(found, wanted):
        assert_same(one, other)
        assert sum(float(sample["weights"]) for sample in one) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_it_goes_on_from_any_step(data: TrainingSet, num_threads: int) -> None:
    wanted = [together((batch,)) for batch in load(data)]
    for start in (1, schedule_of(data).num_steps(0), len(wanted) - 1):
        found = [together((batch,)) for batch in load(data, num_threads=num_threads, steps=range(start, len(wanted)))]
        assert len(found) == len(wanted) - start
        for one, other in zip(found, wanted[start:]):
            assert_same(one, other)


def test_what_was_read_ahead_stays_as_it_was(data: TrainingSet) -> None:
    """Memory is used again, but not that of a batch that somebody has."""
    kept = list(load(data, num_threads=2))
    for found, wanted in zip(kept, load(data), strict=True):
        assert torch.equal(found.latents, wanted.latents) and torch.equal(found.text, wanted.text)


def test_loading_draws_no_random_numbers_of_the_model(data: TrainingSet) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    next(load(data))
    assert torch.equal(torch.rand(3), wanted)


def test_the_steps_of_a_rank_can_be_gone_through_again(data: TrainingSet) -> None:
    steps = RankSteps(schedule_of(data), range(2, 7), rank=1, num_ranks=2)
    assert len(steps) == len(list(steps)) == 5 and list(steps) == list(steps)


@pytest.mark.parametrize("num_read", [0, 1, 3])
def test_a_loader_that_is_left_early_leaves_no_threads(data: TrainingSet, num_read: int) -> None:
    before = set(threading.enumerate())
    loading = load(data, num_threads=2, steps=range(10**6))
    for _ in range(num_read):
        next(loading)
    del loading
    gc.collect()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("num_threads", [0, 1, 2])
def test_errors_of_reading_reach_who_asks_for_the_batch(tmp_path: Path, num_threads: int) -> None:
    with own_scratch(tmp_path / "scratch"):
        data = open_set(write_cache(tmp_path / "cache", [Clips(4), Clips(1)]))
    tar_path(Cache(tmp_path / "cache").latents, "64x64/0000-000001").unlink()
    before = set(threading.enumerate())
    with pytest.raises(Refused, match=r"0000-000001\.tar: in the index but gone"):
        list(load(data, num_threads=num_threads))
    assert set(threading.enumerate()) <= before
