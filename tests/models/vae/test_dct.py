"""`dct` decodes to the orthogonal projection of the pixels, chunk by chunk, and its latents are normalized."""

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from einops import einsum, rearrange, repeat
from torch import Tensor

from models.vae import load_vae
from models.vae.dct import DCTVAE, MAX_CHANNELS, TABLE, frame_coefficients

CHANNELS = (1, 3, 16, 32, 64)


@cache
def vae_of(channels: int = 16) -> DCTVAE:
    return load_dct(channels)


def load_dct(channels: int = 16, chunk_frames: int = 17) -> DCTVAE:
    vae = load_vae(f"dct:{channels}", chunk_frames=chunk_frames)
    assert isinstance(vae, DCTVAE)
    return vae


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def project(pixels: Tensor, vae: DCTVAE) -> Tensor:
    return vae.decode(vae.encode(pixels), pixels.shape[2])


def inner(one: Tensor, other: Tensor) -> float:
    return (one.double() * other.double()).sum().item()


def cosines(size: int) -> np.ndarray:
    """The textbook orthonormal DCT-II, entry by entry: (frequency, position)."""
    return np.array(
        [
            [
                math.sqrt((1 if k == 0 else 2) / size) * math.cos(math.pi * (2 * n + 1) * k / (2 * size))
                for n in range(size)
            ]
            for k in range(size)
        ]
    )


OPPONENT = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
AXES = "YRM"


def transform(blocks: np.ndarray) -> np.ndarray:
    """(..., 3, frames, 8, 8), pixels -> coefficients of the same shape, by the full separable transform."""
    turned = einsum(blocks, OPPONENT, cosines(blocks.shape[-3]), "... a p y x, c a, t p -> ... c t y x")
    return einsum(turned, cosines(8), cosines(8), "... c t y x, v y, u x -> ... c t v u")


def restore(coefficients: np.ndarray) -> np.ndarray:
    """The inverse of `transform`, by the transposes of its matrices."""
    turned = einsum(coefficients, cosines(8), cosines(8), "... c t v u, v y, u x -> ... c t y x")
    return einsum(turned, OPPONENT, cosines(coefficients.shape[-3]), "... c t y x, c a, t p -> ... a p y x")


def kept(rows: tuple, frames: int) -> np.ndarray:
    """True where a coefficient of a block is kept: (3, frames, 8, 8)."""
    mask = np.zeros((3, frames, 8, 8), dtype=bool)
    for row in rows:
        mask[AXES.index(row.colour), row.t, row.y, row.x] = True
    assert mask.sum() == len(rows)
    return mask


def expected_projection(chunk: np.ndarray, channels: int) -> np.ndarray:
    """(3, 17, 8, 8), one block wide: the full transform, zeros for what is not kept, and back."""
    first = transform(chunk[:, :1]) * kept(frame_coefficients(channels), 1)
    groups = transform(rearrange(chunk[:, 1:], "c (t p) y x -> t c p y x", p=4)) * kept(TABLE[:channels], 4)
    return np.concatenate([restore(first), rearrange(restore(groups), "t c p y x -> c (t p) y x")], axis=1)


# The projection


@pytest.mark.parametrize("channels", CHANNELS)
def test_decoding_is_the_full_transform_with_the_other_coefficients_zeroed(channels: int):
    pixels = noise(1, 3, 17, 16, 24)
    found = project(pixels, vae_of(channels))
    for y in (0, 8):
        for x in (0, 8, 16):
            block = pixels[0, :, :, y : y + 8, x : x + 8].double().numpy()
            expected = torch.from_numpy(expected_projection(block, channels)).float()
            torch.testing.assert_close(found[0, :, :, y : y + 8, x : x + 8], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("frames", [1, 4, 5, 8, 16, 17, 18, 21, 34])
@pytest.mark.parametrize("channels", [3, 16, 64])
def test_decoding_is_an_orthogonal_projection(channels: int, frames: int):
    vae = vae_of(channels)
    one, other = noise(2, 3, frames, 16, 16, seed=1), noise(2, 3, frames, 16, 16, seed=2)
    projected = project(one, vae)
    torch.testing.assert_close(project(projected, vae), projected, atol=1e-5, rtol=0)
    assert abs(inner(one - projected, projected)) < 1e-5 * inner(one, one)
    assert abs(inner(one, project(other, vae)) - inner(projected, other)) < 1e-5 * inner(one, one)


@pytest.mark.parametrize("channels", CHANNELS)
def test_every_latent_survives_decoding_and_encoding(channels: int):
    latents = torch.randn(2, channels, 10, 2, 3, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        vae_of(channels).encode(vae_of(channels).decode(latents, 34)), latents, atol=2e-4, rtol=0
    )


def test_more_channels_keep_everything_that_fewer_do():
    pixels = noise(1, 3, 17, 16, 16)
    for fewer, more in pairwise(CHANNELS):
        less = project(pixels, vae_of(fewer))
        groups_of_both = project(project(pixels, vae_of(more)), vae_of(fewer))[:, :, 1:]
        torch.testing.assert_close(groups_of_both, less[:, :, 1:], atol=1e-5, rtol=0)
        assert (pixels - project(pixels, vae_of(more))).norm() < (pixels - less).norm()


# The order of the coefficients


def test_the_averages_of_all_three_colours_are_kept_first():
    assert {(row.colour, row.t, row.y, row.x) for row in TABLE[:3]} == {(colour, 0, 0, 0) for colour in AXES}


def test_the_strongest_come_first():
    scales = [row.scale for row in TABLE]
    assert scales == sorted(scales, reverse=True)


@pytest.mark.parametrize("channels", range(1, MAX_CHANNELS + 1))
def test_a_lone_frame_uses_every_channel_once(channels: int):
    rows = frame_coefficients(channels)
    assert len({(row.colour, row.y, row.x) for row in rows}) == channels
    for group, lone in zip(TABLE[:channels], rows):
        assert lone.t == 0
        assert lone == group or group.t > 0


@pytest.mark.parametrize("channels", [16, 64])
def test_a_lone_frame_looks_like_a_group_that_repeats_it(channels: int):
    frame = noise(1, 3, 1, 16, 16)
    lone = vae_of(channels).encode(frame)
    group = vae_of(channels).encode(repeat(frame, "b c 1 h w -> b c 4 h w"))
    still = [number for number, row in enumerate(TABLE[:channels]) if row.t == 0]
    moving = [number for number, row in enumerate(TABLE[:channels]) if row.t > 0]
    torch.testing.assert_close(lone[:, still], group[:, still], atol=1e-5, rtol=0)
    assert group[:, moving].abs().max() < 1e-4
    assert lone[:, moving].abs().amin(dim=(0, 2, 3, 4)).min() > 0


# Chunks


def test_chunks_are_independent():
    pixels = noise(1, 3, 34, 16, 16)
    together = vae_of().encode(pixels)
    assert together.shape == (1, 16, 10, 2, 2)
    assert torch.equal(together[:, :, :5], vae_of().encode(pixels[:, :, :17]))
    assert torch.equal(together[:, :, 5:], vae_of().encode(pixels[:, :, 17:]))
    alone = vae_of().decode(together[:, :, 5:], 17)
    torch.testing.assert_close(vae_of().decode(together, 34)[:, :, 17:], alone, atol=1e-6, rtol=0)  # a batch rounds


@pytest.mark.parametrize(
    ("frames", "latents"),
    [
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 1),
        (5, 2),
        (16, 4),
        (17, 5),
        (18, 6),
        (20, 6),
        (33, 9),
        (34, 10),
        (51, 15),
        (102, 30),
    ],
)
def test_any_number_of_frames_comes_back(frames: int, latents: int):
    pixels = noise(2, 3, frames, 8, 16)
    found = vae_of().encode(pixels)
    assert found.shape == (2, *vae_of().spec.latent_shape(frames, 8, 16)) == (2, 16, latents, 1, 2)
    decoded = vae_of().decode(found, frames)
    assert decoded.shape == pixels.shape
    assert found.dtype == decoded.dtype == torch.float32


@pytest.mark.parametrize("chunk_frames", [1, 5, 33])
def test_another_chunk_length_only_moves_the_lone_frames(chunk_frames: int):
    vae, pixels = load_dct(16, chunk_frames), noise(1, 3, 2 * chunk_frames, 8, 8)
    latents = vae.encode(pixels)
    assert latents.shape[2] == 2 * (1 + chunk_frames // 4)
    second = pixels[:, :, chunk_frames : chunk_frames + 1]
    torch.testing.assert_close(latents[:, :, latents.shape[2] // 2], vae_of().encode(second)[:, :, 0])


@pytest.mark.parametrize("frames", [2, 3, 19, 20, 23])
def test_a_last_group_is_filled_up_with_its_last_frame(frames: int):
    pixels = noise(1, 3, frames, 8, 8)
    filled = torch.cat([pixels] + [pixels[:, :, -1:]] * (-(frames % 17) % 4), dim=2)
    assert torch.equal(vae_of().encode(pixels), vae_of().encode(filled))
    assert torch.equal(project(pixels, vae_of()), project(filled, vae_of())[:, :, :frames])


# Normalization


@pytest.mark.parametrize("channels", [16, 64])
def test_denormalized_latents_are_the_coefficients(channels: int):
    pixels = noise(1, 3, 5, 8, 8)
    spec = vae_of(channels).spec
    raw = vae_of(channels).encode(pixels)[0, :, :, 0, 0].double() * torch.tensor(spec.scale)[:, None]
    raw = (raw + torch.tensor(spec.shift)[:, None]).numpy()
    group, lone = transform(pixels[0, :, 1:].double().numpy()), transform(pixels[0, :, :1].double().numpy())
    for number, (row, own) in enumerate(zip(TABLE, frame_coefficients(channels))):
        assert raw[number, 1] == pytest.approx(group[AXES.index(row.colour), row.t, row.y, row.x], abs=1e-4)
        in_own_unit = 2 * lone[AXES.index(own.colour), 0, own.y, own.x] / own.scale
        assert raw[number, 0] / row.scale == pytest.approx(in_own_unit, abs=1e-4)


def test_nothing_is_left_to_chance():
    pixels = noise(1, 3, 17, 8, 8)
    mean, std = vae_of().moments(pixels)
    assert std.shape == mean.shape and not std.any()
    assert torch.equal(vae_of().encode(pixels, [torch.Generator().manual_seed(0)] * len(pixels)), mean)


def test_a_gentle_scene_has_latents_of_about_one():
    """A shaded background over which a soft blob drifts: most of it in the averages, no channel out of proportion."""
    time, y, x = torch.meshgrid(torch.arange(17) / 24, torch.arange(64) / 64, torch.arange(64) / 64, indexing="ij")
    blob = torch.exp(-((x - 0.3 - 0.5 * time) ** 2 + (y - 0.5) ** 2) / 0.02)
    pixels = torch.stack([1.2 * blob - 0.6 * y, 0.8 * blob - 0.5 * x, 0.3 * blob - 0.4])[None]
    latents = vae_of().encode(pixels)
    assert latents.abs().max() < 6
    assert 0.1 < latents.std() < 2
    assert (pixels - project(pixels, vae_of())).square().mean() < 1.3e-3  # 35 dB


# Colour


@pytest.mark.parametrize(
    "colour", [(1.0, -1.0, -1.0), (-1.0, 1.0, -1.0), (-1.0, -1.0, 1.0), (1.0, 1.0, 1.0), (0.2, 0.7, -0.4)]
)
@pytest.mark.parametrize("frames", [1, 3, 17])
def test_flat_colour_survives(colour: tuple[float, float, float], frames: int):
    pixels = repeat(torch.tensor(colour), "c -> 1 c t 16 16", t=frames)
    torch.testing.assert_close(project(pixels, vae_of()), pixels, atol=1e-3, rtol=0)


# What is refused


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (torch.zeros(3, 17, 16, 16), r"\(3, 17, 16, 16\).*wants \(B, 3, T, H, W\)"),
        (torch.zeros(1, 4, 17, 16, 16), r"\(1, 4, 17, 16, 16\).*wants \(B, 3, T, H, W\)"),
        (torch.zeros(1, 3, 17, 20, 16), "height 20 is not a multiple of 8.*use 16 or 24"),
        (torch.zeros(1, 3, 17, 16, 4), "width 4 is not a multiple of 8"),
        (torch.zeros(1, 3, 17, 16, 16, dtype=torch.uint8), r"uint8.*floats in \[-1, 1\]"),
        (torch.zeros(1, 3, 0, 16, 16), "no frames"),
    ],
)
def test_what_are_no_pixels_is_refused(pixels: Tensor, reason: str):
    with pytest.raises(ValueError, match=reason):
        vae_of().encode(pixels)


@pytest.mark.parametrize("frames", [0, 4, 16, 18, 34])
def test_five_latents_are_seventeen_frames_and_no_other_number(frames: int):
    with pytest.raises(ValueError, match=rf"{frames} frames are \d+ latents in dct, found 5"):
        vae_of().decode(torch.zeros(1, 16, 5, 2, 2), frames)


def test_latents_of_another_vae_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 4, 5, 2, 2\), dct wants \(B, 16, t, h, w\)"):
        vae_of().decode(torch.zeros(1, 4, 5, 2, 2), 17)


def test_the_table_is_part_of_the_fingerprint(monkeypatch: pytest.MonkeyPatch):
    before = load_dct().spec
    # A row that sixteen channels do not show in their shift and scale, but whose place decides what is kept.
    monkeypatch.setattr("models.vae.dct.TABLE", (*TABLE[:-2], TABLE[-1], TABLE[-2]))
    after = load_dct().spec
    assert (after.shift, after.scale) == (before.shift, before.scale)
    assert after.fingerprint() != before.fingerprint()
