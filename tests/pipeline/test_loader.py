"""Batches hold exactly what the cache holds; a damaged or missing byte stops the run."""

import os
import pickle
import resource
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.text.byte_encoder import ByteEncoder
from models.vae import load_vae
from pipeline.cache import Cache, sidecar_path, tar_path
from pipeline.errors import Refused
from pipeline.index import merge_index
from pipeline.loader import Batch, ClipReader, TrainingSet, load_batches, open_training_set
from pipeline.recipe import Recipe
from pipeline.records import Sample, TextSample, Tombstone, Video
from pipeline.sample import array_bytes
from pipeline.schedule import Schedule, Slot
from pipeline.shard import Member, Packed
from pipeline.tables import read_metadata, read_records, write_records
from pipeline.text_column import text_shard, write_text_shard
from tests.shards import local, write_shard

RECIPE = Recipe(load_vae("dct").spec, fps=24.0, buckets=((64, 64), (64, 96)), max_chunks=3, tail="drop")
ENCODER = ByteEncoder(32)
BUCKETS = {"64x64/0000-000000": (64, 64), "64x64/0000-000001": (64, 64), "64x96/0000-000000": (64, 96)}
CAPTIONS = ["a red square", "", "ein grüner Kreis", "b", "two"]
VIDEOS = {
    f"v{n}": Video(f"v{n}", f"/{n}", caption, 1, 1, "h264", 0, 999, 999, 99, 0.0, 4.0, 24.0, f'{{"rank": {n}}}')
    for n, caption in enumerate(CAPTIONS)
}


def latent(key: str, bucket: tuple[int, int], channels: int = 16, frames: int = 5) -> np.ndarray:
    seed = int.from_bytes(key.encode(), "little")
    size = (channels, frames, bucket[0] // 8, bucket[1] // 8)
    return np.random.default_rng(seed).normal(size=size).astype(np.float16)


def write_latents(
    cache: Cache,
    shard: str,
    bucket: tuple[int, int],
    clips: int,
    first: int,
    recipe: Recipe = RECIPE,
    frames: tuple[int, int, int] = (1, 17, 17),
) -> None:
    """A shard of clips of so many chunks, frames and valid frames, of the videos v0 to v4 in turn."""
    keys = [f"k{first + number}" for number in range(clips)]
    channels, num_latents = recipe.latent.stored_channels, recipe.latent.latent_frames(frames[1])

    def row(key: str, where: Mapping[str, Member]) -> Sample:
        npy, facts, number = where["latent.npy"], where["json"], int(key[1:])
        lies = (npy.offset, npy.num_bytes, npy.crc32c, facts.offset, facts.num_bytes)
        return Sample(key, shard, f"v{number % 5}", 0.0, 20.0 + number, *bucket, *frames, *lies)

    contents = {key: array_bytes(latent(key, bucket, channels, num_latents)) for key in keys}
    packed = [Packed(key, {"latent.npy": content, "json": b"{}"}) for key, content in contents.items()]
    write_shard(cache.latents, shard, packed, Sample, row, {"recipe": recipe.fingerprint()})


def write_cache(root: Path, shards: dict[str, tuple[int, int]], clips: int, recipe: Recipe = RECIPE) -> Cache:
    cache = Cache(root)
    for number, (shard, bucket) in enumerate(shards.items()):
        write_latents(cache, shard, bucket, clips, number * clips, recipe)
        write_text_shard(cache.text("bytes"), text_shard(cache, shard, VIDEOS, ENCODER.fingerprint()), ENCODER)
    merge_index(cache.index, cache.latents, list(shards), Sample)
    merge_index(cache.text_index("bytes"), cache.text("bytes"), list(shards), TextSample)
    return cache


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """15 clips in three shards and two buckets."""
    return write_cache(tmp_path, BUCKETS, 5)


def open_set(cache: Cache, filter: str = "") -> TrainingSet:
    return open_training_set(cache, RECIPE, "bytes", filter=filter)


def batches(data: TrainingSet, workers: int = 0, rank: int = 0, num_ranks: int = 1, size: int = 4) -> list[Batch]:
    schedule = Schedule(data.samples, size, seed=3)
    return list(load_batches(data, schedule, range(2 * schedule.steps_per_epoch), rank, num_ranks, workers))


def test_batches_hold_what_was_written(cache: Cache) -> None:
    data = open_set(cache)
    rows = {row["key"]: row for row in data.samples.to_pylist()}
    captions = {row["key"]: row["caption"] for row in data.texts.to_pylist()}
    seen = set()
    for batch in batches(data):
        assert batch.latents.dtype == batch.text.dtype == torch.float16
        for place, key in enumerate(batch.keys):
            row, tokens = rows[key], ENCODER.encode([captions[key]])[0]
            wanted = latent(key, (row["height"], row["width"]))
            assert np.array_equal(batch.latents[place].numpy(), wanted)
            assert np.array_equal(batch.text[place][batch.text_mask[place]].numpy(), tokens)
            assert [float(one[place]) for one in (batch.fps, batch.height, batch.width)] == [
                row["fps"],
                row["height"],
                row["width"],
            ]
            seen.add(key)
    assert seen == set(rows)


def test_captions_are_padded_behind_to_the_longest(cache: Cache) -> None:
    for batch in batches(open_set(cache)):
        lengths = batch.text_mask.sum(dim=1)
        assert batch.text.shape == (4, max(1, int(lengths.max())), 32)
        assert torch.equal(batch.text_mask, torch.arange(batch.text.shape[1]) < lengths[:, None])
        assert not batch.text[~batch.text_mask].any()


def test_a_batch_without_any_words_still_has_a_place_for_one(cache: Cache) -> None:
    data = open_set(cache)
    reader = ClipReader(data)
    empty = data.texts["caption"].to_pylist().index("")
    batch = reader.collate([reader[Slot(empty, 1.0, 0)]])
    assert batch.text.shape == (1, 1, 32) and not batch.text_mask.any()


def test_slots_arrive_with_their_weights_and_positions(cache: Cache) -> None:
    data = open_set(cache)
    schedule = Schedule(data.samples, 4, seed=3)
    keys = data.samples["key"].to_pylist()
    for rank in range(3):
        for step, batch in enumerate(batches(data, rank=rank, num_ranks=3)):
            whole = schedule.batch(step)
            positions = batch.positions.tolist()
            assert positions == [2 * rank, 2 * rank + 1]
            rows = [whole.rows[place] if place < 4 else whole.rows[0] for place in positions]
            assert batch.keys == tuple(keys[row] for row in rows)
            assert batch.weights.tolist() == [whole.weights[place] if place < 4 else 0 for place in positions]


def test_workers_change_nothing(cache: Cache) -> None:
    alone, helped = (batches(open_set(cache), workers) for workers in (0, 2))
    assert [one.keys for one in alone] == [one.keys for one in helped]
    for one, other in zip(alone, helped, strict=True):
        for name, value in vars(one).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(other, name))


def test_a_reader_that_was_sent_elsewhere_opens_its_own_files(cache: Cache) -> None:
    reader = ClipReader(open_set(cache))
    slot = Slot(3, 1.0, 0)
    wanted = reader[slot][1]
    sent = pickle.dumps(reader)
    for handle in reader.latent_tars._handles.values():
        os.close(handle)  # numbers of open files mean nothing in another process
    assert np.array_equal(pickle.loads(sent)[slot][1], wanted)


@pytest.mark.parametrize(("column", "member"), [("latents", "latent"), ("text/bytes", "text")])
def test_a_damaged_byte_stops_the_run_and_names_the_file(cache: Cache, column: str, member: str) -> None:
    shard = "64x64/0000-000001"
    path = local(tar_path(cache.root / column, shard))
    data = open_set(cache)
    table = data.samples if member == "latent" else data.texts
    row = table["shard"].to_pylist().index(shard)
    content = bytearray(path.read_bytes())
    content[table[f"{member}_offset"][row].as_py() + table[f"{member}_bytes"][row].as_py() - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(Refused, match=rf"{column}/{shard}\.tar: the member at byte \d+ is damaged"):
        batches(data)


def test_a_tar_cut_short_stops_the_run(cache: Cache) -> None:
    path = local(tar_path(cache.latents, "64x96/0000-000000"))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(Refused, match="damaged"):
        batches(open_set(cache))


def test_a_missing_tar_stops_the_run_and_says_what_to_do(cache: Cache) -> None:
    tar_path(cache.latents, "64x96/0000-000000").unlink()
    with pytest.raises(Refused, match=r"64x96/0000-000000\.tar.*run `encode`"):
        batches(open_set(cache))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="cannot count the open files here")
def test_more_shards_than_files_may_be_open_can_be_read(cache: Cache) -> None:
    data, shards = open_set(cache), [f"64x64/{number}" for number in range(600)]
    for shard in shards:  # as many shards, all of the same clip
        local(tar_path(cache.latents, shard)).symlink_to(local(tar_path(cache.latents, "64x64/0000-000000")))
    names = pa.array(shards)
    place = data.samples.schema.get_field_index("shard")
    samples = data.samples.take([0] * len(shards)).set_column(place, "shard", names)
    data = replace(data, samples=samples, texts=data.texts.take([0] * len(shards)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = max(int(one.name) for one in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 300, hard))
    try:
        assert len(batches(data)) == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("change", ["order", "missing"])
def test_text_out_of_step_with_latents_is_refused(cache: Cache, change: str) -> None:
    index = cache.text_index("bytes")
    rows, footer = read_records([index], TextSample), read_metadata(index)
    write_records(index, TextSample, rows[::-1] if change == "order" else rows[:-1], footer)
    with pytest.raises(Refused, match=r"captions for 15 clips.*run `text` again"):
        open_set(cache)


def test_a_missing_column_says_which_verb_writes_it(cache: Cache) -> None:
    cache.text_index("bytes").unlink()
    with pytest.raises(Refused, match="run `text` first"):
        open_set(cache)
    cache.index.unlink()
    with pytest.raises(Refused, match="run `encode` first"):
        open_set(cache)


def test_a_foreign_recipe_is_refused(cache: Cache) -> None:
    with pytest.raises(Refused, match="made by recipe"):
        open_training_set(cache, replace(RECIPE, fps=12.0), "bytes")


def test_a_cache_without_clips_is_refused(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, {"64x64/0000-000000": (64, 64)}, 0)
    assert sidecar_path(cache.latents, "64x64/0000-000000").exists()
    with pytest.raises(Refused, match="holds no clips"):
        open_set(cache)


def remove(cache: Cache, *videos: str) -> None:
    write_records(cache.tombstones, Tombstone, [Tombstone(video, "") for video in videos])


def kept(data: TrainingSet) -> list[int]:
    """Numbers of the clips that are trained on; clip n is of the video n % 5."""
    assert data.samples["key"] == data.texts["key"]
    return [int(key[1:]) for key in data.samples["key"].to_pylist()]


def test_removed_videos_are_left_out(cache: Cache) -> None:
    remove(cache, "v1", "v4", "never planned")
    data = open_set(cache)
    assert kept(data) == [number for number in range(15) if number % 5 not in (1, 4)]
    assert (data.num_removed, data.num_filtered) == (6, 0)
    seen = {key for batch in batches(data) for key in batch.keys}
    assert seen == {f"k{number}" for number in kept(data)}


def test_what_is_read_of_the_clips_that_are_left_is_still_theirs(cache: Cache) -> None:
    remove(cache, "v0")
    data = open_set(cache)
    rows = {row["key"]: row for row in data.samples.to_pylist()}
    for batch in batches(data):
        for place, key in enumerate(batch.keys):
            wanted = ENCODER.encode([CAPTIONS[int(key[1:]) % 5]])[0]
            assert np.array_equal(batch.latents[place], latent(key, (rows[key]["height"], rows[key]["width"])))
            assert np.array_equal(batch.text[place][batch.text_mask[place]], wanted)


@pytest.mark.parametrize(
    ("filter", "wanted"),
    [
        ("", range(15)),
        ("rank >= 3", [3, 4, 8, 9, 13, 14]),
        ("width > 64 and codec == 'h264'", range(10, 15)),
        ("height == 999 or fps == 24", [4]),
        ("'red' in caption", [0, 5, 10]),
        ("not dark and num_chunks > 0 and rank != 2", [n for n in range(15) if n % 5 != 2]),
    ],
)
def test_the_filter_sees_the_index_then_the_manifest_then_the_users_columns(
    cache: Cache, filter: str, wanted: list[int]
) -> None:
    write_records(cache.manifest, Video, reversed(VIDEOS.values()))
    data = open_set(cache, filter)
    assert kept(data) == list(wanted)
    assert data.num_filtered == 15 - len(wanted)


def test_the_filter_counts_only_videos_that_are_still_there(cache: Cache) -> None:
    write_records(cache.manifest, Video, VIDEOS.values())
    remove(cache, "v1")
    data = open_set(cache, "rank > 1")
    assert (data.samples.num_rows, data.num_removed, data.num_filtered) == (9, 3, 3)


def test_a_clip_whose_video_the_manifest_forgot_matches_nothing_of_it(cache: Cache) -> None:
    write_records(cache.manifest, Video, [VIDEOS["v2"]])
    assert kept(open_set(cache, "rank >= 0")) == [2, 7, 12]


def test_nothing_left_to_train_on_is_refused_with_the_counts(cache: Cache) -> None:
    write_records(cache.manifest, Video, VIDEOS.values())
    remove(cache, "v0")
    with pytest.raises(
        Refused, match=r"of 15 clips none is left.*3 are of videos that left.*12 do not match.*'rank > 9'"
    ):
        open_set(cache, "rank > 9")


@pytest.mark.parametrize(("filter", "message"), [("quality > 1", "'quality' is not known"), ("fps", "a truth value")])
def test_a_filter_that_does_not_fit_is_refused(cache: Cache, filter: str, message: str) -> None:
    write_records(cache.manifest, Video, VIDEOS.values())
    with pytest.raises(Refused, match=message):
        open_set(cache, filter)


def test_a_filter_needs_the_manifest(cache: Cache) -> None:
    with pytest.raises(Refused, match=r"part-00000\.parquet: not found, and train\.filter needs it"):
        open_set(cache, "fps > 1")


def read_all(root: Path, *frames: tuple[int, int, int]) -> list[Batch]:
    """The batches of a cache with a shard of two clips for each (chunks, frames, valid frames)."""
    cache, shards = Cache(root), []
    for number, shape in enumerate(frames):
        shards.append(f"64x64/0000-{number:06d}")
        write_latents(cache, shards[-1], (64, 64), 2, 2 * number, frames=shape)
        write_text_shard(cache.text("bytes"), text_shard(cache, shards[-1], VIDEOS, ENCODER.fingerprint()), ENCODER)
    merge_index(cache.index, cache.latents, shards, Sample)
    merge_index(cache.text_index("bytes"), cache.text("bytes"), shards, TextSample)
    return batches(open_set(cache), size=4)


def test_images_come_in_batches_of_their_own(tmp_path: Path) -> None:
    found = read_all(tmp_path, (1, 1, 1), (1, 17, 17))[:2]
    assert {(batch.num_frames, tuple(batch.latents.shape)) for batch in found} == {
        (1, (4, 16, 1, 8, 8)),
        (17, (4, 16, 5, 8, 8)),
    }
    assert all(batch.filled.all() and batch.filled.shape == (4, batch.latents.shape[2]) for batch in found)


def test_latents_of_nothing_but_padding_are_told(tmp_path: Path) -> None:
    valid = {0: 34, 1: 18, 2: 23, 3: 1}  # by shard
    filled = {34: 10, 18: 6, 23: 8, 1: 1}  # 23 = 17 + 1 + 4 + 1
    for batch in read_all(tmp_path, *((2, 34, frames) for frames in valid.values())):
        assert batch.num_frames == 34 and batch.filled.dtype == torch.bool
        for key, row in zip(batch.keys, batch.filled.tolist(), strict=True):
            assert row == [number < filled[valid[int(key[1:]) // 2]] for number in range(10)]


MOMENTS = replace(RECIPE, latent=replace(RECIPE.latent, posterior="moments"))


def test_cached_moments_arrive_as_mean_and_std(tmp_path: Path) -> None:
    data = open_training_set(write_cache(tmp_path, BUCKETS, 5, MOMENTS), MOMENTS, "bytes")
    rows = {row["key"]: row for row in data.samples.to_pylist()}
    for batch in batches(data):
        assert batch.std is not None and batch.latents.shape == batch.std.shape
        for place, key in enumerate(batch.keys):
            wanted = latent(key, (rows[key]["height"], rows[key]["width"]), 32)
            assert np.array_equal(batch.latents[place].numpy(), wanted[:16])
            assert np.array_equal(batch.std[place].numpy(), wanted[16:])


def test_without_moments_there_is_no_std(cache: Cache) -> None:
    assert all(batch.std is None for batch in batches(open_set(cache)))


@pytest.mark.parametrize("stored", [RECIPE, MOMENTS])
def test_batches_are_converted_to_the_normalization_of_the_run(tmp_path: Path, stored: Recipe) -> None:
    cache = write_cache(tmp_path, BUCKETS, 5, stored)
    wanted = replace(stored, latent=replace(stored.latent, scaling_factor=3.0, shift=(0.5,) * 16, scale=(2.0,) * 16))
    before = batches(open_training_set(cache, stored, "bytes"))
    after = batches(open_training_set(cache, wanted, "bytes", stored))
    for old, new in zip(before, after, strict=True):
        raw = old.latents.float() * torch.tensor(stored.latent.scale)[:, None, None, None]
        raw += torch.tensor(stored.latent.shift)[:, None, None, None]
        torch.testing.assert_close(new.latents, (raw * 3 - 0.5) / 2, atol=1e-5, rtol=1e-6)
        if old.std is not None:
            wider = old.std.float() * torch.tensor(stored.latent.scale)[:, None, None, None] * 3 / 2
            torch.testing.assert_close(new.std, wider, atol=1e-5, rtol=1e-6)


def test_a_foreign_normalization_is_refused_unless_it_is_named(cache: Cache) -> None:
    wanted = replace(RECIPE, latent=replace(RECIPE.latent, scaling_factor=3.0))
    with pytest.raises(Refused, match="made by recipe"):
        open_training_set(cache, wanted, "bytes")
