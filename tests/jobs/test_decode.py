"""What decode tasks yield: chunks in plan order and how they look, failures with their reason, and what it cost."""

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import NodeDiedError, ObjectFetchTimedOutError, OutOfMemoryError, WorkerCrashedError

from jobs.config import DataConfig, EncodeConfig, RunConfig
from jobs.decode import (
    Decoded,
    Decoders,
    Failed,
    Group,
    Passed,
    ShardWork,
    Spent,
    VideoWork,
    Yielded,
    decode_groups,
    reader_limits,
)
from jobs.encode import shard_work
from jobs.plan import read_manifest, read_plan
from pipeline.decode import decode_clips
from pipeline.look import look_at
from pipeline.plan import shards_of
from pipeline.recipe import read_recipe
from pipeline.sandbox import Limits

LIMITS = reader_limits(DataConfig())


def shard_works(config: RunConfig) -> list[ShardWork]:
    """The shards of a cache as an encoder is given them."""
    videos = {video.id: video for video in read_manifest(config.cache)}
    recipe = read_recipe(config.cache)
    planned = shards_of(read_plan(config.cache))
    return [shard_work(shard, clips, videos, recipe) for shard, clips in planned.items()]


@pytest.fixture
def works(cached: RunConfig) -> list[ShardWork]:
    return shard_works(cached)


@pytest.fixture
def whole(works: list[ShardWork]) -> ShardWork:
    """All of them as one."""
    return replace(works[0], shard="all", videos=tuple(video for work in works for video in work.videos))


def wanted(work: ShardWork) -> list[tuple[str, int]]:
    return [(clip.key, n) for video in work.videos for clip in video.clips for n in range(clip.num_chunks)]


def keys_of(items: Iterable[Yielded]) -> list[tuple[str, int]]:
    return [(item.slot.key, item.slot.number) for item in items if isinstance(item, Decoded)]


def renamed(work: ShardWork, place: int, path: Path) -> ShardWork:
    """The same shard, one of whose videos lies under another name; tests/faults has decoders fail by it."""
    one = work.videos[place]
    shutil.copy(one.video.path, path)
    moved = replace(one, video=replace(one.video, path=str(path)))
    return replace(work, videos=(*work.videos[:place], moved, *work.videos[place + 1 :]))


@pytest.mark.parametrize("frames_per_task", [1, 40, 60, 10**6])
def test_groups_hold_every_clip_once_in_order_and_are_no_larger_than_asked(
    whole: ShardWork, frames_per_task: int
) -> None:
    groups = list(decode_groups(whole, frames_per_task))
    clips = [clip for group in groups for part in group for clip in part.clips]
    assert clips == [clip for video in whole.videos for clip in video.clips]
    assert all({clip.video for clip in part.clips} == {part.video.id} for group in groups for part in group)
    for group in groups:
        inside = [clip for part in group for clip in part.clips]
        assert sum(clip.num_frames for clip in inside) <= frames_per_task or len(inside) == 1


def test_a_long_video_is_spread_over_tasks(whole: ShardWork) -> None:
    long = max(whole.videos, key=lambda one: len(one.clips))
    assert len(long.clips) > 1
    groups = list(decode_groups(replace(whole, videos=(long,)), 34))
    assert [len(group) for group in groups] == [1] * len(long.clips)


@pytest.mark.parametrize("decode_tasks", [1, 3])
def test_chunks_come_in_plan_order_and_the_next_shard_is_under_way(
    local_ray: None, works: list[ShardWork], decode_tasks: int
) -> None:
    settings = EncodeConfig(decode_tasks=decode_tasks, frames_per_task=20)
    decoders = Decoders(settings, LIMITS)
    for work, upcoming in zip(works, [*works[1:], None]):
        items = []
        for item in decoders.read(work, upcoming):
            assert decoders.count_running() <= decode_tasks
            items.append(item)
        assert keys_of(items) == wanted(work)
        if upcoming and decode_tasks > 1:
            assert decoders.tasks[upcoming.shard].running
    assert not decoders.tasks


def test_chunks_are_those_of_the_decoder_with_their_looks_and_their_cost(local_ray: None, whole: ShardWork) -> None:
    work = replace(whole, videos=whole.videos[:2])
    items = list(Decoders(EncodeConfig(), LIMITS).read(work, None))
    chunks = [item for item in items if isinstance(item, Decoded)]
    plain = [frames for one in work.videos for _, _, frames in decode_clips(one.video, one.clips)]
    for chunk, frames in zip(chunks, plain, strict=True):
        np.testing.assert_array_equal(chunk.frames, frames)
        assert chunk.look == look_at(frames)
    assert sum(item.cpu_s for item in items if isinstance(item, Spent)) > 0


def test_padding_is_not_looked_at(local_ray: None, whole: ShardWork) -> None:
    one = whole.videos[0]
    padded = replace(one.clips[0], num_chunks=1, num_frames=17, valid_frames=5)
    work = replace(whole, videos=(VideoWork(one.video, (padded,)),))
    [chunk, passed, _] = Decoders(EncodeConfig(), LIMITS).read(work, None)
    assert isinstance(chunk, Decoded) and passed == Passed(one.video.id, (padded.key,))
    assert chunk.look == look_at(chunk.frames[:5]) != look_at(chunk.frames)


@pytest.mark.parametrize(
    ("name", "limits", "reason"),
    [
        ("segfaults.mp4", LIMITS, "the decoder crashed: SIGSEGV"),
        ("hangs.mp4", Limits(deadline_s=1, memory_bytes=2**32, videos=9), "still not done after"),
    ],
)
def test_a_video_that_breaks_its_decoder_is_tried_twice_and_the_others_are_decoded(
    local_ray: None, whole: ShardWork, tmp_path: Path, name: str, limits: Limits, reason: str
) -> None:
    work = renamed(replace(whole, videos=whole.videos[:3]), 1, tmp_path / name)
    lasts_s = [100.0, 0.0, 100.0]  # the others have all the time that a busy machine takes
    timed = [replace(one, video=replace(one.video, duration_s=s)) for one, s in zip(work.videos, lasts_s)]
    work = replace(work, videos=tuple(timed))
    items = list(Decoders(EncodeConfig(frames_per_task=10**6), limits).read(work, None))
    [failed] = [item for item in items if isinstance(item, Failed)]
    assert (failed.video, failed.attempts) == (work.videos[1].video.id, 2)
    assert failed.reason.startswith(reason)
    assert "SIGSEGV" not in reason or "Segmentation fault" in failed.stderr
    assert keys_of(items) == wanted(replace(work, videos=(work.videos[0], work.videos[2])))


def test_no_more_of_a_failed_video_is_tried(local_ray: None, whole: ShardWork, tmp_path: Path) -> None:
    """Were it otherwise, a long video that hangs would hang once for each of its parts."""
    long = max(whole.videos, key=lambda one: len(one.clips))
    work = renamed(replace(whole, videos=(long, whole.videos[0])), 0, tmp_path / "segfaults.mp4")
    items = list(Decoders(EncodeConfig(frames_per_task=1, decode_tasks=1), LIMITS).read(work, None))
    assert [item.video for item in items if isinstance(item, Failed)] == [long.video.id]
    assert keys_of(items) == wanted(replace(work, videos=(work.videos[1],)))


def test_a_task_that_dies_takes_only_its_own_video_along(
    local_ray: None, whole: ShardWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group's process is killed in the middle; its videos are tried one by one, and the culprit is named."""
    culprit = whole.videos[1].video.id
    monkeypatch.setattr("jobs.decode.decode", dies_of(culprit))
    items = list(Decoders(EncodeConfig(frames_per_task=10**6), LIMITS).read(whole, None))
    (failed,) = [item for item in items if isinstance(item, Failed)]
    assert (failed.video, failed.attempts) == (culprit, 2)
    assert "died" in failed.reason
    others = replace(whole, videos=tuple(video for video in whole.videos if video.video.id != culprit))
    assert set(wanted(others)) <= set(keys_of(items))


@pytest.mark.parametrize("lost", [NodeDiedError("gone"), WorkerCrashedError(), OutOfMemoryError("full")])
def test_however_a_task_is_lost_its_videos_are_decoded_again(
    local_ray: None, whole: ShardWork, lost: Exception
) -> None:
    items = list(LosesItsFirstTask(lost).read(whole, None))
    assert keys_of(items) == wanted(whole)
    assert not [item for item in items if isinstance(item, Failed)]


@pytest.mark.parametrize("lost", [NodeDiedError("gone"), ObjectFetchTimedOutError("", None, "")])
def test_no_video_is_blamed_for_nodes_that_are_lost(local_ray: None, whole: ShardWork, lost: Exception) -> None:
    items = list(LosesItsFirstTask(lost, times=5).read(whole, None))
    assert keys_of(items) == wanted(whole)
    assert not [item for item in items if isinstance(item, Failed)]


class LosesItsFirstTask(Decoders):
    """Decoders whose first task is lost before it yields anything, in one way or another, and so often again."""

    def __init__(self, lost: Exception, times: int = 1) -> None:
        super().__init__(EncodeConfig(frames_per_task=10**6), LIMITS)
        self.lost, self.times = lost, times

    def _launch(self, group: Group) -> Any:
        self.times -= 1
        return self._lose(self.lost) if self.times >= 0 else super()._launch(group)

    def _lose(self, lost: Exception) -> Iterator[Any]:
        raise lost
        yield  # which makes it an iterator


def dies_of(culprit: str) -> Any:
    """The decode task, in a process that is killed when it comes to one video, as where a machine's memory is full."""
    from jobs import decode as original

    plain = original.decode._function  # pyright: ignore

    @ray.remote(num_cpus=1, max_retries=0)
    def decode(group: tuple[VideoWork, ...], limits: Limits) -> Iterator[Yielded]:
        for work in group:
            if work.video.id == culprit:
                os.kill(os.getpid(), 9)
            yield from plain((work,), limits)

    return decode
