"""Who has another trainer, another tool or other lengths in mind uses the same cache as it is."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from jobs.config import RunConfig
from jobs.configured import configured_lengths, configured_recipe, load_configured_vae, open_configured_set
from jobs.mp4 import write_mp4
from pipeline.decode import decode_clips
from pipeline.encode import to_pixels
from pipeline.loader import load_batches
from pipeline.records import Clip, Video
from pipeline.schedule import Schedule
from pipeline.tables import read_records
from tests.checkpoints import publish
from tests.conftest import cache_config, fill_cache
from tests.shards import local

ROOT = Path(__file__).resolve().parents[1]
LENGTHS = {102: 0.3, 51: 0.3, 34: 0.5, 17: 1}  # frames: the share of the clips that are left which is shown so
HALF = 2**-11  # by which rounding to float16 changes a value, as a part of it


def readme_example() -> str:
    """The one block of Python in the README."""
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return example


def test_the_example_of_the_readme_trains_on_the_cache_with_neither_ray_nor_deepspeed(
    cached: RunConfig, tmp_path: Path
) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "cache").symlink_to(local(cached.cache.root))
    ask = "import sys; print(sorted({'ray', 'deepspeed'} & set(sys.modules)))"
    command = [sys.executable, "-c", f"{readme_example()}\n{ask}\n"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    *losses, imported = told.stdout.splitlines()
    assert imported == "[]"
    first, *_, last = (float(line.split()[-1]) for line in losses)
    assert last < first / 2


def with_pandas(path: Path) -> list[dict[str, Any]]:
    return pytest.importorskip("pandas").read_parquet(path).to_dict("records")


def with_polars(path: Path) -> list[dict[str, Any]]:
    return pytest.importorskip("polars").read_parquet(path).to_dicts()


def with_duckdb(path: Path) -> list[dict[str, Any]]:
    return pytest.importorskip("duckdb").sql(f"SELECT * FROM '{path}'").to_arrow_table().to_pylist()


@pytest.mark.parametrize("read", [with_pandas, with_polars, with_duckdb])
@pytest.mark.parametrize("name", ["index.parquet", "text/bytes/index.parquet", "manifest/part-00000.parquet"])
def test_other_tools_read_the_tables_as_they_are(
    cached: RunConfig, read: Callable[[Path], list[dict[str, Any]]], name: str
) -> None:
    path = local(cached.cache.root / name)
    found, wanted = read(path), pq.read_table(path).to_pylist()
    assert wanted and len(found) == len(wanted)
    for one, other in zip(found, wanted):
        assert one.keys() == other.keys()
        np.testing.assert_equal(one, other)  # NaN is NaN


@torch.inference_mode()
def test_a_cached_clip_of_six_chunks_serves_shorter_ones_as_if_these_had_been_encoded(
    local_ray: None, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (102, 4, 4, 3), np.uint8)
    write_mp4(tmp_path / "videos" / "a.mp4", np.kron(noise, np.ones((1, 8, 8, 1), np.uint8)), 8)
    vae = [f"{name}={value}" for name, value in publish("open-sora-v1.2", tmp_path / "vae").items()]
    one_at_a_time = ["encode.batch=1", "encode.vae_bytes=1"]  # how many go together moves the last bits
    small = ["recipe.buckets=[[32, 32]]", "recipe.scenes=off", "encode.min_psnr=0", "encode.forecast=false"]
    whole = ["recipe.posterior=mean", "recipe.max_chunks=6"]
    lengths = ", ".join(f"{frames} = [1, {keep}, 1]" for frames, keep in LENGTHS.items())
    buckets = f'train.buckets={{"*" = {{{lengths}}}}}'
    config = cache_config(tmp_path / "videos", tmp_path, *vae, *one_at_a_time, *small, *whole, buckets)
    fill_cache(config)

    [video] = read_records([config.cache.manifest], Video)
    [clip] = read_records(config.cache.plans(), Clip)
    frames = np.concatenate([chunk for _, _, chunk in decode_clips(video, [clip])])  # (102, H, W, 3)
    encoder, recipe = load_configured_vae(config), configured_recipe(config)
    encoder.memory_bytes = config.encode.vae_bytes
    data = open_configured_set(config, recipe)
    schedule = Schedule(data.schedule_rows(), configured_lengths(config, recipe.latent), seed=0)
    served = {}
    for drawn, batch in zip(schedule.batches(), load_batches(data, schedule, range(20), 0, 1, 0)):
        served[17 * int(drawn.first_chunks[0]), batch.num_frames] = batch.latents
    assert {num_frames for _, num_frames in served} == set(LENGTHS) and max(served)[0] > 0
    for (first, num_frames), latents in served.items():
        alone = encoder.encode(to_pixels(torch.from_numpy(frames[None, first : first + num_frames])))
        torch.testing.assert_close(latents.float(), alone, rtol=HALF, atol=1e-6)
