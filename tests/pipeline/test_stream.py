"""A cache is streamed as plain WebDataset does it: every clip that is trained on, once, with its caption."""

import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader
from webdataset import WebDataset  # pyright: ignore[reportAttributeAccessIssue]

from jobs.config import RunConfig
from pipeline.cache import Cache, sidecar_path, tar_path
from pipeline.errors import Refused
from pipeline.index import merge_index
from pipeline.loader import stream
from pipeline.recipe import read_recipe
from pipeline.records import Sample, TextSample, Tombstone
from pipeline.sample import array_bytes
from pipeline.shard import Member, Packed
from pipeline.stream import READ_BYTES
from pipeline.tables import read_records, write_records
from tests.object_store import Bucket, serve_bucket
from tests.shards import local, write_shard

Rows = list[dict[str, Any]]


@pytest.fixture
def cache(cached: RunConfig, tmp_path: Path) -> Cache:
    """A copy of the filled cache, to change."""
    return Cache(Path(shutil.copytree(local(cached.cache.root), tmp_path / "cache")))


@pytest.fixture(scope="module")
def bucket(cached: RunConfig) -> Iterator[Bucket]:
    """An object store with the filled cache in it."""
    root = local(cached.cache.root)
    with serve_bucket() as bucket:
        for file in (path for path in root.rglob("*") if path.is_file()):
            bucket.put(f"cache/{file.relative_to(root).as_posix()}", file)
        yield bucket


def index_of(cache: Cache) -> Rows:
    return pq.read_table(cache.index).to_pylist()


def keys(samples: Any) -> list[str]:
    return [sample["__key__"] for sample in samples]


def with_workers(pipeline: Any, num_workers: int, context: str) -> Rows:
    """Read in a process of its own: forking this one, with its threads, may hang."""
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        return fresh.submit(read_all, pipeline, num_workers, context).result()


def read_all(pipeline: Any, num_workers: int, context: str) -> Rows:
    return list(DataLoader(pipeline, batch_size=None, num_workers=num_workers, multiprocessing_context=context))


def assert_same(found: list[Any], wanted: list[Any]) -> None:
    assert keys(found) == keys(wanted)
    for one, other in zip(found, wanted):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


def test_it_is_what_plain_webdataset_reads_of_both_columns_in_the_order_of_the_index(cached: RunConfig) -> None:
    cache = cached.cache
    shards = dict.fromkeys(row["shard"] for row in index_of(cache))
    latents, texts = (
        list(WebDataset([str(tar_path(column, shard)) for shard in shards], shardshuffle=False).decode())
        for column in (cache.latents, cache.text("bytes"))
    )
    for one in (*latents, *texts):
        del one["__url__"]
        one.pop("__local_path__", None)
    assert keys(latents) == [row["key"] for row in index_of(cache)]
    assert_same(list(stream(cache)), latents)
    assert_same(list(stream(cache, "bytes")), [{**one, **text} for one, text in zip(latents, texts)])


def test_it_takes_a_path_a_string_or_a_cache(cached: RunConfig) -> None:
    wanted = keys(stream(cached.cache))
    assert keys(stream(local(cached.cache.root))) == keys(stream(str(cached.cache.root))) == wanted


def test_latents_and_text_are_float16_as_cached(cached: RunConfig) -> None:
    for clip in stream(cached.cache, "bytes"):
        assert clip["latent.npy"].dtype == clip["text.npy"].dtype == np.float16
        assert clip["latent.npy"].shape == (16, 5 * clip["json"]["num_chunks"], 8, 8)
        assert clip["text.npy"].shape == (len(clip["txt"].encode()), 256)


def test_clips_of_removed_videos_are_left_out_and_shards_without_others_not_read(cache: Cache) -> None:
    rows = index_of(cache)
    gone = {row["video"] for row in rows if row["shard"] == rows[0]["shard"]} | {rows[-1]["video"]}
    write_records(cache.tombstones, Tombstone, [Tombstone(video, "") for video in gone])
    local(tar_path(cache.latents, rows[0]["shard"])).unlink()
    left = [row["key"] for row in rows if row["video"] not in gone]
    assert 0 < len(left) < len(rows)
    assert keys(stream(cache)) == keys(stream(cache, "bytes")) == left


@pytest.mark.parametrize(("nodes", "workers"), [(1, 1), (2, 1), (1, 3), (2, 2), (9, 9)])
def test_nodes_and_workers_share_the_clips_between_them(
    cached: RunConfig, monkeypatch: pytest.MonkeyPatch, nodes: int, workers: int
) -> None:
    pipeline, shares = stream(cached.cache), []
    for node in range(nodes):
        for worker in range(workers):
            where = {"RANK": node, "WORLD_SIZE": nodes, "WORKER": worker, "NUM_WORKERS": workers}
            for name, value in where.items():
                monkeypatch.setenv(name, str(value))
            shares += keys(pipeline)
    assert sorted(shares) == sorted(row["key"] for row in index_of(cached.cache))


def test_what_webdataset_offers_follows(cached: RunConfig) -> None:
    wanted = keys(stream(cached.cache))
    small = stream(cached.cache).map(lambda clip: (clip["__key__"], clip["latent.npy"].mean(dtype=np.float32)))
    batches: Any = small.shuffle(100, seed=1).batched(5)
    shuffled = [list(names) for names, _ in batches]
    assert {len(names) for names in shuffled[:-1]} == {5} and 0 < len(shuffled[-1]) <= 5
    names = [name for batch in shuffled for name in batch]
    assert sorted(names) == sorted(wanted) and names != wanted
    assert keys(stream(cached.cache).repeat(2)) == 2 * wanted


def test_forked_workers_of_a_dataloader_read_a_cache_on_disk(cached: RunConfig) -> None:
    found = sorted(with_workers(stream(cached.cache, "bytes"), 2, "fork"), key=lambda clip: clip["__key__"])
    assert_same(found, sorted(stream(cached.cache, "bytes"), key=lambda clip: clip["__key__"]))


@pytest.mark.parametrize("piece", [READ_BYTES, 5000])
def test_a_store_gives_the_same_and_is_asked_for_tars_in_large_pieces(
    cached: RunConfig, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr("pipeline.stream.READ_BYTES", piece)
    bucket.door.requests.clear()
    assert_same(list(stream(bucket.uri("cache"), "bytes")), list(stream(cached.cache, "bytes")))
    tars = [one.key for one in bucket.asked("GET") if one.key.endswith(".tar")]
    assert (len(tars) == len(set(tars))) == (piece == READ_BYTES) and not bucket.asked("LIST")


def test_spawned_workers_of_a_dataloader_read_a_cache_in_a_store(cached: RunConfig, bucket: Bucket) -> None:
    assert keys(with_workers(stream(bucket.uri("cache")), 1, "spawn")) == keys(stream(cached.cache))


def test_a_forked_worker_says_that_it_cannot_read_from_a_store(bucket: Bucket) -> None:
    pipeline = stream(bucket.uri("cache"))
    with pytest.raises(Refused, match=r'forked process.*multiprocessing_context="spawn"'):
        read_all(pipeline, 1, "fork")


def test_a_cache_that_is_none_yet_or_has_no_index_is_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="is not a cache yet"):
        stream(tmp_path / "nothing")
    with pytest.raises(Refused, match=r"text/t5/index\.parquet: not found; run `text` first"):
        stream(cache, "t5")
    local(cache.index).unlink()
    with pytest.raises(Refused, match=r"index\.parquet: not found; run `encode` first"):
        stream(cache)


def test_text_that_is_behind_is_refused(cache: Cache) -> None:
    shards = list(dict.fromkeys(row["shard"] for row in index_of(cache)))
    merge_index(cache.text_index("bytes"), cache.text("bytes"), shards[:-1], TextSample)
    with pytest.raises(Refused, match=r"its shards are not those of .*index\.parquet; run `text`"):
        stream(cache, "bytes")
    assert keys(stream(cache))


def flip_a_byte(cache: Cache) -> None:
    row = read_records([cache.index], Sample)[0]
    path = local(tar_path(cache.latents, row.shard))
    content = bytearray(path.read_bytes())
    content[row.latent_offset + row.latent_bytes - 1] ^= 1
    path.write_bytes(content)


def cut(kept: float) -> Callable[[Cache], None]:
    def cut_a_tar(cache: Cache) -> None:
        path = local(tar_path(cache.latents, index_of(cache)[0]["shard"]))
        path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])

    return cut_a_tar


def cut_before_the_last(cache: Cache) -> None:
    """Cut a text tar where its last sample begins: what is left is a tar."""
    row = [row for row in read_records([cache.text_index("bytes")], TextSample) if row.shard.endswith("0000")][-1]
    path = local(tar_path(cache.text("bytes"), row.shard))
    path.write_bytes(path.read_bytes()[: row.text_offset - 512])


def remove_a_tar(cache: Cache) -> None:
    local(tar_path(cache.latents, index_of(cache)[-1]["shard"])).unlink()


def remove_a_sidecar(cache: Cache) -> None:
    local(sidecar_path(cache.text("bytes"), index_of(cache)[-1]["shard"])).unlink()


def write_text(cache: Cache, change: Callable[[str, dict[str, bytes]], tuple[str, dict[str, bytes]]]) -> None:
    """Commit a shard of text anew, whose samples are changed before."""
    column, shard = cache.text("bytes"), index_of(cache)[0]["shard"]
    rows = read_records([sidecar_path(column, shard)], TextSample)
    packed = [
        Packed(*change(row.key, {"text.npy": array_bytes(np.zeros((1, 256), np.float16)), "txt": b"a"})) for row in rows
    ]

    def make_row(key: str, where: Mapping[str, Member]) -> TextSample:
        text = where["text.npy"]
        return TextSample(key, shard, "a", 1, text.offset, text.num_bytes, text.crc32c)

    local(sidecar_path(column, shard)).unlink()
    write_shard(column, shard, packed, TextSample, make_row, {"recipe": read_recipe(cache).fingerprint()})


def other_keys(cache: Cache) -> None:
    write_text(cache, lambda key, members: (f"other-{key}", members))


def add_a_pickle(cache: Cache) -> None:
    write_text(cache, lambda key, members: (key, {**members, "pkl": pickle.dumps(Opened())}))


def pickle_an_array(cache: Cache) -> None:
    with open(local(cache.root) / "objects.npy", "wb") as file:
        np.save(file, np.array([Opened()], object), allow_pickle=True)
    content = (local(cache.root) / "objects.npy").read_bytes()
    write_text(cache, lambda key, members: (key, {**members, "text.npy": content}))


class Opened:
    """What must never be unpickled."""

    def __setstate__(self, state: object) -> None:
        raise AssertionError("a pickle was opened")

    def __getstate__(self) -> object:
        return {"so that": "state is set"}


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (flip_a_byte, r"latents/.*\.tar: .*\.latent\.npy is not what its sidecar says; run `verify --repair`"),
        (cut(0.5), r"latents/.*\.tar: no tar, or a damaged one: .*; run `verify --repair`"),
        (cut(0), r"latents/.*\.tar: no tar, or a damaged one|found 0 samples"),
        (cut_before_the_last, r"text/.*\.tar: found \d+ samples, wanted \d+; run `verify --repair`"),
        (remove_a_tar, r"latents/.*\.tar: in the index but gone; run `encode` and `text` again"),
        (remove_a_sidecar, r"text/.*\.parquet: in the index but gone; run `encode` and `text` again"),
        (other_keys, r"text/.*\.tar: has not the keys of the latents; run `verify --repair`"),
        (add_a_pickle, r"text/.*\.tar: found .*\.pkl, wanted .*; others, such as pickles, are never opened"),
        (pickle_an_array, r"text/.*\.tar: .*\.text\.npy cannot be read: .*allow_pickle=False"),
    ],
)
def test_what_is_damaged_gone_or_pickled_stops_the_stream_by_name(
    cache: Cache, harm: Callable[[Cache], None], told: str
) -> None:
    harm(cache)
    with pytest.raises(Refused, match=told):
        list(stream(cache, "bytes"))
