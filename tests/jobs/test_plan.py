"""A plan grows by generations, forgets nothing, and is the same for the same videos."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.config import ConfigError, RunConfig
from jobs.plan import plan, read_plan, read_scenes
from jobs.run_toml import load_config
from pipeline.cache import Cache
from pipeline.errors import Refused
from pipeline.plan import read_tombstones, shards_of
from pipeline.quarantine import read_quarantine
from pipeline.records import Scene, Video
from pipeline.tables import write_records
from tests.shards import local

NUM_VIDEOS = 1000


def synthetic(number: int) -> Video:
    """A video without a file: a plan reads no pixel."""
    fps, frames = (24.0, 30.0, 25.0)[number % 3], 20 + number % 180
    identity = hashlib.sha256(str(number).encode()).hexdigest()[:16]
    facts = ("", 1, 1, "h264", 0, 240, 320, frames, 0.5, 0.5 + (frames - 1) / fps, fps)
    return Video(identity, f"/nowhere/{number:04d}.mp4", *facts)


VIDEOS = [synthetic(number) for number in range(NUM_VIDEOS)]


def planned(root: Path, videos: list[Video], *more: str, scenes: list[Scene] | None = None) -> RunConfig:
    """Write a manifest below `root`, and plan it."""
    config = load_config(
        None,
        [
            f"data.cache={root}",
            'recipe.buckets=["144p", "240p"]',
            "encode.shard_bytes=2000000",
            "encode.forecast=false",
            *more,
        ],
    )
    write_records(config.cache.manifest, Video, videos)
    if scenes is not None:
        write_records(config.cache.scenes, Scene, scenes)
    plan(config)
    return config


def generations(cache: Cache) -> dict[str, tuple[bytes, int]]:
    """Bytes and modification times."""
    return {path.name: (path.read_bytes(), local(path).stat().st_mtime_ns) for path in cache.plans()}


def test_the_same_videos_in_any_order_are_planned_to_the_same_bytes(tmp_path: Path) -> None:
    one = planned(tmp_path / "a", VIDEOS)
    other = planned(tmp_path / "b", VIDEOS[::-1])
    assert len(read_plan(one.cache)) > NUM_VIDEOS and len(shards_of(read_plan(one.cache))) > 10
    assert one.cache.plan(0).read_bytes() == other.cache.plan(0).read_bytes()


def test_new_videos_make_a_generation_and_leave_earlier_ones_untouched(tmp_path: Path) -> None:
    config = planned(tmp_path, VIDEOS[:600])
    first = generations(config.cache)
    planned(tmp_path, VIDEOS)
    both = generations(config.cache)
    assert list(both) == ["gen-0000.parquet", "gen-0001.parquet"]
    assert both["gen-0000.parquet"] == first["gen-0000.parquet"]
    clips = read_plan(config.cache)
    old, new = ({clip.video for clip in clips if f"/{generation}-" in clip.shard} for generation in ("0000", "0001"))
    assert old <= {video.id for video in VIDEOS[:600]} and new <= {video.id for video in VIDEOS[600:]}
    assert len({clip.key for clip in clips}) == len(clips)
    planned(tmp_path, VIDEOS)
    assert generations(config.cache) == both  # nothing new, nothing written


def test_removing_makes_tombstones_and_returning_lifts_them(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = planned(tmp_path, VIDEOS)
    before = generations(config.cache)
    assert not config.cache.tombstones.exists()
    gone = {video.id for video in VIDEOS[100:150]}
    planned(tmp_path, [replace(video, removed=video.id in gone) for video in VIDEOS])
    assert read_tombstones(config.cache) == gone & {clip.video for clip in read_plan(config.cache)}
    assert len(read_tombstones(config.cache)) == 50
    assert "1000 videos planned before, 50 of them removed since" in capsys.readouterr().out
    planned(tmp_path, VIDEOS)
    assert not config.cache.tombstones.exists() and read_tombstones(config.cache) == set()
    assert generations(config.cache) == before


def test_a_removed_video_that_was_never_planned_has_no_tombstone(tmp_path: Path) -> None:
    videos = [replace(video, removed=number == 0) for number, video in enumerate(VIDEOS[:3])]
    config = planned(tmp_path, videos)
    assert {clip.video for clip in read_plan(config.cache)} == {video.id for video in videos[1:]}
    assert not config.cache.tombstones.exists()


def test_scenes_of_the_manifest_are_cut_apart(tmp_path: Path) -> None:
    one = replace(VIDEOS[0], num_frames=72, end_s=0.5 + 71 / 24, fps=24.0)
    parts = [(0, 20, 0.5, 0.5 + 19 / 24), (20, 52, 0.5 + 20 / 24, one.end_s)]
    scenes = [Scene(one.id, number, *part) for number, part in enumerate(parts)]
    config = planned(tmp_path, [one], scenes=scenes)
    assert [(clip.first_frame, clip.num_chunks) for clip in read_plan(config.cache)] == [(0, 1), (20, 3)]
    found = read_scenes(config.cache)[one.id]
    assert [(scene.first_frame, scene.num_frames) for scene in found] == [(0, 20), (20, 52)]


def test_the_account_and_its_reasons_are_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    videos = [replace(VIDEOS[0], num_frames=49, end_s=0.5 + 48 / 24), replace(VIDEOS[1], num_frames=1, end_s=0.5)]
    videos += [replace(VIDEOS[3], height=36), replace(VIDEOS[6], num_frames=9, end_s=0.5 + 8 / 24)]
    config = planned(tmp_path, videos, "recipe.fps=12", 'recipe.buckets=["144p"]', "recipe.tail=pad")
    told = capsys.readouterr().out
    assert "82 frames in the files, 39 left out by sampling" in told  # at 12 fps 25 + 1 + 12 + 5 are left
    assert "43 frames = 18 used + 13 in chunks that are padded + 12 dropped of videos too small for every" in told
    assert [one.reason.partition(":")[0] for one in read_quarantine(config.cache)] == ["too small"]
    event = json.loads(config.cache.events.read_text().splitlines()[-1])
    assert (event["container"], event["dropped_small"], event["padded"]) == (82, 12, 13)


def test_nothing_that_can_be_planned_is_refused_and_binds_no_recipe(tmp_path: Path) -> None:
    short = replace(VIDEOS[0], num_frames=5, end_s=0.5 + 4 / 24)
    with pytest.raises(Refused, match="none of the 1 videos gives a clip: /nowhere/0000.mp4: too short: 5 frames"):
        planned(tmp_path, [short])
    planned(tmp_path, [short], "recipe.tail=pad")  # so that the recipe can still be changed
    with pytest.raises(Refused, match="made by another recipe: recipe.tail: found 'pad', wanted 'overlap'"):
        planned(tmp_path, [short], "recipe.tail=overlap")


def test_a_filter_that_nobody_can_answer_stops_the_plan(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="recipe.scenes=off nobody has looked"):
        planned(tmp_path, VIDEOS[:2], "recipe.filter=motion > 0.1", "recipe.scenes=off")


def test_more_chunks_at_least_than_at_most_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="recipe.min_chunks: 5 is more than recipe.max_chunks, 4: no clip"):
        planned(tmp_path, VIDEOS[:1], "recipe.min_chunks=5")


def test_a_bucket_set_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="recipe.buckets: '900p' is not the name of a set; known: 144p, 240p"):
        planned(tmp_path, VIDEOS[:1], 'recipe.buckets=["900p"]')


def test_planning_before_scanning_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="not found; run `scan` first"):
        plan(load_config(None, [f"data.cache={tmp_path}"]))
