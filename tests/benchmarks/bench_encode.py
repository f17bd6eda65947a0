"""The `encode` verb on two CPUs, in four parts, each by medians of interleaved runs.

a  how far decoding and encoding overlap: the slower of the two alone, by both together
b  the verb beside a plain loop and a Ray Data pipeline that do the same work: the same tars, byte for byte
c  peak memory of all its processes for one video, and for one that is ten times as long
d  writing and committing a shard beside `cp` and fsync of the same bytes
"""

import io
import logging
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import ray
from einops import rearrange

from cluster.actors import share_out
from cluster.sharing import IN_FLIGHT
from jobs import encode as encode_verb
from jobs.config import RunConfig
from jobs.configured import configured_recipe
from jobs.decode import Decoders, ShardWork, reader_limits
from jobs.mp4 import write_mp4
from jobs.plan import plan, read_manifest, read_plan
from jobs.run_toml import load_config
from jobs.scan import scan
from pipeline.encode import batch_size
from pipeline.plan import shards_of
from pipeline.records import Sample
from pipeline.shard import Packed, commit_shard, writing_shard
from tests.benchmarks.process_tree import Cost, interleaved, measure, median, median_ratio
from tests.benchmarks.rivals import plain_loop, ray_data_pipeline

ROUNDS = 7
CHUNK = 17
NUM_VIDEOS, CHUNKS, SIDE = 48, 10, 320
BATCH = 8  # chunks, for the encoder that sleeps
BALANCES = (2.0, 1.0, 0.5)  # seconds of encoding by seconds of decoding
SHORT_CHUNKS, LONGER, SMALL_SIDE = 160, 10, 128
STORE_BYTES = 75 * 2**20  # the least that Ray takes for its objects: pages of it stay once they were touched
BOUNDED = [  # so that the shorter video is already all that may be in memory at once
    f"recipe.buckets=[[{SMALL_SIDE}, {SMALL_SIDE}]]",
    "encode.frames_per_task=340",
    "encode.decode_ahead_bytes=16777216",
    "encode.shard_bytes=2000000",
]
NUM_SAMPLES, SAMPLE_BYTES = 600, 655_488  # of a shard: clips of four chunks of 256x256
MB = 1e6


def main(*parts: str) -> None:
    """Run the parts that are named, or all."""
    for part in parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[part](Path(folder))


def overlap(folder: Path) -> None:
    """An encoder that sleeps instead, as one on a GPU seems to its CPU; it has one CPU, its decode tasks the other."""
    config = prepare(folder, NUM_VIDEOS, CHUNKS, SIDE, f"encode.batch={BATCH}", "encode.checked_chunks=0")
    works = works_of(config)
    with local_ray(num_cpus=2):
        drain_beside(config, works)  # Ray's workers start, files enter the page cache
        decode_s = statistics.median(drain_beside(config, works).wall_s for _ in range(3))
        num_chunks = sum(len(work.slots) for work in works)
        print(f"a  {num_chunks} chunks; overlap = the slower alone / both together, median of {ROUNDS} rounds")
        for balance in BALANCES:
            chunk_s = balance * decode_s / num_chunks
            encode_s = sum(slept_chunks(work) for work in works) * chunk_s
            ways = [partial(drain_beside, config, works), partial(sleep_through, config, works, chunk_s)]
            apart, both = interleaved(ways, ROUNDS)
            efficiency = statistics.median(max(encode_s, one.wall_s) / two.wall_s for one, two in zip(apart, both))
            print(
                f"   decoding {median(apart, 'wall_s'):5.2f} s, encoding {encode_s:5.2f} s, both "
                f"{median(both, 'wall_s'):5.2f} s: overlap {efficiency:.2f}",
                flush=True,
            )


def rivals(folder: Path) -> None:
    """Ray runs already; that the encoder's process starts is part of `encode` and of Ray Data's pipeline."""
    config = prepare(folder, NUM_VIDEOS, CHUNKS, SIDE, "encode.checked_chunks=0")
    num_chunks = sum(clip.num_chunks for clip in read_plan(config.cache))
    works: dict[str, Callable[[], None]] = {
        "encode": partial(encode_anew, config),
        "plain loop": partial(plain_loop, config, folder / "plain"),
        "Ray Data": partial(ray_data_pipeline, config, folder / "ray data"),
    }
    with local_ray(num_cpus=2):
        for work in works.values():
            work()
        for column in (folder / "plain", folder / "ray data"):
            check_same_tars(config, column)
        costs = interleaved([partial(measure, work) for work in works.values()], ROUNDS)
    print(f"b  {num_chunks} chunks of {CHUNK}x256x256; ratios to encode, median of {ROUNDS} rounds")
    for name, found in zip(works, costs):
        wall, cpu = (median_ratio(found, costs[0], seconds) for seconds in ("wall_s", "cpu_s"))
        print(
            f"   {name:>10}: {num_chunks / median(found, 'wall_s'):6.1f} chunks/s, "
            f"{1000 * median(found, 'cpu_s') / num_chunks:6.1f} CPU-ms a chunk; "
            f"{wall:.2f} times the seconds by wall, {cpu:.2f} by CPU"
        )


def memory(folder: Path) -> None:
    """Ray starts anew for each run: what one leaves behind must not be there for the next."""
    short = prepare(folder / "short", 1, SHORT_CHUNKS, SMALL_SIDE, *BOUNDED)
    long = prepare(folder / "long", 1, SHORT_CHUNKS * LONGER, SMALL_SIDE, *BOUNDED)
    peaks = interleaved([partial(measure_memory, short), partial(measure_memory, long)], ROUNDS)
    sizes = [median(found, "peak_bytes") / MB for found in peaks]
    print(
        f"c  peak memory, median of {ROUNDS} rounds: {sizes[0]:.0f} MB for a video of {SHORT_CHUNKS} chunks, "
        f"{sizes[1]:.0f} MB for one of {SHORT_CHUNKS * LONGER}: {median_ratio(peaks[1], peaks[0], 'peak_bytes'):.2f}x"
    )


def shard_writing(folder: Path) -> None:
    """`cp` reads from the page cache what was just written."""
    content = np.random.default_rng(0).bytes(SAMPLE_BYTES)
    ways = [lambda: write_shard(folder, content), lambda: copy_shard(folder)]
    writing, copying = interleaved(ways, ROUNDS)
    size = NUM_SAMPLES * SAMPLE_BYTES / MB
    speeds = [size / median(found, "wall_s") for found in (writing, copying)]
    cpu_s = [median(found, "cpu_s") for found in (writing, copying)]
    ratio = median_ratio(copying, writing, "wall_s")
    print(
        f"d  a shard of {size:.0f} MB, median of {ROUNDS} rounds: {speeds[0]:.0f} MB/s, cp and fsync "
        f"{speeds[1]:.0f} MB/s: {ratio:.2f}x; CPU {cpu_s[0]:.2f} and {cpu_s[1]:.2f} s"
    )


PARTS = {"a": overlap, "b": rivals, "c": memory, "d": shard_writing}


def prepare(folder: Path, num_videos: int, chunks: int, side: int, *overrides: str) -> RunConfig:
    """Videos that scroll, scanned and planned."""
    for number in range(num_videos):
        write_mp4(folder / "videos" / f"{number}.mp4", scrolling(chunks * CHUNK, side, number), 24)
    places = [f"data.source={folder / 'videos'}", f"data.cache={folder / 'cache'}"]
    fixed = ["recipe.scenes=off", "encode.forecast=false", "encode.shard_bytes=8000000"]
    config = load_config(None, [*places, *fixed, *overrides])
    with local_ray(num_cpus=2), redirect_stdout(io.StringIO()):
        scan(config)
        plan(config)
    return config


def scrolling(num_frames: int, side: int, number: int) -> np.ndarray:
    """(T, side, side, 3) uint8, a view of one tall picture: each frame begins five rows below the one before."""
    rows, columns = np.mgrid[: 5 * num_frames + side, :side]
    luma = rows + columns * (1 + number % 3) + number
    picture = np.stack([luma, luma * 2, 255 - luma], axis=-1).astype(np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(picture, side, axis=0)[: 5 * num_frames : 5]
    return rearrange(windows, "t w c h -> t h w c")


@contextmanager
def local_ray(num_cpus: int, **options: Any) -> Iterator[None]:
    """A Ray of its own, with these slots."""
    ray.init(num_cpus=num_cpus, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False, **options)
    try:
        yield
    finally:
        ray.shutdown()


def encode_anew(config: RunConfig) -> None:
    """The verb, from nothing."""
    shutil.rmtree(config.cache.latents, ignore_errors=True)  # pyright: ignore[reportArgumentType]  # a local path
    config.cache.index.unlink(missing_ok=True)
    with redirect_stdout(io.StringIO()):
        encode_verb.encode(config)


def works_of(config: RunConfig) -> list[ShardWork]:
    recipe, videos = configured_recipe(config), {video.id: video for video in read_manifest(config.cache)}
    planned = shards_of(read_plan(config.cache))
    return [encode_verb.shard_work(shard, clips, videos, recipe) for shard, clips in planned.items()]


def drain(config: RunConfig, works: Sequence[ShardWork]) -> None:
    """Decode everything as an encoder has it done, and take it in."""
    decoders = Decoders(config.encode, reader_limits(config.data))
    for work, upcoming in pairwise([*works, None]):
        for _ in decoders.read(work, upcoming):  # pyright: ignore[reportArgumentType]  # only the last one is None
            pass


def drain_beside(config: RunConfig, works: Sequence[ShardWork]) -> Cost:
    """The same, the CPU of the encoder being taken."""
    encoder: Any = Idle.remote()
    ray.get(encoder.__ray_ready__.remote())
    cost = measure(partial(drain, config, works))
    ray.kill(encoder)
    return cost


@ray.remote(num_cpus=1)
class Idle:
    """Holds a CPU."""


def slept_chunks(work: ShardWork) -> int:
    """The chunks that go through the VAE for a shard: every batch of it is full."""
    size = batch_size(len(work.slots), BATCH)
    return -(-len(work.slots) // size) * size


class SleepingEncoder(encode_verb.ShardEncoder):
    """Sleeps where the VAE would compute; all else is as it is."""

    def __init__(self, config: RunConfig, chunk_s: float) -> None:
        super().__init__(config)

        def sleep(vae: Any, frames: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
            time.sleep(chunk_s * len(frames))
            return np.zeros((len(frames), *self.recipe.latent.latent_shape(*frames.shape[1:4])), np.float16)

        encode_verb.encode_chunks = sleep  # in the process of this actor, where nobody else encodes


def sleep_through(config: RunConfig, works: Sequence[ShardWork], chunk_s: float) -> Cost:
    """Encode everything by an encoder that is up already."""
    shutil.rmtree(config.cache.latents, ignore_errors=True)  # pyright: ignore[reportArgumentType]
    options = {"num_cpus": 1, "max_concurrency": IN_FLIGHT}
    encoder: Any = ray.remote(SleepingEncoder).options(**options).remote(config, chunk_s)
    ray.get(encoder.__ray_ready__.remote())

    def encode_all() -> None:
        for _ in share_out(lambda: encoder, lambda: 1, works, on_waiting=print):
            pass

    return measure(encode_all)


def check_same_tars(config: RunConfig, column: Path) -> None:
    """RuntimeError where a rival has written other bytes."""
    for tar in column.rglob("*.tar"):
        if tar.read_bytes() != (config.cache.latents / str(tar.relative_to(column))).read_bytes():
            raise RuntimeError(f"{tar}: found other bytes than encode's, wanted the same work from all")


def measure_memory(config: RunConfig) -> Cost:
    with local_ray(num_cpus=3, object_store_memory=STORE_BYTES):
        return measure(partial(encode_anew, config), memory=True)


def write_shard(folder: Path, content: bytes) -> Cost:
    """A tar and its sidecar, both synced, where there are none."""
    column = folder / "column"
    shutil.rmtree(column, ignore_errors=True)

    def write() -> None:
        with writing_shard(column, "shard") as tar:
            for number in range(NUM_SAMPLES):
                tar.add(Packed(f"{number:08d}", {"latent.npy": content, "json": content[:300]}))
        commit_shard(column, "shard", Sample, [], tar.facts)

    return measure(write)


def copy_shard(folder: Path) -> Cost:
    copied = folder / "copy.tar"
    copied.unlink(missing_ok=True)

    def copy() -> None:
        subprocess.run(["cp", str(folder / "column" / "shard.tar"), str(copied)], check=True)
        with open(copied, "rb") as file:
            os.fsync(file.fileno())

    return measure(copy)
