"""A forecast times a few chunks, adds up all that is not encoded yet, and is held against what encoding took."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.config import RunConfig
from jobs.decode import reader_limits
from jobs.encode import encode
from jobs.forecast import (
    PROBE_MEGAPIXELS,
    Rates,
    TimedSize,
    _beginning,
    chunk_seconds,
    compare_forecast,
    estimate,
    make_forecast,
    megapixels,
    time_decoding,
    works_of,
)
from jobs.mp4 import write_mp4
from jobs.plan import plan, read_manifest, read_plan
from jobs.scan import scan
from pipeline.cache import sidecar_path
from pipeline.plan import shards_of
from pipeline.records import Clip, Video
from pipeline.sandbox import Sandbox
from pipeline.storage import publish
from tests.conftest import cache_config

VIDEO = Video("f" * 16, "/v.mp4", "", 1, 1, "h264", 0, 100, 200, 480, 0.0, 479 / 48, 48.0)
RATES = Rates("CPU", 0.01, (TimedSize(17, 64, 64, 0.5), TimedSize(1, 64, 64, 0.1)))


def clip(first_frame: int = 0, num_chunks: int = 1, shard: str = "64x64/0000-000000", **changes) -> Clip:
    frames = 17 * num_chunks
    made = Clip(f"k{first_frame}", shard, VIDEO.id, first_frame, num_chunks, frames, frames, 24.0, 64, 64, 0.0, 9.98)
    return replace(made, **changes)


@pytest.fixture(scope="module")
def scanned(local_ray: None, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A cache of shapes that is scanned only; tests must not change it."""
    config = cache_config(shapes, tmp_path_factory.mktemp("scanned"))
    scan(config)
    return config


@pytest.fixture
def planned(scanned: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture) -> tuple[RunConfig, str]:
    """A cache of its own that is planned and not encoded, and what `plan` said."""
    shutil.copytree(scanned.data.cache, tmp_path / "cache")
    config = scanned.model_copy(update={"data": scanned.data.model_copy(update={"cache": str(tmp_path / "cache")})})
    plan(config)
    return config, capsys.readouterr().out


def test_plan_tells_what_encoding_will_take(planned: tuple[RunConfig, str]) -> None:
    config, told = planned
    clips = read_plan(config.cache)
    (line,) = (line for line in told.splitlines() if line.startswith("forecast: "))
    assert f"forecast: {len(clips)} clips to encode" in line
    assert re.search(r"; decoding takes .* s of one core, encoding .* s of one encoder \(CPU, threads: 1\)$", line)
    document = json.loads(config.cache.forecast.read_text())
    assert document["rates"]["decode_s"] > 0 and document["rates"]["encode"][0]["seconds"] > 0
    totals = document["totals"]
    assert totals["clips"] == len(clips)
    assert totals["latent_bytes"] == sum(2 * 16 * 5 * 8 * 8 * one.num_chunks for one in clips)
    assert totals["video_s"] == pytest.approx(sum(17 * one.num_chunks / one.fps for one in clips))
    assert totals["decode_cpu_s"] > 0 and totals["encode_s"] > 0


def test_encode_holds_the_forecast_against_what_it_took(
    local_ray: None, planned: tuple[RunConfig, str], capsys: pytest.CaptureFixture
) -> None:
    config, _ = planned
    encode(config)
    told = capsys.readouterr().out
    (line,) = (line for line in told.splitlines() if line.startswith("forecast against actual: "))
    figures = [float(figure) for figure in re.findall(r"[ ](\S+) (?:MB|s)\b", line)]
    assert len(figures) == 6 and min(figures) > 0
    size = sum(2 * 16 * 5 * 8 * 8 * one.num_chunks for one in read_plan(config.cache)) / 1e6
    assert figures[:2] == pytest.approx([size, size], rel=0.1)  # files have headers
    encode(config)
    assert "forecast against" not in capsys.readouterr().out  # nothing was left to do
    config.cache.forecast.unlink()
    plan(config)
    assert "forecast: " not in capsys.readouterr().out and not config.cache.forecast.exists()


def test_only_what_is_not_encoded_is_forecast(planned: tuple[RunConfig, str]) -> None:
    config, _ = planned
    clips, videos = read_plan(config.cache), {video.id: video for video in read_manifest(config.cache)}
    first, *others = shards_of(clips).values()
    done = sidecar_path(config.cache.latents, first[0].shard)
    publish(done, b"")
    assert f"forecast: {len(clips) - len(first)} clips to encode" in make_forecast(config, clips, videos)
    gone = others[0][0].video
    left = [one for members in others for one in members if one.video != gone]
    removed = {**videos, gone: replace(videos[gone], removed=True)}
    assert f"forecast: {len(left)} clips to encode" in make_forecast(config, clips, removed)


def test_the_forecast_can_be_turned_off(planned: tuple[RunConfig, str], capsys: pytest.CaptureFixture) -> None:
    config, _ = planned
    off = config.model_copy(update={"encode": config.encode.model_copy(update={"forecast": False})})
    clips, videos = read_plan(config.cache), {video.id: video for video in read_manifest(config.cache)}
    assert compare_forecast(config, clips, videos, 1, 1.0, 1.0)
    assert compare_forecast(off, clips, videos, 1, 1.0, 1.0) == ""
    config.cache.forecast.unlink()
    assert compare_forecast(config, clips, videos, 1, 1.0, 1.0) == ""
    plan(off)
    assert "forecast: " not in capsys.readouterr().out and not config.cache.forecast.exists()


def test_a_bad_video_is_passed_over_and_all_bad_are_told(planned: tuple[RunConfig, str], tmp_path: Path) -> None:
    config, _ = planned
    clips, videos = read_plan(config.cache), {video.id: video for video in read_manifest(config.cache)}
    works = list(works_of(clips, videos))
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(b"no video")
    bad = [(replace(video, path=str(damaged)), members) for video, members in works[:1]]
    missing = [(replace(video, path=str(tmp_path / "gone.mp4")), members) for video, members in works[1:2]]
    with Sandbox(reader_limits(config.data)) as sandbox:
        rate = time_decoding(sandbox, [*bad, *missing, *works[2:5]])
        assert rate is not None and rate > 0
        assert time_decoding(sandbox, [*bad, *missing]) is None
    nowhere = {one: replace(video, path=str(tmp_path / "gone.mp4")) for one, video in videos.items()}
    assert "decoding could not be tried" in make_forecast(config, clips, nowhere)
    assert "decoding ? and 1 s of one core" in compare_forecast(config, clips, videos, 1, 1.0, 1.0)


def test_batches_are_even_so_that_fillers_are_not_counted(planned: tuple[RunConfig, str]) -> None:
    config, _ = planned
    two_shards = [clip(num_chunks=9), clip(200, shard="64x64/0000-000001")]
    assert estimate(config, two_shards, {VIDEO.id: VIDEO}, RATES).encode_s == pytest.approx((9 + 1) * 0.5)


def test_other_sizes_are_estimated_by_their_pixels() -> None:
    assert chunk_seconds(clip(), RATES) == pytest.approx(0.5)
    assert chunk_seconds(clip(height=128), RATES) == pytest.approx(1.0)
    image = clip(num_frames=1, valid_frames=1, height=96)
    assert chunk_seconds(image, RATES) == pytest.approx(0.15)


def test_a_decoder_passes_through_all_frames_from_the_first_to_the_last() -> None:
    assert megapixels(VIDEO, [clip(24)]) == pytest.approx(34 * 0.02)  # of 48 fps for 24
    assert megapixels(VIDEO, [clip(24), clip(96)]) == pytest.approx((2 * 72 + 34) * 0.02)
    assert megapixels(VIDEO, [clip(valid_frames=3)]) == pytest.approx(6 * 0.02)
    image = replace(VIDEO, num_frames=1, fps=1.0)
    assert megapixels(image, [clip(num_frames=1, valid_frames=1, fps=120.0)]) == pytest.approx(0.02)


def test_a_probe_of_a_long_video_is_bounded() -> None:
    huge = replace(VIDEO, height=4000, width=4000)  # 34 frames of 16 megapixels a chunk: one is too many already
    clips = [clip(17 * n) for n in range(10)]
    assert _beginning(huge, clips) == clips[:1]
    assert _beginning(VIDEO, clips) == clips
    medium = replace(VIDEO, height=1000, width=2000)
    few = _beginning(medium, clips)
    assert 1 < len(few) < 10 and megapixels(medium, few) <= PROBE_MEGAPIXELS < megapixels(medium, clips[: len(few) + 1])


def test_images_are_forecast_too(local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_mp4(tmp_path / "videos" / "one.mp4", np.zeros((1, 64, 64, 3), np.uint8), 8)
    write_mp4(tmp_path / "videos" / "many.mp4", np.zeros((20, 64, 64, 3), np.uint8), 8)
    config = cache_config(tmp_path / "videos", tmp_path)
    scan(config)
    plan(config)
    assert "forecast: 2 clips to encode" in capsys.readouterr().out
    timed = json.loads(config.cache.forecast.read_text())["rates"]["encode"]
    assert sorted(size["num_frames"] for size in timed) == [1, 17]
