"""The `encode` verb beside a plain loop over the same functions in one process: interleaved pairs, medians."""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from cluster import runtime
from jobs.config import RunConfig
from jobs.configured import load_configured_vae
from jobs.encode import encode
from jobs.mp4 import write_mp4
from jobs.plan import plan, read_manifest, read_plan
from jobs.run_toml import load_config
from jobs.scan import scan
from pipeline.decode import decode_clips
from pipeline.encode import encode_chunks
from pipeline.plan import shards_of
from pipeline.sample import array_bytes
from pipeline.storage import publish

PAIRS = 7
NUM_VIDEOS, FRAMES, SIDE = 24, 170, 320  # ten chunks each


def main() -> None:
    """Print chunks per second and CPU-seconds of both, and their ratio. Starting the encoder is part of `encode`."""
    with tempfile.TemporaryDirectory() as folder:
        config = prepare(Path(folder))
        chunks = sum(clip.num_chunks for clip in read_plan(config.cache))
        runtime.connect()
        encode_once(config)  # Ray's workers start, files enter the page cache
        pairs = [(measure(lambda: encode_once(config)), measure(lambda: plain_loop(config))) for _ in range(PAIRS)]
    for name, runs in zip(("encode", "plain loop"), zip(*pairs)):
        wall_s, cpu_s = (statistics.median(column) for column in zip(*runs))
        print(f"{name:>10}: {chunks / wall_s:6.1f} chunks/s, {1000 * cpu_s / chunks:6.1f} CPU-ms a chunk")
    ratios = [plain_s / encode_s for (encode_s, _), (plain_s, _) in pairs]
    print(f"{'ratio':>10}: {statistics.median(ratios):.2f} (plain wall time / encode wall time, median of {PAIRS})")


def prepare(folder: Path) -> RunConfig:
    """Videos of a moving gradient, scanned and planned."""
    ramp = np.arange(SIDE, dtype=np.int64)
    for number in range(NUM_VIDEOS):
        luma = np.stack([np.add.outer(ramp, ramp * (1 + number % 3)) + 5 * shift + number for shift in range(FRAMES)])
        frames = np.stack([luma, luma * 2, 255 - luma], axis=-1).astype(np.uint8)  # (T, H, W, 3)
        write_mp4(folder / "videos" / f"{number}.mp4", frames, 24)
    places = [f"data.source={folder / 'videos'}", f"data.cache={folder / 'cache'}"]
    config = load_config(None, [*places, "encode.shard_bytes=8000000"])
    scan(config)
    plan(config)
    return config


def measure(work: Callable[[], None]) -> tuple[float, float]:
    """(wall seconds, CPU seconds of the whole machine: Ray's workers come and go, so leave it alone meanwhile)."""
    before_cpu_s, before_s = cpu_seconds(), time.perf_counter()
    work()
    return time.perf_counter() - before_s, cpu_seconds() - before_cpu_s


def cpu_seconds() -> float:
    times = psutil.cpu_times()
    return times.user + times.system + times.nice


def encode_once(config: RunConfig) -> None:
    """The verb, from nothing."""
    shutil.rmtree(config.cache.latents, ignore_errors=True)
    config.cache.index.unlink(missing_ok=True)
    encode(config)


def plain_loop(config: RunConfig) -> None:
    """What one would write first: video after video, the same decoding, VAE and batches, arrays written whole."""
    vae = load_configured_vae(config)
    videos = {video.id: video for video in read_manifest(config.cache)}
    for clips in shards_of(read_plan(config.cache)).values():
        for clip in clips:
            chunks = [frames for _, _, frames in decode_clips(videos[clip.video], [clip])]
            encoded = encode_chunks(vae, np.stack(chunks), [0] * len(chunks))  # (chunks, c, t, h, w)
            latents = np.concatenate(list(encoded), axis=1)  # (c, t, h, w)
            publish(config.cache.root / "plain" / f"{clip.key}.npy", array_bytes(latents))
