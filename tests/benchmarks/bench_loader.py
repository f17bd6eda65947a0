"""Reading batches, in two parts, by medians of interleaved rounds: CPU of this process, everything in the page cache.

disk   `load_batches` beside webdataset's streaming of the same tars and plain reads of the same bytes
store  the same cache in an object store, whose server is another process, with a cold and with a warm shard cache
"""

import logging
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from webdataset import WebDataset  # pyright: ignore[reportAttributeAccessIssue]

from models.vae import load_vae
from pipeline.cache import Cache, tar_path
from pipeline.index import merge_index
from pipeline.lengths import whole
from pipeline.loader import load_batches
from pipeline.location import place_of
from pipeline.recipe import Recipe, bind_recipe
from pipeline.records import Sample, TextSample
from pipeline.sample import array_bytes, npy_header
from pipeline.schedule import Schedule
from pipeline.shard import Member, Packed
from pipeline.shard_cache import ShardCache
from pipeline.storage import publish
from pipeline.text_column import TextOrigin, write_text_origin
from pipeline.training_set import TrainingSet, open_training_set
from tests.object_store import CREDENTIALS, serve_bucket
from tests.shards import local, write_shard

ROUNDS = 9
NUM_SHARDS, PER_SHARD, BATCH = 8, 16, 8
HEIGHT, WIDTH = 480, 832
LATENTS, TEXT = (16, 5, 60, 104), (128, 4096)  # float16
RECIPE = Recipe(load_vae("dct").spec, fps=24.0, buckets=((HEIGHT, WIDTH),), max_chunks=1, tail="drop")
ORIGIN = TextOrigin("random", None, TEXT[1], TEXT[0], None, False, "random")
SHARDS = [f"{HEIGHT}x{WIDTH}/0000-{number:06d}" for number in range(NUM_SHARDS)]
NUM_CLIPS = NUM_SHARDS * PER_SHARD
SIZE_MB = 2 * (np.prod(LATENTS) + np.prod(TEXT)) / 1e6


def main(*parts: str) -> None:
    """Run the parts that are named, or all."""
    for part in parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            cache = Cache(Path(folder) / "cache")
            write_cache(cache)
            PARTS[part](cache, Path(folder))


def from_disk(cache: Cache, folder: Path) -> None:
    data = open_training_set(cache, RECIPE, ORIGIN.name)
    report(
        "disk",
        {
            "load_batches": partial(load, data, 0),
            "load_batches, 2 threads": partial(load, data, 2),
            "webdataset": partial(stream_tars, cache),
            "plain reads": partial(read_plainly, data),
        },
    )


def from_store(cache: Cache, folder: Path) -> None:
    with served(local(cache.root)) as uri:
        os.environ.update(CREDENTIALS)
        data = open_training_set(Cache(place_of(uri)), RECIPE, ORIGIN.name)
        warm = ShardCache(folder / "warm", 2**40)
        warm.folder.mkdir()

        def load_cold() -> int:
            shutil.rmtree(folder / "cold", ignore_errors=True)
            (folder / "cold").mkdir()
            return load(data, 2, ShardCache(folder / "cold", 2**40))

        ways = {
            "no shard cache": partial(load, data, 2),
            "cold shard cache": load_cold,
            "warm shard cache": partial(load, data, 2, warm),
        }
        report("store", ways)


PARTS: dict[str, Callable[[Cache, Path], None]] = {"disk": from_disk, "store": from_store}


def report(part: str, ways: Mapping[str, Callable[[], int]]) -> None:
    """Run each way once, then in rounds, and print what a sample takes; ratios are to the first, by CPU."""
    for way in ways.values():
        if way() != NUM_CLIPS:
            raise RuntimeError(f"{part}: a way has not read all {NUM_CLIPS} clips")
    costs = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            way()
            costs[name].append((1000 * (time.process_time() - cpu_s), 1000 * (time.perf_counter() - wall_s)))
    print(f"{part:5}  {NUM_CLIPS} clips of {SIZE_MB:.2f} MB, {BATCH} a batch; median of {ROUNDS} rounds")
    first = next(iter(costs.values()))
    for name, found in costs.items():
        cpu_ms, wall_ms = (statistics.median(column) / NUM_CLIPS for column in zip(*found))
        ratio = statistics.median(one[0] / other[0] for one, other in zip(found, first))
        cost = f"{cpu_ms:5.2f} CPU-ms a sample, {ratio:5.2f} times the first's"
        print(f"       {name:>23}: {cost}; {wall_ms:5.2f} ms by the clock")


def load(data: TrainingSet, num_threads: int, shard_cache: ShardCache | None = None) -> int:
    """An epoch, by us."""
    schedule = Schedule(data.schedule_rows(), lambda kind: whole(kind, BATCH), seed=0)
    steps = range(schedule.num_steps(0))
    return sum(len(batch.keys) for batch in load_batches(data, schedule, steps, 0, 1, num_threads, shard_cache))


def stream_tars(cache: Cache) -> int:
    """In the order of the tars, the only one there is; into the same arrays."""
    latents, texts = (
        WebDataset([str(tar_path(column, shard)) for shard in SHARDS], shardshuffle=False).decode()
        for column in (cache.latents, cache.text(ORIGIN.name))
    )
    pairs, count = zip(latents, texts), 0
    while pair := list(islice(pairs, BATCH)):
        batch = [
            torch.from_numpy(np.stack([sample["latent.npy"] for sample, _ in pair])),
            torch.from_numpy(np.stack([sample["text.npy"] for _, sample in pair])),
        ]
        count += len(batch[0])
    return count


def read_plainly(data: TrainingSet) -> int:
    """The same bytes in the same order into new tensors."""
    cache, count = data.parts[0].cache, 0
    columns = [("latent", LATENTS, cache.latents), ("text", TEXT, cache.text(ORIGIN.name))]
    schedule = Schedule(data.schedule_rows(), lambda kind: whole(kind, BATCH), seed=0)
    with ExitStack() as stack:
        files = [
            [stack.enter_context(open(local(tar_path(column, shard)), "rb")).fileno() for shard in SHARDS]
            for _, _, column in columns
        ]
        for step in range(schedule.num_steps(0)):
            rows = data.rows(schedule.batch(0, step).rows)
            for (name, shape, _), handles in zip(columns, files):
                tensor = torch.empty((len(rows), *shape), dtype=torch.float16)
                offsets = rows[f"{name}_offset"] + len(npy_header(shape, np.dtype(np.float16)))
                for place, shard, offset in zip(tensor.numpy(), rows["shard"].tolist(), offsets.tolist()):
                    os.preadv(handles[shard], [place], offset)
            count += len(rows)
    return count


def write_cache(cache: Cache) -> None:
    """Clips of random latents and text."""
    text_column, facts = cache.text(ORIGIN.name), {"recipe": RECIPE.fingerprint()}
    bind_recipe(cache, RECIPE)
    random = np.random.default_rng(0)
    for shard in SHARDS:
        keys = [f"{shard[-2:]}-{number}" for number in range(PER_SHARD)]
        latents = [{"latent.npy": random_array(random, LATENTS), "json": b"{}"} for _ in keys]
        texts = [{"text.npy": random_array(random, TEXT), "txt": b""} for _ in keys]
        write_shard(cache.latents, shard, map(Packed, keys, latents), Sample, partial(sample_row, shard), facts)
        write_shard(text_column, shard, map(Packed, keys, texts), TextSample, partial(text_row, shard), facts)
    publish(cache.null_text(ORIGIN.name), random_array(random, (1, TEXT[1])))
    write_text_origin(cache, ORIGIN)
    merge_index(cache.index, cache.latents, SHARDS, Sample)
    merge_index(cache.text_index(ORIGIN.name), text_column, SHARDS, TextSample)


def random_array(random: np.random.Generator, shape: tuple[int, ...]) -> bytes:
    return array_bytes(random.random(shape, np.float32).astype(np.float16))


def sample_row(shard: str, key: str, where: Mapping[str, Member]) -> Sample:
    npy, facts = where["latent.npy"], where["json"]
    lies = (npy.offset, npy.num_bytes, npy.crc32c, facts.offset, facts.num_bytes)
    return Sample(key, shard, "video", 0.0, 24.0, HEIGHT, WIDTH, 1, 17, 17, *lies)


def text_row(shard: str, key: str, where: Mapping[str, Member]) -> TextSample:
    npy = where["text.npy"]
    return TextSample(key, shard, "", TEXT[0], npy.offset, npy.num_bytes, npy.crc32c)


@contextmanager
def served(root: Path) -> Iterator[str]:
    """A cache on disk, in a store whose server is a process of its own: its URI."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(root, theirs))
    server.start()
    try:
        yield ours.recv()
    finally:
        ours.send("end")
        server.join()


def serve(root: Path, pipe: Any) -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with serve_bucket() as bucket:
        for path in root.rglob("*"):
            if path.is_file():
                bucket.put(f"cache/{path.relative_to(root)}", path)
        pipe.send(bucket.uri("cache"))
        pipe.recv()
