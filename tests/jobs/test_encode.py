"""What the encode verb promises beyond bytes: looks, costs, and what becomes of videos that are bad or gone."""

import json
import os
import shutil
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import jobs.decode
from jobs.config import RunConfig
from jobs.decode import Failed
from jobs.encode import ShardEncoder, encode, left_out, shard_work
from jobs.mp4 import write_mp4
from jobs.plan import plan, read_manifest, read_plan
from jobs.scan import scan
from jobs.stages import STAGES
from pipeline.cache import sidecar_path
from pipeline.decode import decode_clips
from pipeline.errors import Refused
from pipeline.look import DARK, STATIC, look_at
from pipeline.plan import shards_of
from pipeline.quarantine import LEAST_BAD, read_quarantine
from pipeline.recipe import read_recipe
from pipeline.records import Clip, Quarantined, Sample
from pipeline.tables import read_records
from tests.conftest import before_encoding, cache_config, digests
from tests.crashes import DecodersHere, NoSandbox
from tests.test_end_to_end import moving_bar


def copied(config: RunConfig, tmp_path: Path) -> RunConfig:
    shutil.copytree(config.data.cache, tmp_path / "cache")
    return config.model_copy(update={"data": config.data.model_copy(update={"cache": str(tmp_path / "cache")})})


def first_shard(config: RunConfig) -> tuple[str, list[Clip]]:
    return next(iter(shards_of(read_plan(config.cache)).items()))


def test_committed_shards_do_not_need_their_videos_any_more(cached: RunConfig, tmp_path: Path) -> None:
    config = copied(cached, tmp_path)
    config.cache.manifest.unlink()
    before = digests(config.cache.root)
    encode(config)
    assert digests(config.cache.root) == before


def test_a_missing_shard_of_a_forgotten_video_is_refused(cached: RunConfig) -> None:
    shard, clips = first_shard(cached)
    with pytest.raises(Refused, match="the manifest no longer has"):
        shard_work(shard, clips, {}, read_recipe(cached.cache))


def test_every_clip_is_cached_with_its_look(cached: RunConfig) -> None:
    clips = {clip.key: clip for clip in read_plan(cached.cache)}
    videos = {video.id: video for video in read_manifest(cached.cache)}
    for sample in read_records([cached.cache.index], Sample)[:3]:
        clip = clips[sample.key]
        chunks = [look_at(frames) for _, _, frames in decode_clips(videos[clip.video], [clip])]
        for name in ("luminance", "motion", "sharpness"):
            assert getattr(sample, name) == pytest.approx(np.mean([getattr(look, name) for look in chunks]))
        assert (sample.dark, sample.static) == (sample.luminance < DARK, sample.motion < STATIC)


@pytest.mark.slow  # what is dark and what is still: tests/pipeline/test_look.py
def test_dark_and_still_clips_are_marked_and_images_are_not_called_still(local_ray: None, tmp_path: Path) -> None:
    light = np.full((17, 64, 64, 3), 200, np.uint8)
    write_mp4(tmp_path / "videos" / "still.mp4", light, 8)
    write_mp4(tmp_path / "videos" / "black.mp4", light // 100, 8)
    write_mp4(tmp_path / "videos" / "moving.mp4", moving_bar(17, 1), 8)
    write_mp4(tmp_path / "videos" / "image.mp4", light[:1], 8)
    config = cache_config(tmp_path / "videos", tmp_path)
    for verb in (scan, plan, encode):
        verb(config)
    names = {video.id: Path(video.path).stem for video in read_manifest(config.cache)}
    marks = {names[one.video]: (one.dark, one.static) for one in read_records([config.cache.index], Sample)}
    assert marks == {
        "still": (False, True),
        "black": (True, True),
        "moving": (False, False),
        "image": (False, False),
    }


def test_every_shard_tells_what_it_cost(cached: RunConfig) -> None:
    lines = [json.loads(line) for line in cached.cache.events.read_text().splitlines()]
    shards = [line for line in lines if (line["verb"], line["event"]) == ("encode", "shard")]
    index = pq.read_table(cached.cache.index)
    assert sum(line["latent_bytes"] for line in shards) == sum(index["latent_bytes"].to_pylist())
    assert sum(line["chunks"] for line in shards) == sum(index["num_chunks"].to_pylist())
    assert all(0 <= line["wait_s"] <= line["total_s"] for line in shards)
    assert sum(line["decode_cpu_s"] for line in shards) > 0


def test_encoders_account_for_their_time(cached: RunConfig) -> None:
    lines = [json.loads(line) for line in cached.cache.events.read_text().splitlines()]
    shards = [line for line in lines if (line["verb"], line["event"]) == ("encode", "shard")]
    spent = {stage: sum(line["stages"][stage] for line in shards) for stage in STAGES}
    assert spent["encode"] >= sum(line["encode_s"] for line in shards) * 0.99  # with what is decoded again to check
    assert 0 < spent["decode"] <= sum(line["wait_s"] + line["total_s"] for line in shards)
    assert spent["write"] > 0
    [start] = [line for line in lines if (line["verb"], line["event"]) == ("encode", "start")]
    passed = datetime.fromisoformat(shards[-1]["time"]) - datetime.fromisoformat(start["time"])
    assert sum(spent.values()) <= passed.total_seconds()  # of the one encoder


def test_writing_lasts_until_the_disk_has_the_shard(
    cached: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = before_encoding(cached, tmp_path)
    shard, clips = first_shard(cached)
    work = shard_work(shard, clips, {one.id: one for one in read_manifest(config.cache)}, read_recipe(config.cache))
    monkeypatch.setattr(jobs.decode, "sandbox_here", NoSandbox)
    encoder = ShardEncoder(config)
    encoder.decoders = DecodersHere(config.encode, encoder.decoders.limits)
    fsync = os.fsync

    def slow(handle: int) -> None:
        time.sleep(0.1)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", slow)
    assert encoder.do(work, None, 0).stages["write"] >= 4 * 0.1  # the tar, the sidecar, and the folder after each


def test_removed_videos_are_left_out_of_their_shard_and_noted(cached: RunConfig) -> None:
    shard, clips = first_shard(cached)
    gone = clips[0].video
    videos = {one.id: replace(one, removed=one.id == gone) for one in read_manifest(cached.cache)}
    work = shard_work(shard, clips, videos, read_recipe(cached.cache))
    kept = [clip for one in work.videos for clip in one.clips]
    assert kept == [clip for clip in clips if clip.video != gone] != clips
    [noted] = left_out(work, {})
    assert (noted.video, noted.stage, noted.shard, noted.path) == (gone, "encode", shard, videos[gone].path)
    assert "bring it back" in noted.reason


def test_the_quarantine_of_a_shard_tells_all_that_is_known_of_a_failure(cached: RunConfig) -> None:
    shard, clips = first_shard(cached)
    videos = {one.id: one for one in read_manifest(cached.cache)}
    bad = videos[clips[0].video]
    work = shard_work(shard, clips, videos, read_recipe(cached.cache))
    [noted] = left_out(work, {bad.id: Failed(bad.id, "damaged", 2, "error while decoding MB 3 7")})
    assert noted == Quarantined(
        bad.path, "decode", "damaged", 2, bad.id, shard, "error while decoding MB 3 7", bad.size_bytes, bad.mtime_ns
    )


def test_too_many_bad_videos_stop_the_run_and_what_is_committed_stays(local_ray: None, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    for seed in range(LEAST_BAD + 2):
        write_mp4(videos / f"{seed:02d}.mp4", moving_bar(17, seed), 8)
    config = cache_config(videos, tmp_path, "encode.shard_bytes=5000", "recipe.scenes=off", "encode.forecast=false")
    scan(config)
    plan(config)
    shards = list(shards_of(read_plan(config.cache)))
    good = {clip.video for clip in read_plan(config.cache) if clip.shard == shards[0]}
    for video in read_manifest(config.cache):
        if video.id not in good:
            Path(video.path).write_bytes(b"another file by now")
    with pytest.raises(
        Refused, match=r"\d+ of the \d+ videos decoded so far are bad, more than data.max_bad_fraction=0.1"
    ):
        encode(config)
    assert sidecar_path(config.cache.latents, shards[0]).exists()
    assert not config.cache.index.exists()
    assert len(read_quarantine(config.cache)) >= LEAST_BAD
