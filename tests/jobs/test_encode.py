"""What the encode verb promises beyond bytes: crashes of decoders, and sources that are gone."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from jobs.config import EncodeConfig, RunConfig
from jobs.decode import Decoded, Decoders, Failed, ShardWork, VideoWork, decode_groups
from jobs.encode import encode, shard_work
from jobs.plan import read_manifest, read_plan
from pipeline.errors import Refused
from pipeline.plan import shards_of
from pipeline.recipe import read_recipe
from tests.conftest import digests


@pytest.fixture
def works(cached: RunConfig) -> list[ShardWork]:
    """The shards of the cache as an encoder is given them."""
    videos = {video.id: video for video in read_manifest(cached.cache)}
    recipe = read_recipe(cached.cache.root)
    planned = shards_of(read_plan(cached.cache))
    return [shard_work(shard, clips, videos, recipe) for shard, clips in planned.items()]


def merged(works: list[ShardWork]) -> ShardWork:
    return ShardWork("all", tuple(video for work in works for video in work.videos), ())


def wanted(work: ShardWork) -> list[tuple[str, int]]:
    return [(clip.key, n) for video in work.videos for clip in video.clips for n in range(clip.num_chunks)]


def keys_of(items: Iterator[Decoded | Failed]) -> list[tuple[str, int]]:
    return [(item.key, item.number) for item in items if isinstance(item, Decoded)]


def test_groups_hold_every_video_once_and_are_no_larger_than_asked(works: list[ShardWork]) -> None:
    work = merged(works)
    groups = list(decode_groups(work, chunk_frames=17, frames_per_task=60))
    assert tuple(video for group in groups for video in group) == work.videos
    sizes = [sum(clip.num_chunks for video in group for clip in video.clips) * 17 for group in groups]
    assert all(size <= 60 or len(group) == 1 for size, group in zip(sizes, groups))
    assert len(groups) > 1


@pytest.mark.parametrize("decode_tasks", [1, 3])
def test_chunks_come_in_plan_order_and_the_next_shard_is_under_way(
    local_ray: None, works: list[ShardWork], decode_tasks: int
) -> None:
    settings = EncodeConfig(decode_tasks=decode_tasks, frames_per_task=20)
    decoders = Decoders(settings, chunk_frames=17)
    for work, upcoming in zip(works, [*works[1:], None]):
        keys = []
        for item in decoders.read(work, upcoming):
            assert sum(len(tasks) for tasks in decoders.running.values()) <= decode_tasks
            keys += keys_of(iter([item]))
        assert keys == wanted(work)
        if upcoming and decode_tasks > 1:
            assert decoders.running[upcoming.shard]
    assert not decoders.running and not decoders.waiting


def test_a_decoder_that_dies_takes_only_its_own_video_along(
    local_ray: None, works: list[ShardWork], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group's process is killed in the middle; its videos are tried one by one, and the culprit is named."""
    work = merged(works)
    culprit = work.videos[1].video.id
    monkeypatch.setattr("jobs.decode.decode", dies_of(culprit))
    items = list(Decoders(EncodeConfig(frames_per_task=10**6), chunk_frames=17).read(work, None))
    (failed,) = [item for item in items if isinstance(item, Failed)]
    assert (failed.video, failed.attempts) == (culprit, 2)
    assert "died" in failed.reason
    others = ShardWork("others", tuple(video for video in work.videos if video.video.id != culprit), ())
    assert set(wanted(others)) <= set(keys_of(iter(items)))


def dies_of(culprit: str) -> Any:
    """The decode task, in a process that is killed when it comes to one video, as a decoder's segfault would."""
    from jobs import decode as original

    plain = original.decode._function  # pyright: ignore

    @ray.remote(num_cpus=1, max_retries=0)
    def decode(group: tuple[VideoWork, ...], chunk_frames: int) -> Iterator[Decoded | Failed]:
        for work in group:
            if work.video.id == culprit:
                os.kill(os.getpid(), 9)
            yield from plain((work,), chunk_frames)

    return decode


def test_committed_shards_do_not_need_their_videos_any_more(cached: RunConfig, tmp_path: Path) -> None:
    config = copied(cached, tmp_path)
    config.cache.manifest.unlink()
    before = digests(config.cache.root)
    encode(config)
    assert digests(config.cache.root) == before


def test_a_missing_shard_of_a_forgotten_video_is_refused(
    cached: RunConfig, works: list[ShardWork], tmp_path: Path
) -> None:
    with pytest.raises(Refused, match="the manifest no longer has"):
        shard_work("64x64/0000-000000", list(works[0].videos[0].clips), {}, read_recipe(cached.cache.root))


def copied(config: RunConfig, tmp_path: Path) -> RunConfig:
    shutil.copytree(config.cache.root, tmp_path / "cache")
    return config.model_copy(update={"data": config.data.model_copy(update={"cache": tmp_path / "cache"})})
