"""Batches hold exactly what the cache holds; a sample with a damaged byte weighs nothing and spoils no other."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from models.latent_spec import LatentSpec
from pipeline.batch_reader import Batch, BatchReader
from pipeline.cache import Cache, tar_path
from pipeline.errors import Refused
from pipeline.schedule import Slot
from pipeline.training_set import TrainingSet
from tests.indexes import ENCODER, RECIPE
from tests.shards import local
from tests.tars import CAPTIONS, USUAL, Clips, latents_of, open_set, own_scratch, rows_of, text_of, write_cache

MOMENTS = replace(RECIPE, latent=replace(RECIPE.latent, posterior="moments"))
LONG = Clips(count=3, num_chunks=6, num_frames=102, valid_frames=95)


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path) -> Iterator[None]:
    with own_scratch(tmp_path / "scratch"):
        yield


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """15 clips in three shards and two sizes."""
    return write_cache(tmp_path / "cache")


def whole(*rows: int) -> list[Slot]:
    """Whole clips of one chunk, equally weighed."""
    return [Slot(row, 0, 1, 1 / len(rows), place) for place, row in enumerate(rows)]


def read(data: TrainingSet, slots: Sequence[Slot]) -> Batch:
    return BatchReader(data).__getitems__(slots)


def assert_same(one: Batch, other: Batch, *but: str) -> None:
    for field in fields(Batch):
        found, wanted = getattr(one, field.name), getattr(other, field.name)
        if field.name not in but:
            assert torch.equal(found, wanted) if isinstance(found, torch.Tensor) else found == wanted, field.name


def test_a_batch_holds_what_was_written(cache: Cache) -> None:
    batch, rows = read(open_set(cache), whole(7, 0, 4)), rows_of(cache)
    assert batch.keys == ("k7", "k0", "k4") and batch.num_frames == 17 and not batch.damaged
    for place, number in enumerate((7, 0, 4)):
        assert np.array_equal(batch.latents[place], latents_of(number, USUAL[0]))
        assert np.array_equal(batch.text[place][batch.text_mask[place]], text_of(number))
        row = rows[number]
        found = [float(one[place]) for one in (batch.fps, batch.height, batch.width)]
        assert found == [row.fps, row.height, row.width]
    assert batch.positions.tolist() == [0, 1, 2] and batch.std is None and batch.filled.all()


def test_a_batch_is_of_the_documented_types_and_shapes(cache: Cache) -> None:
    batch, longest = read(open_set(cache), whole(10, 12)), len(CAPTIONS[2].encode())
    kinds = {field.name: getattr(batch, field.name) for field in fields(Batch)}
    tensors = {name: (tuple(one.shape), one.dtype) for name, one in kinds.items() if isinstance(one, torch.Tensor)}
    assert tensors == {
        "latents": ((2, 16, 5, 8, 12), torch.float16),
        "filled": ((2, 5), torch.bool),
        "text": ((2, longest, ENCODER.dim), torch.float16),
        "text_mask": ((2, longest), torch.bool),
        "fps": ((2,), torch.float32),
        "height": ((2,), torch.float32),
        "width": ((2,), torch.float32),
        "weights": ((2,), torch.float32),
        "positions": ((2,), torch.int64),
    }


def test_captions_are_padded_behind_with_zeros(cache: Cache) -> None:
    data = open_set(cache)
    reader = BatchReader(data)
    for _ in range(3):  # the next ones where others were before
        batch = reader.__getitems__(whole(0, 1, 3))
        assert batch.text_mask.sum(dim=1).tolist() == [len(CAPTIONS[number].encode()) for number in (0, 1, 3)]
        assert not batch.text[~batch.text_mask].any()
        reader.__getitems__(whole(2, 0, 4))


def test_a_batch_without_any_words_still_has_a_place_for_one(cache: Cache) -> None:
    batch = read(open_set(cache), whole(1, 6))
    assert batch.text.shape == (2, 1, ENCODER.dim) and not batch.text_mask.any() and not batch.text.any()


def test_slots_keep_their_weights_and_positions(cache: Cache) -> None:
    batch = read(open_set(cache), [Slot(3, 0, 1, 0.25, 6), Slot(3, 0, 1, 0.0, 7), Slot(8, 0, 1, 0.5, 8)])
    assert batch.weights.tolist() == [0.25, 0, 0.5] and batch.positions.tolist() == [6, 7, 8]
    assert batch.keys == ("k3", "k3", "k8")


@pytest.mark.parametrize("recipe", [RECIPE, MOMENTS], ids=["latents", "moments"])
def test_a_part_of_a_clip_is_those_of_its_chunks(tmp_path: Path, recipe) -> None:
    data = open_set(write_cache(tmp_path / "cache", [LONG], recipe), recipe)
    for first, count in ((0, 1), (2, 3), (5, 1), (4, 2), (0, 6)):
        batch = read(data, [Slot(1, first, count, 1.0, 0)])
        wanted = latents_of(1, LONG, recipe)[:, 5 * first : 5 * (first + count)]
        assert batch.num_frames == 17 * count
        assert np.array_equal(batch.latents[0], wanted[:16])
        assert batch.std is None or np.array_equal(batch.std[0], wanted[16:])
        is_filled = [number < 29 for number in range(30)]  # 95 = 5 * 17 + 10 frames = 25 + 1 + 3 latents
        assert batch.filled[0].tolist() == is_filled[5 * first : 5 * (first + count)]


def test_slots_of_a_batch_begin_where_they_want(tmp_path: Path) -> None:
    data = open_set(write_cache(tmp_path / "cache", [LONG]))
    batch = read(data, [Slot(0, 4, 2, 0.5, 0), Slot(2, 0, 2, 0.5, 1)])
    assert np.array_equal(batch.latents[0], latents_of(0, LONG)[:, 20:30])
    assert np.array_equal(batch.latents[1], latents_of(2, LONG)[:, :10])
    assert batch.filled.sum(dim=1).tolist() == [9, 10]


def test_an_image_is_one_latent(tmp_path: Path) -> None:
    image = Clips(2, 1, 1, 1)
    batch = read(open_set(write_cache(tmp_path / "cache", [image])), whole(0, 1))
    assert batch.num_frames == 1 and batch.latents.shape == (2, 16, 1, 8, 8) and batch.filled.tolist() == [[True]] * 2
    assert np.array_equal(batch.latents[1], latents_of(1, image))


def test_cached_moments_arrive_as_mean_and_std(tmp_path: Path) -> None:
    batch = read(open_set(write_cache(tmp_path / "cache", recipe=MOMENTS), MOMENTS), whole(0, 5))
    assert batch.std is not None and batch.latents.shape == batch.std.shape == (2, 16, 5, 8, 8)
    for place, number in enumerate((0, 5)):
        wanted = latents_of(number, USUAL[0], MOMENTS)
        assert np.array_equal(batch.latents[place], wanted[:16]) and np.array_equal(batch.std[place], wanted[16:])


def anew(latent: LatentSpec) -> LatentSpec:
    """The same latents normalized in another way."""
    return replace(latent, scaling_factor=3.0, shift=(0.5,) * 16, scale=(2.0,) * 16)


@pytest.mark.parametrize("stored", [RECIPE, MOMENTS], ids=["latents", "moments"])
@pytest.mark.parametrize("slot", [Slot(0, 0, 6, 1.0, 0), Slot(2, 3, 2, 1.0, 0)], ids=["whole", "part"])
def test_latents_are_converted_to_the_normalization_of_the_run(tmp_path: Path, stored, slot: Slot) -> None:
    cache, wanted = write_cache(tmp_path / "cache", [LONG], stored), replace(stored, latent=anew(stored.latent))
    old, new = read(open_set(cache, stored), [slot]), read(open_set(cache, wanted, renormalize=True), [slot])
    scale, shift = (torch.tensor(one)[:, None, None, None] for one in (stored.latent.scale, stored.latent.shift))
    raw = (old.latents.float() * scale + shift) / stored.latent.scaling_factor
    assert new.latents.dtype == torch.float32
    torch.testing.assert_close(new.latents, (raw * 3 - 0.5) / 2, atol=1e-5, rtol=1e-6)
    if old.std is not None and new.std is not None:
        wider = old.std.float() * scale / stored.latent.scaling_factor * 3 / 2
        torch.testing.assert_close(new.std, wider, atol=1e-5, rtol=1e-6)


def test_clips_of_several_caches_meet_in_a_batch(tmp_path: Path) -> None:
    other = write_cache(tmp_path / "other", [Clips(3)], replace(RECIPE, latent=anew(RECIPE.latent)), first=100)
    own = write_cache(tmp_path / "own", [Clips(2)])
    data = open_set(own, renormalize=True, mixed={other: 1.0})
    batch = read(data, whole(1, 2, 0, 4))
    assert batch.keys == ("k1", "k100", "k0", "k102") and batch.latents.dtype == torch.float32
    assert torch.equal(batch.latents[0], torch.from_numpy(latents_of(1, USUAL[0])).float())
    converted = anew(RECIPE.latent).convert(torch.from_numpy(latents_of(102, USUAL[0])), to=RECIPE.latent)
    assert torch.equal(batch.latents[3], converted)
    assert np.array_equal(batch.text[3][batch.text_mask[3]], text_of(102))


def flip(cache: Cache, column: str, number: int) -> None:
    """One bit in the last byte of a clip's member."""
    row = rows_of(cache)[number]
    path = local(tar_path(cache.root / column, row.shard))
    name = f"k{number}.{'latent' if column == 'latents' else 'text'}.npy"
    content = bytearray(path.read_bytes())
    begin = content.index(name.encode())
    size = int(content[begin + 124 : begin + 135], 8)  # as a tar's header says
    content[begin + 512 + size - 1] ^= 1
    path.write_bytes(content)


def cut(cache: Cache, column: str, number: int) -> None:
    """The tar ends in the middle of a clip's member."""
    path = local(tar_path(cache.root / column, rows_of(cache)[number].shard))
    content = path.read_bytes()
    path.write_bytes(content[: content.index(f"k{number}.".encode()) + 600])


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("column", ["latents", "text/bytes"])
def test_a_damaged_sample_weighs_nothing_and_is_told_of(
    cache: Cache, column: str, damage: Callable[[Cache, str, int], None]
) -> None:
    data = open_set(cache)
    before = read(data, whole(3, 4, 7))
    damage(cache, column, 4)
    after = read(data, whole(3, 4, 7))
    [(key, problem)] = after.damaged
    assert key == "k4"
    assert f"{cache.root / column}/64x64/0000-000000.tar: the member at byte" in problem and "is damaged" in problem
    assert after.weights.tolist() == [before.weights[0], 0, before.weights[2]]
    assert not after.latents[1].any() and not after.text[1].any()
    for name in ("latents", "text"):
        assert torch.equal(getattr(after, name)[::2], getattr(before, name)[::2])
    assert_same(after, before, "latents", "text", "weights", "damaged")


def test_a_clip_of_another_shape_than_the_index_says_is_damage(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", [Clips(2)])
    data = open_set(cache)
    wider = replace(data.parts[0].view, rows=data.parts[0].view.rows.copy())
    wider.rows["width"][1] = 96
    batch = read(replace(data, parts=(replace(data.parts[0], view=wider),)), whole(1))
    [(key, problem)] = batch.damaged
    assert key == "k1" and "is no array of float16 (16, 5, 8, 12)" in problem and batch.weights.tolist() == [0]


def test_a_damaged_filler_is_not_told_of(cache: Cache) -> None:
    flip(cache, "latents", 2)
    batch = read(open_set(cache), [Slot(2, 0, 1, 0.5, 0), Slot(3, 0, 1, 0.5, 1), Slot(2, 0, 1, 0.0, 2)])
    assert [sample.key for sample in batch.damaged] == ["k2"] and batch.weights.tolist() == [0, 0.5, 0]


@pytest.mark.parametrize("num_threads", [0, 2])
@pytest.mark.parametrize("column", ["latents", "text/bytes"])
def test_a_tar_that_is_gone_stops_the_run(cache: Cache, column: str, num_threads: int) -> None:
    tar_path(cache.root / column, "64x96/0000-000002").unlink()
    data = open_set(cache)
    with ThreadPoolExecutor(2) as threads, pytest.raises(Refused, match=r"64x96/0000-000002\.tar.*run `encode`"):
        BatchReader(data, threads if num_threads else None).__getitems__(whole(10))


def test_it_works_in_the_processes_of_a_plain_dataloader(cache: Cache) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:  # forking this one, with its threads, may hang
        fresh.submit(read_in_processes, cache).result()


def read_in_processes(cache: Cache) -> None:
    reader, steps = BatchReader(open_set(cache)), [whole(1, 2, 8), whole(14), whole(3, 3)]
    wanted = [reader.__getitems__(slots) for slots in steps]
    loader: Any = DataLoader(
        reader,
        batch_sampler=steps,  # pyright: ignore[reportArgumentType]  # of slots
        num_workers=2,
        collate_fn=lambda batch: batch,
        multiprocessing_context="fork",
    )
    for found, one in zip(loader, wanted, strict=True):
        assert_same(found, one)


def test_it_can_be_sent_to_a_process_that_was_not_forked(cache: Cache) -> None:
    reader = BatchReader(open_set(cache))
    wanted = reader.__getitems__(whole(1, 9))
    assert_same(pickle.loads(pickle.dumps(reader)).__getitems__(whole(1, 9)), wanted)


def test_mixed_caches_do_not_open_more_files_than_one(tmp_path: Path) -> None:
    caches = [write_cache(tmp_path / str(number), [Clips(1)], first=10 * number) for number in range(3)]
    one, three = BatchReader(open_set(caches[0])), BatchReader(open_set(caches[0], mixed=dict.fromkeys(caches[1:], 1)))
    most = [sum(tars.max_open for both in reader.tars for tars in both) for reader in (one, three)]
    assert most[1] <= most[0] <= 256
