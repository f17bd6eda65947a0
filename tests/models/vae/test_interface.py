"""What every VAE gets from the interface: checks, chunks, memory and normalization."""

from dataclasses import replace

import pytest
import torch
from einops import reduce, repeat
from torch import Tensor

from models.latent_spec import LatentSpec, Posterior
from models.vae.interface import VideoVAE, draw_noise, items_at_once, std_of

SPEC = LatentSpec(
    vae="pool",
    channels=3,
    stride=(4, 2, 2),
    chunk_frames=17,
    scaling_factor=0.5,
    shift=(0.1, -0.2, 0.3),
    scale=(2.0, 0.5, 1.5),
    dtype="float32",
    posterior="sample",
    config_sha256="",
    weights_sha256="",
)


class PoolVAE(VideoVAE):
    """Averages of pixels: of the first frame alone, then of four frames at a time. The std is a tenth of |mean|."""

    def __init__(self, spec: LatentSpec = SPEC) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("one", torch.ones(1))
        self.seen: list[tuple[int, int, torch.dtype]] = []  # (rows, frames, dtype) of every call

    def raw_moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append((pixels.shape[0], pixels.shape[2], pixels.dtype))
        first = reduce(pixels[:, :, :1], "b c t (h y) (w x) -> b c t h w", "mean", y=2, x=2)
        rest = reduce(pixels[:, :, 1:], "b c (t p) (h y) (w x) -> b c t h w", "mean", p=4, y=2, x=2)
        mean = torch.cat([first, rest], dim=2)
        return mean, mean.abs() / 10

    def raw_decode(self, latents: Tensor, num_frames: int) -> Tensor:
        self.seen.append((latents.shape[0], num_frames, latents.dtype))
        first = repeat(latents[:, :, :1], "b c t h w -> b c t (h y) (w x)", y=2, x=2)
        rest = repeat(latents[:, :, 1:], "b c t h w -> b c (t p) (h y) (w x)", p=4, y=2, x=2)
        return torch.cat([first, rest], dim=2)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values)[:, None, None, None]


def test_latents_are_scaled_then_shifted_then_divided() -> None:
    vae, pixels = PoolVAE(), noise(2, 3, 17, 4, 6)
    raw, raw_std = vae.raw_moments(pixels)
    mean, std = vae.moments(pixels)
    torch.testing.assert_close(mean, (raw * 0.5 - column(SPEC.shift)) / column(SPEC.scale))
    torch.testing.assert_close(vae.encode(pixels), mean)
    torch.testing.assert_close(std, raw_std * 0.5 / column(SPEC.scale))  # a shift moves a distribution, not its width


def test_the_normalized_log_variance_is_lower_by_twice_the_log_of_the_scale() -> None:
    plain = replace(SPEC, scaling_factor=1.0, scale=(1.0, 1.0, 1.0))
    scaled = replace(plain, scale=(2.0, 0.5, 1.5), shift=(9.0, 9.0, 9.0))
    pixels = noise(1, 3, 5, 4, 4)
    before, after = (PoolVAE(spec).moments(pixels)[1].log() * 2 for spec in (plain, scaled))
    torch.testing.assert_close(after, before - 2 * column(scaled.scale).log())


def test_decoding_undoes_the_normalization() -> None:
    vae, pixels = PoolVAE(), noise(2, 3, 34, 4, 6)
    chunks = torch.cat([vae.raw_decode(vae.raw_moments(part)[0], 17) for part in pixels.split(17, dim=2)], dim=2)
    torch.testing.assert_close(vae.decode(vae.encode(pixels), 34), chunks)


def test_chunks_are_independent_and_join_in_time() -> None:
    vae, pixels = PoolVAE(), noise(2, 3, 34 + 5, 4, 4)
    together = vae.encode(pixels)
    assert together.shape == (2, 3, 12, 2, 2)
    for part, latents in zip(pixels.split(17, dim=2), together.split(5, dim=2)):
        torch.testing.assert_close(vae.encode(part), latents)
        torch.testing.assert_close(vae.decode(latents, part.shape[2]), vae.raw_decode(vae.raw_moments(part)[0], 0))


@pytest.mark.parametrize("at_once", [1, 2, 4, 5, 100])
def test_memory_decides_how_many_chunks_meet_and_nothing_else(at_once: int) -> None:
    vae, pixels = PoolVAE(), noise(5, 3, 17, 4, 4)
    wanted, seen = vae.encode(pixels, seeded(*range(5))), [min(at_once, 5 - first) for first in range(0, 5, at_once)]
    vae.bytes_per_pixel, vae.memory_bytes, vae.seen = 10, 10 * 17 * 4 * 4 * at_once, []
    torch.testing.assert_close(vae.encode(pixels, seeded(*range(5))), wanted)
    assert [rows for rows, *_ in vae.seen] == seen
    vae.seen = []
    vae.decode(wanted, 17)
    assert [rows for rows, *_ in vae.seen] == seen


def test_at_least_one_item_goes_even_where_memory_is_short() -> None:
    assert [items_at_once(*given) for given in ((100, 99), (100, 100), (100, 350), (0, 7))] == [1, 1, 3, 7]


def test_a_sample_belongs_to_its_generator_not_to_its_batch() -> None:
    vae, pixels = PoolVAE(), noise(3, 3, 17, 4, 4)
    together = vae.encode(pixels, seeded(7, 8, 9))
    for row, seed in enumerate((7, 8, 9)):
        torch.testing.assert_close(vae.encode(pixels[row : row + 1], seeded(seed))[0], together[row])
    assert not torch.equal(vae.encode(pixels, seeded(7, 8, 8))[2], together[2])


def test_samples_have_the_mean_and_the_std_of_the_moments() -> None:
    vae, pixels = PoolVAE(), repeat(noise(3, 17, 2, 2), "c t h w -> b c t h w", b=4000)
    mean, std = (one[0] for one in vae.moments(pixels))
    samples = vae.encode(pixels, seeded(*range(4000)))
    torch.testing.assert_close(samples.mean(dim=0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(samples.std(dim=0), std, atol=0.01, rtol=0.05)


def test_chunks_of_one_clip_draw_one_after_the_other() -> None:
    vae, pixels = PoolVAE(), noise(1, 3, 34, 4, 4)
    generators = seeded(3)
    parts = [vae.encode(part, generators) for part in pixels.split(17, dim=2)]
    torch.testing.assert_close(vae.encode(pixels, seeded(3)), torch.cat(parts, dim=2))


def test_every_row_needs_its_generator() -> None:
    with pytest.raises(ValueError, match="1 generators for a batch of 2"):
        PoolVAE().encode(noise(2, 3, 17, 4, 4), seeded(0))


def test_noise_is_drawn_in_float32_row_by_row() -> None:
    drawn = draw_noise((2, 3, 4), seeded(1, 2))
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn[1], torch.randn(3, 4, generator=torch.Generator().manual_seed(2)))


def test_the_vae_computes_in_its_dtype_and_normalizes_in_float32() -> None:
    half, pixels = PoolVAE(replace(SPEC, dtype="bfloat16")), noise(1, 3, 17, 4, 4)
    mean, std = half.moments(pixels)
    assert mean.dtype == std.dtype == half.decode(mean, 17).dtype == torch.float32
    assert half.seen == [(1, 17, torch.bfloat16), (1, 17, torch.bfloat16)]
    raw = half.raw_moments(pixels.bfloat16())[0].float()
    assert torch.equal(mean, (raw * 0.5 - column(SPEC.shift)) / column(SPEC.scale))  # the constants are not rounded


def test_a_callers_autocast_changes_nothing() -> None:
    vae, pixels = PoolVAE(), noise(1, 3, 17, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vae.encode(pixels), PoolVAE().encode(pixels))


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 4, 17, 4, 4), torch.float32, r"shape \(1, 4, 17, 4, 4\), pool wants \(B, 3, T, H, W\)"),
        ((3, 17, 4, 4), torch.float32, "an image as a video of one frame"),
        ((1, 3, 17, 4, 4), torch.uint8, r"uint8, pool wants floats in \[-1, 1\]; use uint8 / 127.5 - 1"),
        ((1, 3, 0, 4, 4), torch.float32, "no frames"),
        ((1, 3, 16, 4, 4), torch.float32, r"16 frames: 16 are left .* 1\+4n, .* last 3 would be lost.* 13 or 17"),
        ((1, 3, 18 + 17, 4, 4), torch.float32, None),
        ((1, 3, 19, 4, 4), torch.float32, r"19 frames: 2 are left .* last 1 would be lost: give 18 or 22"),
        ((1, 3, 17, 5, 4), torch.float32, "height 5 is not a multiple of 2"),
        ((1, 3, 17, 4, 7), torch.float32, "width 7 is not a multiple of 2"),
    ],
)
def test_pixels_that_do_not_fit_are_refused(shape: tuple[int, ...], dtype: torch.dtype, message: str | None) -> None:
    pixels = torch.zeros(shape, dtype=dtype)
    for encode in (PoolVAE().encode, PoolVAE().moments, lambda one: PoolVAE().encode(one, seeded(0))):
        if message is None:
            encode(pixels)
            continue
        with pytest.raises(ValueError, match=message):
            encode(pixels)


@pytest.mark.parametrize(
    ("shape", "frames", "message"),
    [
        ((1, 4, 5, 2, 2), 17, r"pool wants \(B, 3, t, h, w\)"),
        ((1, 3, 5, 2, 2), 34, "34 frames are 10 latents in pool, found 5"),
        ((1, 3, 5, 2, 2), 0, "found 5"),
    ],
)
def test_latents_that_do_not_fit_are_refused(shape: tuple[int, ...], frames: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoolVAE().decode(torch.zeros(shape), frames)


def test_a_standard_deviation_is_bounded_as_in_training() -> None:
    found = std_of(torch.tensor([-100.0, -30.0, 0.0, 20.0, 100.0]))
    torch.testing.assert_close(found, torch.exp(torch.tensor([-15.0, -15.0, 0.0, 10.0, 10.0])))
    assert std_of(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("posterior", ["mean", "sample", "moments"])
def test_what_is_cached_does_not_change_what_the_interface_gives(posterior: Posterior) -> None:
    pixels = noise(1, 3, 17, 4, 4)
    vae = PoolVAE(replace(SPEC, posterior=posterior))
    assert torch.equal(vae.encode(pixels, seeded(0)), PoolVAE().encode(pixels, seeded(0)))
