"""Frames that reach a VAE otherwise than it wants them are found by what comes back, and the cause is named."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from einops import rearrange
from torch import Tensor

from models.vae import load_vae
from models.vae.dct import DCTVAE
from models.vae.interface import VideoVAE
from pipeline.encode import to_pixels
from pipeline.errors import Refused
from pipeline.gate import RoundTrips, drift, value_problem
from pipeline.stats import ChannelStats


def picture(low: int, high: int, seed: int = 0) -> np.ndarray:
    """A chunk (17, 64, 64, 3) of soft colours that move, from `low` to `high`: neither grey nor symmetrical."""
    grid = torch.rand((1, 3, 6, 6), generator=torch.Generator().manual_seed(seed)) * (high - low) + low
    wide = torch.nn.functional.interpolate(grid, (64, 96), mode="bilinear").round().to(torch.uint8)[0]  # (3, 64, 96)
    return np.stack([rearrange(wide[:, :, frame : frame + 64], "c h w -> h w c").numpy() for frame in range(17)])


DARK, BRIGHT = picture(0, 140), picture(215, 255)
NOISE = np.random.default_rng(0).integers(
    0, 256, (17, 64, 64, 3), dtype=np.uint8
)  # of which 16 coefficients keep little


def encoded(vae: VideoVAE, frames: np.ndarray, give: Callable[[Tensor], Tensor] = lambda pixels: pixels) -> np.ndarray:
    """What is cached of one chunk (c, t, h, w) when the VAE is given `give` of its pixels."""
    return vae.encode(give(to_pixels(torch.from_numpy(frames[None])))).to(torch.float16).numpy()[0]


def check_all(vae: VideoVAE, chunks: list[np.ndarray], latents: list[np.ndarray], min_psnr: float = 15.0) -> RoundTrips:
    trips = RoundTrips(len(chunks), len(chunks), min_psnr)
    for frames, cached in zip(chunks, latents, strict=True):
        trips.check(vae, frames, cached)
    trips.finish()
    return trips


MISTAKES: dict[str, Callable[[Tensor], Tensor]] = {
    "pixels in [0, 1]": lambda pixels: (pixels + 1) / 2,
    "pixels in [0, 255]": lambda pixels: (pixels + 1) * 127.5,
    "BGR pixels": lambda pixels: pixels[:, [2, 1, 0]],
    "pixels with height and width swapped": lambda pixels: rearrange(pixels, "b c t h w -> b c t w h"),
    "frames from last to first": lambda pixels: pixels[:, :, list(range(16, -1, -1))],
}


def test_chunks_that_come_back_pass() -> None:
    vae = load_vae("dct")
    trips = check_all(vae, [DARK, BRIGHT], [encoded(vae, DARK), encoded(vae, BRIGHT)])
    assert min(trips.found) > 25


@pytest.mark.parametrize("name", MISTAKES)
def test_what_the_vae_was_given_by_mistake_is_named_at_once(name: str) -> None:
    vae, frames = load_vae("dct"), picture(0, 255)
    trips = RoundTrips(1, 1, min_psnr=20)
    with pytest.raises(Refused, match="chunks come back") as refused:
        trips.check(vae, frames, encoded(vae, frames, MISTAKES[name]))
    assert f"taken as {name} they have" in str(refused.value)


@pytest.mark.parametrize(
    "name, chunk", [("pixels in [0, 1]", picture(150, 255)), ("BGR pixels", picture(100, 170))], ids=["bright", "grey"]
)
def test_a_mistake_that_costs_little_is_named_at_the_end_of_the_shard(name: str, chunk: np.ndarray) -> None:
    """Where all is bright, [0, 1] looks much like [-1, 1]; where all is grey, so do BGR and RGB."""
    vae = load_vae("dct")
    wrong = encoded(vae, chunk, MISTAKES[name])
    with pytest.raises(Refused, match="chunks come back") as refused:
        check_all(vae, [chunk] * 3, [wrong, wrong, encoded(vae, chunk)])
    assert f"2 of 3 are clearly better as {name}" in str(refused.value)
    check_all(vae, [chunk] * 4, [wrong, encoded(vae, chunk)] * 2)  # half of the chunks are no proof


class Clipping(DCTVAE):
    """`dct` as a trained VAE is: of no use outside of the range that it knows."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__(load_vae("dct").spec)
        self.low, self.high = low, high

    def raw_moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return super().raw_moments(pixels.clamp(self.low, self.high))


def test_a_vae_that_wants_another_range_is_told() -> None:
    vae = Clipping(0, 1)
    with pytest.raises(
        Refused, match=r"given pixels in \[0, 1\] they come back with \d\d\.\d dB: this VAE wants those"
    ):
        RoundTrips(1, 1, 15).check(vae, DARK, encoded(vae, DARK))


def test_what_encode_gave_is_blamed_where_the_same_frames_do_well_alone() -> None:
    vae = Clipping(-1, 1)
    with pytest.raises(Refused, match=r"given alone, as RGB pixels in \[-1, 1\], they come back with \d\d\.\d dB"):
        RoundTrips(1, 1, 15).check(vae, DARK, encoded(vae, DARK, MISTAKES["pixels in [0, 255]"]))


def test_hard_chunks_alone_are_no_mistake() -> None:
    """One of three does not matter; a shard of nothing else is refused without a cause."""
    vae = load_vae("dct")
    noise, fine = encoded(vae, NOISE), encoded(vae, DARK)
    assert check_all(vae, [NOISE, DARK, DARK], [noise, fine, fine]).found[0] < 12
    with pytest.raises(Refused, match="no other range or order of pixels does better"):
        check_all(vae, [NOISE, NOISE, DARK], [noise, noise, fine])


@pytest.mark.parametrize("name", MISTAKES)
def test_nothing_is_refused_where_no_psnr_is_asked_for(name: str) -> None:
    vae, frames = load_vae("dct"), picture(0, 255)
    latents = encoded(vae, frames, MISTAKES[name])
    trips = check_all(vae, [frames], [latents], min_psnr=0)
    trips.check_bad(vae, frames, latents, "bad")
    assert len(trips.found) == 1


def test_an_image_is_a_chunk_too() -> None:
    vae, image = load_vae("dct"), picture(0, 255)[:1]
    check_all(vae, [image], [encoded(vae, image)])
    with pytest.raises(Refused, match=r"taken as pixels in \[0, 1\]"):
        check_all(vae, [image], [encoded(vae, image, MISTAKES["pixels in [0, 1]"])])


def test_a_bucket_that_is_not_square_is_compared_as_it_is() -> None:
    vae, wide = load_vae("dct"), picture(0, 255)[:, :32]
    with pytest.raises(Refused, match=r"taken as pixels in \[0, 1\]"):
        check_all(vae, [wide], [encoded(vae, wide, MISTAKES["pixels in [0, 1]"])])


def test_the_chunks_that_are_checked_are_spread_over_the_shard() -> None:
    def checked(num_chunks: int, count: int) -> list[int]:
        trips = RoundTrips(num_chunks, count, 15)
        return [number for number in range(num_chunks) if trips.wants(number)]

    assert checked(100, 4) == [0, 25, 50, 75]
    assert checked(3, 4) == [0, 1, 2]
    assert checked(5, 1) == [0]
    assert checked(5, 0) == checked(0, 4) == []


@pytest.mark.parametrize(
    "value, told",
    [(np.nan, "1 of 64 latents are not finite"), (np.inf, "not finite"), (-1001, "a normalized latent of 1001")],
)
def test_values_that_no_latents_have(value: float, told: str) -> None:
    latents = np.zeros((4, 1, 4, 4), np.float16)
    assert value_problem(latents) == ""
    latents[3, 0, 2, 1] = value
    assert told in value_problem(latents)


@pytest.mark.parametrize("frames, back", [(DARK, 1e30), (BRIGHT, 1.0)], ids=["dark", "bright"])
def test_bad_values_are_the_videos_fault_where_the_vae_makes_them_of_the_right_pixels(
    frames: np.ndarray, back: float
) -> None:
    """Also where it would bring them back if float16 held them, or where white comes back of bright frames."""

    class Overflowing(DCTVAE):
        def raw_moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
            mean, std = super().raw_moments(pixels)
            return mean * 1e30, std

        def raw_decode(self, latents: Tensor, num_frames: int) -> Tensor:
            return super().raw_decode(latents / back, num_frames)

    vae = Overflowing(load_vae("dct").spec)
    latents = encoded(vae, frames)
    assert "not finite" in value_problem(latents)
    RoundTrips(1, 1, 15).check_bad(vae, frames, latents, value_problem(latents))
    RoundTrips(1, 1, 15).check_bad(vae, frames, np.nan_to_num(latents), "too large")


def test_bad_values_stop_the_run_where_the_right_pixels_do_not_give_them() -> None:
    vae, frames = load_vae("dct"), np.zeros((17, 64, 64, 3), np.uint8)
    frames[:, :, 4::16] = frames[:, :, 5::16] = 255  # lines
    latents = encoded(vae, frames, MISTAKES["pixels in [0, 255]"])
    problem = value_problem(latents)
    assert "wanted at most 1000" in problem
    with pytest.raises(Refused, match=r"wanted at most 1000; taken as pixels in \[0, 255\] they have"):
        RoundTrips(1, 1, 15).check_bad(vae, frames, latents, problem)
    with pytest.raises(Refused, match="not finite.*given alone, as RGB pixels"):
        RoundTrips(1, 1, 15).check_bad(vae, frames, latents * np.float16(np.nan), "not finite")


def latents_like(means: list[float], stds: list[float]) -> ChannelStats:
    chance = np.random.default_rng(0)
    values = [chance.normal(mean, std, (20, 8, 8)) for mean, std in zip(means, stds)]
    return ChannelStats.of(np.array(values).astype(np.float16))


def test_drift_names_the_channels_that_are_not_about_0_and_1() -> None:
    assert not drift(latents_like([0.5, -2, 0], [0.7, 2, 0.01]), 3)  # as grey videos have it
    [far] = drift(latents_like([0, -4, 0], [1, 1, 1]), 3)
    assert far.startswith("channel 1: mean -4")
    [wide] = drift(latents_like([0, 0, 0], [1, 1, 6]), 3)
    assert wide.startswith("channel 2: mean") and "std 6" in wide
    [narrow] = drift(latents_like([0, 0, 0], [0.1, 0.1, 1]), 3)
    assert narrow.startswith("std 0.1") and "median channel" in narrow


def test_of_moments_only_the_samples_drift() -> None:
    assert not drift(latents_like([0, 0, 0.1, 0.1], [1, 1, 0.01, 0.01]), 2)
    assert drift(latents_like([0, 0, 7, 7], [1, 1, 0.01, 0.01]), 2)
