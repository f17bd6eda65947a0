"""The promises of the cache, on real videos, real Ray and real tars."""

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from webdataset import WebDataset  # pyright: ignore[reportAttributeAccessIssue]

from jobs.config import RunConfig
from jobs.encode import encode
from jobs.mp4 import write_mp4
from jobs.plan import plan
from jobs.text import text
from jobs.train import train
from pipeline.cache import sidecar_path, tar_path
from pipeline.errors import Refused
from pipeline.quarantine import read_quarantine
from tests.conftest import CACHE_OVERRIDES, before_encoding, cache_config, digests, fill_cache
from tests.shards import local


def moving_bar(num_frames: int, seed: int) -> np.ndarray:
    """Frames (T, 64, 64, 3) uint8 that differ from each other and between seeds; the bar turns back at the edges."""
    frames = np.full((num_frames, 64, 64, 3), 40, np.uint8)
    for number in range(num_frames):
        left = abs((number * 2 + 11 * seed) % 112 - 56)
        frames[number, :, left : left + 8] = (200, 20 * seed % 256, 90)
    return frames


def test_a_plain_webdataset_reads_every_sample(cached: RunConfig) -> None:
    tars = [str(path) for path in sorted(local(cached.cache.latents).rglob("*.tar"))]
    samples = list(WebDataset(tars, shardshuffle=False).decode())
    index = pq.read_table(cached.cache.index).to_pylist()
    assert [sample["__key__"] for sample in samples] == [row["key"] for row in index]
    for sample, row in zip(samples, index):
        assert sample["latent.npy"].shape == (16, 5 * row["num_chunks"], 8, 8)
        assert sample["latent.npy"].dtype == np.float16
        assert sample["json"]["num_frames"] == 17 * row["num_chunks"]
        assert "." not in sample["__key__"]


def test_text_has_the_keys_of_the_latents_in_their_order(cached: RunConfig) -> None:
    column = cached.cache.text("bytes")
    tars = [str(path) for path in sorted(local(column).rglob("*.tar"))]
    samples = list(WebDataset(tars, shardshuffle=False).decode())
    index = pq.read_table(cached.cache.index)
    assert [sample["__key__"] for sample in samples] == index["key"].to_pylist()
    assert all(sample["text.npy"].shape == (len(sample["txt"]), 256) for sample in samples)


def test_running_again_changes_no_byte(cached: RunConfig) -> None:
    before = digests(cached.cache.root)
    times = {path: path.stat().st_mtime_ns for path in local(cached.cache.latents).rglob("*.*")}
    fill_cache(cached)
    assert digests(cached.cache.root) == before
    assert {path: path.stat().st_mtime_ns for path in local(cached.cache.latents).rglob("*.*")} == times


def test_bytes_depend_neither_on_the_place_nor_on_how_decoding_was_shared(
    cached: RunConfig, shapes: Path, tmp_path: Path
) -> None:
    other = cache_config(shapes, tmp_path, "encode.encoders=2", "encode.decode_tasks=1", "encode.frames_per_task=20")
    fill_cache(other)
    assert digests(other.cache.root) == digests(cached.cache.root)


def test_a_deleted_shard_comes_back_the_same(cached: RunConfig, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    shutil.copytree(local(cached.cache.root), root)
    config = cached.model_copy(update={"data": cached.data.model_copy(update={"cache": str(root)})})
    before = digests(root)
    shard = sorted(root.glob("latents/*/*.tar"))[1].relative_to(root / "latents").with_suffix("").as_posix()
    tar_path(config.cache.latents, shard).unlink()
    sidecar_path(config.cache.latents, shard).unlink()
    encode(config)
    assert digests(root) == before


@pytest.mark.slow  # test_chaos.py kills before every effect
def test_kill_minus_nine_while_encoding_costs_nothing_but_time(cached: RunConfig, tmp_path: Path) -> None:
    shards = len(list(local(cached.cache.latents).rglob("*.parquet")))
    for attempt in range(5):  # a machine that stalls may finish the job before it is killed
        config = before_encoding(cached, tmp_path / str(attempt))
        signal_after_the_first_shard(config, signal.SIGKILL)
        if len(list(local(config.cache.latents).rglob("*.parquet"))) < shards:
            break
    assert not config.cache.index.exists()
    fill_cache(config)
    assert digests(config.cache.root) == digests(cached.cache.root)


def signal_after_the_first_shard(config: RunConfig, what: signal.Signals) -> tuple[int, str]:
    """Run `encode` in a process group of its own and signal all of it when a shard is there: (exit code, stderr)."""
    words = [f"data.source={config.data.source}", f"data.cache={config.cache.root}", *CACHE_OVERRIDES]
    run_toml = local(config.cache.root).parent / "run.toml"
    run_toml.write_text("")
    command = [sys.executable, "-m", "jobs", "encode", str(run_toml), *words]
    told = local(config.cache.root).parent / "stderr"  # a file: Ray's daemons would keep a pipe open after the end
    with open(told, "w") as file:
        # A job in the background inherits that Ctrl-C is ignored; at a terminal it is not.
        heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        process = subprocess.Popen(command, start_new_session=True, stderr=file, preexec_fn=heed)
    try:
        while not list(local(config.cache.latents).rglob("*.parquet")):
            assert process.poll() is None, "it ended before a shard was committed"
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, what)
        process.wait()
    return process.returncode, told.read_text()


def test_ctrl_c_is_told_and_the_same_command_goes_on(cached: RunConfig, tmp_path: Path) -> None:
    for attempt in range(5):  # as above
        config = before_encoding(cached, tmp_path / str(attempt))
        code, told = signal_after_the_first_shard(config, signal.SIGINT)
        if code:
            break
    assert code == 130 and "interrupted; what is committed stays" in told
    fill_cache(config)
    assert digests(config.cache.root) == digests(cached.cache.root)


@pytest.mark.slow
def test_new_videos_go_to_a_new_generation_and_leave_the_old_one_alone(local_ray: None, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    for seed in range(2):
        write_mp4(videos / f"{seed}.mp4", moving_bar(20, seed), 8)
    config = cache_config(videos, tmp_path)
    fill_cache(config)
    before = digests(config.cache.latents)
    write_mp4(videos / "2.mp4", moving_bar(40, 2), 8)
    fill_cache(config)
    after = digests(config.cache.latents)
    assert {name: after[name] for name in before} == before
    assert {Path(name).name.split("-")[0] for name in after.keys() - before.keys()} == {"0001"}
    assert pq.read_table(config.cache.index).num_rows == 3


@pytest.mark.slow  # what it costs is counted in test_minimal_work.py
def test_an_edited_caption_touches_text_alone(local_ray: None, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    for seed in range(6):
        write_mp4(videos / f"{seed}.mp4", moving_bar(20, seed), 8)
        (videos / f"{seed}.txt").write_text(f"bar number {seed}")
    config = cache_config(videos, tmp_path)
    fill_cache(config)
    latents, texts = digests(config.cache.latents), digests(config.cache.text("bytes"))
    (videos / "3.txt").write_text("another bar")
    fill_cache(config)
    assert digests(config.cache.latents) == latents
    after = digests(config.cache.text("bytes"))
    changed = {name for name in after if after[name] != texts[name]}
    assert len([name for name in changed if name.endswith(".tar")]) == 1
    captions = pq.read_table(config.cache.text_index("bytes"))["caption"].to_pylist()
    assert "another bar" in captions and "bar number 3" not in captions


@pytest.mark.slow  # test_bad_inputs.py has many more
def test_bad_videos_are_quarantined_with_their_reason_and_the_others_cached(local_ray: None, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    for seed in range(3):
        write_mp4(videos / f"good-{seed}.mp4", moving_bar(20, seed), 8)
    write_mp4(videos / "short.mp4", moving_bar(16, 3), 8)
    write_mp4(videos / "cut.mp4", moving_bar(60, 4), 8)
    (videos / "words.mp4").write_text("this is not a video")
    shutil.copy(videos / "good-0.mp4", videos / "good-0 again.mp4")
    damage_from_the_middle(videos / "cut.mp4")
    config = cache_config(videos, tmp_path, "recipe.scenes=off")  # so that `scan` does not decode them
    fill_cache(config)
    reasons = {Path(one.path).name: (one.stage, one.reason) for one in read_quarantine(config.cache)}
    assert reasons.keys() == {"short.mp4", "words.mp4", "good-0.mp4", "cut.mp4"}
    assert reasons["short.mp4"] == ("plan", "too short: 16 frames at 8 fps; a clip needs 17")
    assert reasons["words.mp4"][0] == "scan" and "not a video" in reasons["words.mp4"][1]
    assert reasons["good-0.mp4"][1].startswith("same content as")
    assert reasons["cut.mp4"][0] == "decode" and "damaged" in reasons["cut.mp4"][1]
    assert pq.read_table(config.cache.index).num_rows == 3


def damage_from_the_middle(path: Path) -> None:
    """Overwrite the compressed frames behind the middle, and leave the table of contents as it is."""
    content = bytearray(path.read_bytes())
    start, end = content.index(b"mdat"), content.index(b"moov")
    assert start < end, "the frames are expected before the table of contents"
    middle = (start + end) // 2
    content[middle : end - 8] = b"\xff" * (end - 8 - middle)
    path.write_bytes(content)


def test_another_recipe_is_refused_and_nothing_is_damaged(cached: RunConfig, shapes: Path, tmp_path: Path) -> None:
    before = digests(cached.cache.root)
    other = cached.model_copy(update={"recipe": cached.recipe.model_copy(update={"fps": 12.0})})
    for verb in (plan, encode, text, train):
        with pytest.raises(Refused, match=r"recipe\.fps: found 8\.0, wanted 12\.0"):
            verb(other)
    assert digests(cached.cache.root) == before
