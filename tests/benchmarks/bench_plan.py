"""The planner on a million synthetic videos: seconds, peak memory, and bytes of what it writes."""

import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from models.vae import load_vae
from pipeline.bucket import resolve_buckets
from pipeline.plan import make_plan
from pipeline.recipe import Recipe
from pipeline.records import Clip, Scene, Video
from pipeline.tables import read_records, write_records

NUM_VIDEOS = 1_000_000
SIZES = ((1080, 1920), (720, 1280), (1920, 1080), (480, 640), (360, 640), (144, 176))
RATES = (23.976024, 24.0, 25.0, 29.97003, 30.0, 60.0)


def main() -> None:
    """Print what each step takes. The planner runs in a process of its own, so that its memory is its own."""
    with tempfile.TemporaryDirectory() as folder:
        begun_s = time.perf_counter()
        write_manifest(Path(folder))
        print(f"   synthetic manifest of {NUM_VIDEOS} videos: {time.perf_counter() - begun_s:5.1f} s")
        code = f"from pathlib import Path; from tests.benchmarks.bench_plan import measure; measure(Path({folder!r}))"
        subprocess.run([sys.executable, "-c", code], check=True)


def write_manifest(folder: Path) -> None:
    """Videos of up to 12 seconds, some with cuts."""
    draw = random.Random(0)
    videos, scenes = [], []
    for number, content in enumerate(sorted(draw.getrandbits(64) for _ in range(NUM_VIDEOS))):  # as `scan` sorts them
        (height, width), fps = draw.choice(SIZES), draw.choice(RATES)
        frames = draw.randint(1, int(12 * fps))
        end_s = (frames - 1) / fps
        identity = f"{content:016x}"
        path, caption = f"/data/part-{number % 1000:03d}/{identity}.mp4", f"a person does thing number {number}"
        videos.append(Video(identity, path, caption, 10**6, number, "h264", 0, height, width, frames, 0.0, end_s, fps))
        cuts = sorted({0, *(draw.randrange(frames) for _ in range(number % 3))})
        for place, (first, behind) in enumerate(zip(cuts, [*cuts[1:], frames])):
            times_s = (first / fps, (behind - 1) / fps)
            scenes.append(Scene(identity, place, first, behind - first, *times_s, 0.5, draw.random() / 10, 0.1))
    write_records(folder / "manifest.parquet", Video, videos)
    write_records(folder / "scenes.parquet", Scene, scenes)


def measure(folder: Path) -> None:
    """Read, plan with a filter, write; print seconds, gigabytes and megabytes."""
    buckets = resolve_buckets(["240p", "480p"], (8, 8))
    recipe = Recipe(load_vae("dct").spec, 24.0, buckets, 4, scenes="adaptive", filter="motion > 0.01 and width > 64")
    steps = [(time.perf_counter(), time.process_time())]
    videos = read_records([folder / "manifest.parquet"], Video)
    scenes: dict[str, list[Scene]] = {}
    for scene in read_records([folder / "scenes.parquet"], Scene):
        scenes.setdefault(scene.video, []).append(scene)
    steps.append((time.perf_counter(), time.process_time()))
    made = make_plan(videos, scenes, recipe, 10**9, 0)
    steps.append((time.perf_counter(), time.process_time()))
    write_records(folder / "plan.parquet", Clip, made.clips)
    steps.append((time.perf_counter(), time.process_time()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for name, (begun_s, begun_cpu_s), (ended_s, ended_cpu_s) in zip(("read", "plan", "write"), steps, steps[1:]):
        print(f"{name:>8}: {ended_s - begun_s:5.1f} s, of CPU {ended_cpu_s - begun_cpu_s:5.1f} s")
    print(f"{'of':>8}: {len(videos)} videos, {sum(map(len, scenes.values()))} scenes -> {len(made.clips)} clips")
    print(f"{'memory':>8}: {peak / 1e9:5.2f} GB at its peak")
    for name in ("manifest", "scenes", "plan"):
        print(f"{name:>8}: {(folder / f'{name}.parquet').stat().st_size / 1e6:6.1f} MB")
