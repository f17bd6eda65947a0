"""A VAE that is given the wrong pixels stops the run in its first shard; values that are none cost one video."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ray

from jobs.config import RunConfig
from jobs.encode import ShardEncoder, encode
from jobs.events import read_events
from jobs.mp4 import write_mp4
from jobs.plan import plan
from jobs.scan import scan
from models.vae.interface import VideoVAE
from pipeline.errors import Refused
from pipeline.quarantine import read_quarantine
from pipeline.records import Sample
from pipeline.sample import read_array
from pipeline.shard import Member
from pipeline.tables import read_records
from pipeline.tar_reader import TarReader
from tests.conftest import before_encoding, cache_config, digests
from tests.test_end_to_end import moving_bar

Spoil = Callable[[VideoVAE], None]  # what is done to an encoder's VAE, or in its process


def encode_with(patch: pytest.MonkeyPatch, spoil: Spoil, config: RunConfig) -> int:
    """The real verb, with actors that are spoilt."""

    class Spoiled(ShardEncoder):
        def __init__(self, config: RunConfig, decode_labels: dict[str, str]) -> None:
            ShardEncoder.__init__(self, config, decode_labels)
            spoil(self.vae)

    with patch.context() as during:
        during.setattr("jobs.encode.Encoder", ray.remote(Spoiled))
        return encode(config)


def make_vae_expect_0_to_1() -> Spoil:
    def spoil(vae: VideoVAE) -> None:
        exact = vae.raw_moments
        vae.raw_moments = lambda pixels: exact((pixels + 1) / 2)

    return spoil


def make_pixels_0_to_255() -> Spoil:
    def spoil(vae: VideoVAE) -> None:
        import pipeline.encode
        from pipeline.encode import to_pixels

        pipeline.encode.to_pixels = lambda frames: (to_pixels(frames) + 1) * 127.5

    return spoil


def make_bright_chunks_overflow() -> Spoil:
    def spoil(vae: VideoVAE) -> None:
        exact = vae.raw_moments

        def overflow(pixels):  # (B, 3, F, H, W)
            mean, std = exact(pixels)
            mean[pixels.mean(dim=(1, 2, 3, 4)) > 0.5] *= 1e30
            return mean, std

        vae.raw_moments = overflow

    return spoil


@pytest.fixture
def planned(cached: RunConfig, tmp_path: Path) -> RunConfig:
    return before_encoding(cached, tmp_path)


@pytest.mark.parametrize(
    "spoil, named",
    [
        (make_vae_expect_0_to_1(), r"taken as pixels in \[0, 1\]"),
        pytest.param(make_pixels_0_to_255(), r"taken as pixels in \[0, 255\]", marks=pytest.mark.slow),
    ],
    ids=["vae", "frames"],
)
def test_a_wrong_pixel_range_stops_the_run_before_anything_is_committed(
    cached: RunConfig, planned: RunConfig, monkeypatch: pytest.MonkeyPatch, spoil: Spoil, named: str
) -> None:
    with pytest.raises(Refused, match=named):
        encode_with(monkeypatch, spoil, planned)
    left = [path.name for path in Path(planned.data.cache, "latents").rglob("*") if path.is_file()]
    assert all(name.startswith(".") and name.endswith(".tmp") for name in left)  # of the next shard
    assert not planned.cache.index.exists()
    assert not read_quarantine(planned.cache)
    encode(planned)
    assert digests(Path(planned.data.cache, "latents")) == digests(Path(cached.data.cache, "latents"))


def test_a_video_whose_latents_overflow_is_set_aside_and_the_others_stay_as_they_are(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = tmp_path / "videos"
    write_mp4(videos / "a.mp4", moving_bar(34, 1), 8)
    write_mp4(videos / "bright.mp4", np.full((34, 64, 64, 3), 240, np.uint8), 8)
    write_mp4(videos / "c.mp4", moving_bar(34, 2), 8)
    found = []
    for name in ("one", "other"):
        config = cache_config(videos, tmp_path / name, "recipe.scenes=off", "encode.forecast=false")
        scan(config)
        plan(config)
        found.append(config)
    encode(found[0])
    assert encode_with(monkeypatch, make_bright_chunks_overflow(), found[1]) == 1
    [aside] = read_quarantine(found[1].cache)
    assert (Path(aside.path).name, aside.stage) == ("bright.mp4", "encode")
    assert "not finite in float16" in aside.reason
    whole, rest = ({one.key: latents_of(config, one) for one in samples(config)} for config in found)
    assert len(rest) == 2 and len(whole) == 3
    assert all(np.array_equal(rest[key], whole[key]) for key in rest)


def samples(config: RunConfig) -> list[Sample]:
    return read_records([config.cache.index], Sample)


def latents_of(config: RunConfig, sample: Sample) -> np.ndarray:
    member = Member(sample.latent_offset, sample.latent_bytes, sample.latent_crc32c)
    return read_array(TarReader(config.cache.latents).read(sample.shard, member))


@pytest.mark.slow
def test_drift_is_told_and_stops_nothing(
    shapes: Path, local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = cache_config(shapes, tmp_path, "recipe.scaling_factor=20", "encode.forecast=false")
    for verb in (scan, plan, encode):
        verb(config)
    shards = [event for event in read_events(config.cache.events) if event["event"] == "shard"]
    assert len(shards) > 1 and all(event["drift"] for event in shards)
    assert capsys.readouterr().out.count("latents are not about mean 0 and std 1: channel") == 1


def test_what_came_back_of_checked_chunks_stands_in_the_index_and_the_events(cached: RunConfig) -> None:
    told = [psnr for event in read_events(cached.cache.events) if event["event"] == "shard" for psnr in event["psnr"]]
    checked = [sample.psnr for sample in samples(cached) if not np.isnan(sample.psnr)]
    assert len(checked) > 2 and min(checked) > 20
    assert min(told) == pytest.approx(min(checked), abs=6) and len(told) >= len(checked)
