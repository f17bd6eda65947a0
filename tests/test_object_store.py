"""A cache in an object store is the same cache: every verb works with it, whatever the store does on the way."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import NamedTuple
from zlib import crc32

import pytest
import torch

from jobs.config import RunConfig
from jobs.configured import configured_recipe
from jobs.encode import encode
from jobs.explain import explain
from jobs.plan import plan, read_plan
from jobs.preview import preview
from jobs.quarantine import list_quarantine, retry_quarantine
from jobs.sample import sample
from jobs.scan import scan
from jobs.stats import stats
from jobs.text import text
from jobs.train import train
from jobs.verify import verify
from pipeline.batch_reader import Batch
from pipeline.cache import Cache, tar_path
from pipeline.errors import Refused
from pipeline.index import merge_index
from pipeline.lengths import whole
from pipeline.loader import load_batches
from pipeline.location import place_of
from pipeline.recipe import bind_recipe, read_recipe
from pipeline.records import Sample, TextSample
from pipeline.schedule import Schedule
from pipeline.scratch import scratch_folder
from pipeline.shard import Packed, committed_footer
from pipeline.shard_cache import ShardCache
from pipeline.tables import read_records
from pipeline.training_set import open_training_set
from tests.conftest import cache_config, digests
from tests.object_store import Bucket, Request, SlowDown, serve_bucket
from tests.shards import write_shard

FILLING = {"scan": scan, "plan": plan, "encode": encode, "text": text}
VERBS: dict[str, Callable[[RunConfig], int | None]] = {  # in an order in which each has what it needs
    **FILLING,
    "verify": verify,
    "stats": stats,
    "preview": lambda config: preview(config, config.train.out / "preview", [], 2),
    "explain": lambda config: explain(config, read_plan(config.cache)[0].key),
    "train": train,
    "sample": sample,
    "quarantine list": lambda config: list_quarantine(config, "*", full=True),
    "quarantine retry": lambda config: retry_quarantine(config, "*"),
}


class Filled(NamedTuple):
    """A cache in a store, as the first four verbs left it."""

    config: RunConfig
    bucket: Bucket
    digests: dict[str, str]
    asked: dict[str, Sequence[Request]]  # by verb


@pytest.fixture(scope="module")
def bucket(local_ray: None) -> Iterator[Bucket]:
    with serve_bucket() as bucket:
        yield bucket


def remote_config(bucket: Bucket, folder: str, shapes: Path, root: Path) -> RunConfig:
    small = ["train.steps=2", "train.workers=1", "train.loader_threads=2", "sample.num_prompts=1", "sample.steps=1"]
    return cache_config(shapes, root, f"data.cache={bucket.uri(folder)}", *small)


@pytest.fixture(scope="module")
def filled(bucket: Bucket, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Filled:
    config = remote_config(bucket, "cache", shapes, tmp_path_factory.mktemp("remote"))
    asked = {}
    for name, verb in FILLING.items():
        bucket.door.requests.clear()
        verb(config)
        asked[name] = tuple(bucket.asked())
    return Filled(config, bucket, bucket.digests("cache"), asked)


def test_its_bytes_are_those_of_a_cache_on_disk(filled: Filled, cached: RunConfig) -> None:
    assert filled.digests == digests(cached.cache.root)


def test_nothing_is_listed_to_find_out_what_is_done(filled: Filled) -> None:
    """The quarantine is listed, for it is a report."""
    listed = {one.key for verb in filled.asked.values() for one in verb if one.verb == "LIST"}
    assert listed <= {"cache/quarantine/"}


def test_what_must_not_be_replaced_is_put_on_that_condition(filled: Filled) -> None:
    put = {
        one.key: "if-none-match" in one.headers for verb in filled.asked.values() for one in verb if one.verb == "PUT"
    }
    sidecars = {key for key in put if "x" in key.split("/")[-2] and key.endswith(".parquet")}
    assert len(sidecars) == len([key for key in put if key.endswith(".tar") and "null" not in key]) > 4
    wanted = {"cache/recipe.json", "cache/plan/gen-0000.parquet"} | sidecars
    assert {key for key, conditional in put.items() if conditional} == wanted


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_works_with_it(filled: Filled, name: str) -> None:
    filled.bucket.door.requests.clear()
    assert not VERBS[name](filled.config)
    assert filled.bucket.asked()
    if name == "train":  # what it reads stays on this machine, by default
        shards = {row.shard for row in read_records([filled.config.cache.index], Sample)}
        kept = ShardCache(scratch_folder("shards"), 0)
        assert any(kept.read(tar_path(filled.config.cache.latents, shard), 0, [bytearray(1)]) for shard in shards)
    if name in FILLING:  # done already
        assert not [one.key for one in filled.bucket.asked("PUT") if one.key.endswith((".tar", "index.parquet"))]


def batches(config: RunConfig, num_threads: int, shard_cache: ShardCache | None = None) -> list[Batch]:
    data = open_training_set(config.cache, configured_recipe(config), config.text.encoder)
    schedule = Schedule(data.schedule_rows(), lambda kind: whole(kind, 3), seed=0)
    return list(load_batches(data, schedule, range(schedule.num_steps(0)), 0, 1, num_threads, shard_cache))


def assert_same(found: list[Batch], wanted: list[Batch]) -> None:
    assert [one.keys for one in found] == [one.keys for one in wanted]
    for one, other in zip(found, wanted):
        assert torch.equal(one.latents, other.latents) and torch.equal(one.text, other.text)


def asked_tars(bucket: Bucket) -> list[Request]:
    return [one for one in bucket.asked("GET") if one.key.endswith(".tar")]


@pytest.mark.parametrize("num_threads", [0, 2])
def test_training_reads_the_same_batches_and_only_what_it_needs(
    filled: Filled, cached: RunConfig, num_threads: int
) -> None:
    filled.bucket.door.requests.clear()
    found = batches(filled.config, num_threads)
    assert not multiprocessing.active_children()  # the client does not survive a fork
    assert_same(found, batches(cached, 0))
    read = asked_tars(filled.bucket)
    assert len(read) == 2 * sum(len(one.keys) for one in found) and all("range" in one.headers for one in read)


def test_training_asks_for_a_member_once(filled: Filled, cached: RunConfig, tmp_path: Path) -> None:
    filled.bucket.door.requests.clear()
    keys = [key for batch in batches(filled.config, 2, ShardCache(tmp_path, 2**40)) for key in batch.keys]
    first = len(asked_tars(filled.bucket))
    assert 2 * len(set(keys)) <= first <= 2 * len(keys)  # fillers may be asked for while the first is on its way
    assert_same(batches(filled.config, 2, ShardCache(tmp_path, 2**40)), batches(cached, 0))
    assert len(asked_tars(filled.bucket)) == first


def test_a_loader_that_is_left_early_ends(filled: Filled) -> None:
    data = open_training_set(filled.config.cache, configured_recipe(filled.config), "bytes")
    schedule = Schedule(data.schedule_rows(), lambda kind: whole(kind, 2), seed=0)
    loading = load_batches(data, schedule, range(10**6), 0, 1, 3)
    next(loading)
    loading.close()  # pyright: ignore[reportAttributeAccessIssue]


def stumbling(salt: str) -> Callable[[Request], None]:
    """Many requests fail in one way or another when they come for the first time."""
    seen: set[tuple[str, str]] = set()

    def stumble(request: Request) -> None:
        number = crc32(f"{salt} {request.verb} {request.key}".encode()) % 15
        if number > 3 or (request.verb, request.key) in seen:
            return
        seen.add((request.verb, request.key))
        if number == 0:
            time.sleep(0.1)
        raise [ConnectionResetError, SlowDown][number % 2]

    return stumble


@pytest.mark.slow
def test_verbs_outlast_a_store_that_stumbles(
    filled: Filled, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is busy, slow or hangs up, before or after it did what it was asked."""
    config = remote_config(filled.bucket, "stumbled", shapes, tmp_path)
    monkeypatch.setattr(filled.bucket.door, "before", stumbling("before"))
    monkeypatch.setattr(filled.bucket.door, "after", stumbling("after"))
    for verb in FILLING.values():
        assert not verb(config)
    assert filled.bucket.digests("stumbled") == filled.digests


def at_once(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, ending: str, *work: Callable[[], object]) -> list[object]:
    """Do things at once, so that all have asked for what they need before the first may put a file of that name."""
    together = Barrier(len(work))
    seen: list[str] = []

    def meet(request: Request) -> None:
        if request.verb == "PUT" and request.key.endswith(ending) and len(seen) < len(work):
            seen.append(request.key)
            together.wait(60)

    def outcome(one: Callable[[], object]) -> object:
        try:
            return one()
        except Refused as error:
            return str(error)

    monkeypatch.setattr(bucket.door, "before", meet)
    with ThreadPoolExecutor() as threads:
        return list(threads.map(outcome, work))


def test_of_two_planners_one_wins(
    filled: Filled, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = remote_config(filled.bucket, "planners", shapes, tmp_path)
    scan(config)
    larger = config.model_copy(update={"encode": config.encode.model_copy(update={"shard_bytes": 10**9})})
    came = at_once(filled.bucket, monkeypatch, "gen-0000.parquet", lambda: plan(config), lambda: plan(larger))
    assert sorted(map(str, came)) == ["0", next(str(one) for one in came if one)]
    assert "gen-0000.parquet" in str(came) and "planned by another run meanwhile; run `plan` again" in str(came)
    assert not plan(config) and len(config.cache.plans()) == 1


def test_of_two_recipes_one_is_bound(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(place_of(filled.bucket.uri("binders")))
    one = configured_recipe(filled.config)
    other = replace(one, fps=one.fps + 1)
    came = at_once(
        filled.bucket, monkeypatch, "recipe.json", lambda: bind_recipe(cache, one), lambda: bind_recipe(cache, other)
    )
    assert read_recipe(cache) == (one if came[0] is None else other)
    assert [said is None for said in came].count(True) == 1 and "recipe.fps: found" in str(came)


def test_two_that_commit_the_same_shard_are_as_one(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    column, shard = place_of(filled.bucket.uri("committers")) / "text", "64x64/0000-000000"

    def commit() -> None:
        packed = [Packed("a", {"txt": b"hello"}), Packed("b", {"txt": b"you"})]
        write_shard(
            column, shard, packed, TextSample, lambda key, _: TextSample(key, shard, "", 0, 0, 0, 0), {"recipe": "r"}
        )

    assert at_once(filled.bucket, monkeypatch, ".parquet", commit, commit) == [None, None]
    assert committed_footer(column, shard)
    assert merge_index(column / "index.parquet", column, [shard], TextSample)
