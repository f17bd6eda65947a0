"""`quarantine list` tells all that is known; `quarantine retry` loses nothing, whenever it is interrupted."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.config import RunConfig
from jobs.encode import encode
from jobs.mp4 import write_mp4
from jobs.plan import read_manifest, read_plan
from jobs.quarantine import list_quarantine, redo_shard, retry_quarantine
from jobs.scan import scan
from jobs.text import text
from pipeline.plan import shards_of
from pipeline.quarantine import read_quarantine, set_aside
from pipeline.records import Quarantined, Sample, Video
from pipeline.tables import read_records, write_records
from tests.conftest import cache_config, digests
from tests.shards import local
from tests.test_end_to_end import damage_from_the_middle, moving_bar

SCANNED = Quarantined("/data/[a] b.mp4", "scan", "no video stream", 1)
SHORT = Quarantined("/data/short.mp4", "plan", "too short", 1)
CRASHED = Quarantined(
    "/data/crash.mp4", "decode", "the decoder crashed: SIGSEGV", 2, "0123", "64x64/0000-000001", "first\nlast", 10, 20
)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A cache with one of each in its quarantine."""
    config = cache_config(tmp_path / "videos", tmp_path)
    set_aside(config.cache, "scan", [SCANNED])
    set_aside(config.cache, "plan", [SHORT])
    set_aside(config.cache, CRASHED.shard, [CRASHED])
    return config


def test_the_list_has_all_that_is_known(config: RunConfig, capsys: pytest.CaptureFixture) -> None:
    list_quarantine(config, "*", full=False)
    told = capsys.readouterr().out
    assert "/data/[a] b.mp4\n  scan, 1 attempt: no video stream\n" in told
    assert "/data/crash.mp4\n  decode, 2 attempts, 64x64/0000-000001: the decoder crashed: SIGSEGV\n    last\n" in told
    assert "first" not in told and told.endswith(f"quarantine: 3 inputs in {config.cache.root}\n")
    list_quarantine(config, "*", full=True)
    assert "    first\n    last\n" in capsys.readouterr().out


def test_the_list_can_be_of_some_paths_only(config: RunConfig, capsys: pytest.CaptureFixture) -> None:
    list_quarantine(config, "*/crash*", full=False)
    told = capsys.readouterr().out
    assert "/data/crash.mp4" in told and "short.mp4" not in told and "quarantine: 1 inputs" in told


def test_an_empty_quarantine_is_listed_and_retried_too(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = cache_config(tmp_path / "videos", tmp_path)
    list_quarantine(config, "*", full=True)
    retry_quarantine(config, "*")
    assert "0 files to be scanned again, 0 shards to be encoded again\n" in capsys.readouterr().out


def test_only_what_is_asked_for_is_tried_again(config: RunConfig, capsys: pytest.CaptureFixture) -> None:
    retry_quarantine(config, "*/crash*")
    assert read_quarantine(config.cache) == [SCANNED, SHORT]
    assert "0 files to be scanned again, 1 shards to be encoded again; now run: latentmill encode, text" in (
        capsys.readouterr().out
    )
    retry_quarantine(config, "*")
    assert read_quarantine(config.cache) == [SHORT]  # which `plan` looks at whenever it runs
    assert "now run: latentmill scan, plan, encode, text" in capsys.readouterr().out


def test_what_was_bad_or_removed_is_cached_in_the_end_as_if_it_had_always_been_good(
    cached: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = copied(cached, tmp_path)
    latents, index = digests(config.cache.latents), config.cache.index.read_bytes()
    sound = {video.id: video for video in read_manifest(config.cache)}
    first, second, *_ = shards_of(read_plan(config.cache)).items()
    removed = {clip.video for clip in first[1]}  # all that one shard has, and one of another
    broken = next(clip.video for clip in second[1] if clip.video not in removed)
    shutil.copy(sound[broken].path, tmp_path / "broken.mp4")
    damage_from_the_middle(tmp_path / "broken.mp4")
    found = {one: replace(sound[one], removed=True) for one in removed}
    found[broken] = replace(sound[broken], path=str(tmp_path / "broken.mp4"))
    write_records(config.cache.manifest, Video, (sound | found).values())
    for shard, _ in (first, second):
        redo_shard(config.cache, shard)
    assert encode(config) == len(read_quarantine(config.cache))
    bad = read_quarantine(config.cache)
    assert {(one.video, one.stage) for one in bad} == {(broken, "decode")} | {(one, "encode") for one in removed}
    assert not {sample.video for sample in read_records([config.cache.index], Sample) if sample.shard == first[0]}
    assert text(config) == 0  # though a shard is empty now

    write_records(config.cache.manifest, Video, sound.values())
    with monkeypatch.context() as patch:
        patch.setattr("jobs.quarantine.set_aside", interrupted)
        with pytest.raises(KeyboardInterrupt):
            retry_quarantine(config, "*")
    assert read_quarantine(config.cache) == bad
    assert not config.cache.index.exists()

    retry_quarantine(config, "*")
    assert read_quarantine(config.cache) == []
    assert encode(config) == 0
    assert digests(config.cache.latents) == latents
    assert config.cache.index.read_bytes() == index


def copied(config: RunConfig, tmp_path: Path) -> RunConfig:
    shutil.copytree(local(config.cache.root), tmp_path / "cache")
    return config.model_copy(update={"data": config.data.model_copy(update={"cache": str(tmp_path / "cache")})})


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_file_that_was_mended_is_scanned_again_only_after_a_retry_or_a_change(
    local_ray: None, tmp_path: Path
) -> None:
    videos = tmp_path / "videos"
    write_mp4(videos / "good.mp4", moving_bar(40, 0), 8)
    (videos / "words.mp4").write_text("not a video")
    config = cache_config(videos, tmp_path)
    assert scan(config) == 1
    retry_quarantine(config, "*words*")
    assert read_quarantine(config.cache) == []
    assert scan(config) == 1
    assert [Path(one.path).name for one in read_quarantine(config.cache)] == ["words.mp4"]
