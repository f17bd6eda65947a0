"""Decoding through the sandbox beside raw decord and raw PyAV: frames per second, and memory over many videos.

All three decode every frame of the same h264 files, one thread each, to the same size: a chunk's, 256x256, cropped out
of a frame that covers it. Interleaved, medians. The sandbox also takes timestamps, chooses frames by them, and looks at
every chunk; CPU seconds are those of parent and child.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import decord
import numpy as np

from jobs.mp4 import write_mp4
from pipeline.bucket import cover_size, crop_offset
from pipeline.looked import decode_and_look
from pipeline.plan import clip_key
from pipeline.records import Clip, Source, Video
from pipeline.sandbox import Limits, Sandbox
from pipeline.scan import probe
from tests.benchmarks.process_tree import tree_bytes

ROUNDS = 7
SIZES = [(360, 640), (720, 1280)]
CHUNK, CHUNKS, MAX_CHUNKS = 17, 8, 4
BUCKET = (256, 256)
NUM_SMALL, SMALL_SIDE = 500, 64
LIMITS = Limits(deadline_s=120, memory_bytes=4 * 2**30, videos=200)
MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """What decoding a file once took."""

    wall_s: float
    cpu_s: float


def main() -> None:
    """Print frames per second of the three, by wall and by CPU time, and the memory of this process and its child."""
    decord.logging.set_level(decord.logging.QUIET)  # in this process; the child's is written to its log
    print(f"{'':>10}  {'frames/s':>26}  {'frames per CPU-second':>26}   sandbox by decord (median of {ROUNDS} rounds)")
    print(f"{'':>10}  {'sandbox':>8} {'decord':>8} {'PyAV':>8}  {'sandbox':>8} {'decord':>8} {'PyAV':>8}")
    with tempfile.TemporaryDirectory() as folder, Sandbox(LIMITS) as sandbox:
        for height, width in SIZES:
            _compare(sandbox, write_video(Path(folder) / f"{height}.mp4", height, width, CHUNK * CHUNKS))
    with tempfile.TemporaryDirectory() as folder:
        small = [write_video(Path(folder) / f"{n}.mp4", SMALL_SIDE, SMALL_SIDE, CHUNK, n) for n in range(NUM_SMALL)]
        with Sandbox(LIMITS) as sandbox:
            _watch_memory(sandbox, small)


def write_video(path: Path, height: int, width: int, num_frames: int, seed: int = 0) -> Video:
    """Textures that drift: something to decode in every block of every frame."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    grain = rng.integers(0, 12, (height, width))
    hills = 90 + 50 * np.sin(rows / 11) + 50 * np.sin(columns / 17)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for number in range(num_frames):
        luma = np.roll(hills, 3 * number, axis=1) + np.roll(grain, (number, 2 * number), axis=(0, 1))
        frames[number] = np.stack([luma, luma * 0.8, 255 - luma], axis=-1)
    write_mp4(path, frames, 24)
    return probe(Source(str(path), "", size_bytes=path.stat().st_size, mtime_ns=path.stat().st_mtime_ns), "fast")


def clips_of(video: Video) -> list[Clip]:
    """All frames of a video, in clips as long as they may be."""
    chunks = video.num_frames // CHUNK
    clips = []
    for first in range(0, chunks, MAX_CHUNKS):
        count, start = min(MAX_CHUNKS, chunks - first), first * CHUNK
        frames, key = count * CHUNK, clip_key(video.id, start, BUCKET)
        scene = (video.start_s, video.end_s)
        clips.append(Clip(key, "s", video.id, start, count, frames, frames, video.fps, *BUCKET, *scene))
    return clips


def by_sandbox(sandbox: Sandbox, video: Video) -> Iterator[np.ndarray]:
    """Ours, as a decode task runs it."""
    for _, _, frames, _ in sandbox.stream(decode_and_look, video, clips_of(video), lasts_s=video.duration_s):
        yield from frames


def by_decord(video: Video) -> Iterator[np.ndarray]:
    """decord, which resizes as it decodes."""
    height, width = cover_size(video.height, video.width, BUCKET)
    top, left = crop_offset((height, width), BUCKET)
    reader = decord.VideoReader(video.path, ctx=decord.cpu(0), height=height, width=width, num_threads=1)
    for _ in range(len(reader)):
        yield reader.next().asnumpy()[top : top + BUCKET[0], left : left + BUCKET[1]]


def by_av(video: Video) -> Iterator[np.ndarray]:
    """PyAV, and its `reformat`."""
    height, width = cover_size(video.height, video.width, BUCKET)
    top, left = crop_offset((height, width), BUCKET)
    with av.open(video.path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for frame in container.decode(stream):
            small = frame.reformat(width, height, "rgb24", interpolation="BICUBIC")
            yield small.to_ndarray()[top : top + BUCKET[0], left : left + BUCKET[1]]


def _compare(sandbox: Sandbox, video: Video) -> None:
    ways: list[Callable[[], Iterator[np.ndarray]]] = [
        lambda: by_sandbox(sandbox, video),
        lambda: by_decord(video),
        lambda: by_av(video),
    ]
    for way in ways:
        measure(sandbox, way)  # the child starts, the file enters the page cache
    rounds = [[measure(sandbox, way) for way in ways] for _ in range(ROUNDS)]
    wall = [video.num_frames / statistics.median(costs[way].wall_s for costs in rounds) for way in range(3)]
    cpu = [video.num_frames / statistics.median(costs[way].cpu_s for costs in rounds) for way in range(3)]
    by_wall = statistics.median(costs[1].wall_s / costs[0].wall_s for costs in rounds)
    by_cpu = statistics.median(costs[1].cpu_s / costs[0].cpu_s for costs in rounds)
    figures = ["  " + " ".join(f"{figure:8.0f}" for figure in three) for three in (wall, cpu)]
    print(
        f"{video.height:>5}x{video.width:<4}{''.join(figures)}   {by_wall:.2f} by wall, {by_cpu:.2f} by CPU", flush=True
    )


def measure(sandbox: Sandbox, way: Callable[[], Iterator[np.ndarray]]) -> Cost:
    """Seconds of the clock, and of this process and its child, for all that one way yields."""
    sandbox.cpu_s = 0.0
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    for _ in way():
        pass
    return Cost(time.perf_counter() - began_s, time.process_time() - began_cpu_s + sandbox.cpu_s)


def _watch_memory(sandbox: Sandbox, videos: list[Video]) -> None:
    """One sandbox, many videos: the memory of this process and its child after each."""
    used = []
    for video in videos:
        for _ in by_sandbox(sandbox, video):
            pass
        used.append(tree_bytes() / MIB)
    quarter = len(used) // 4
    print(
        f"memory over {len(videos)} videos, MiB: {used[0]:.0f} after the first, {used[-1]:.0f} after the last, "
        f"{max(used):.0f} at the most; medians of its quarters "
        + " ".join(
            f"{statistics.median(used[start : start + quarter]):.0f}" for start in range(0, 4 * quarter, quarter)
        )
    )
