"""Pixels reach the VAE in [-1, 1], channels first; latents leave it as finite float16."""

import numpy as np
import pytest
import torch

from models.vae import load_vae
from pipeline.encode import encode_chunks

COLOURS = {"black": (0, 0, 0), "white": (255, 255, 255), "red": (255, 0, 0), "blue": (0, 0, 255)}


def flat(colour: tuple[int, int, int], height: int = 16, width: int = 24) -> np.ndarray:
    return np.full((1, 17, height, width, 3), colour, np.uint8)


def test_latents_are_float16_of_the_shape_the_spec_says() -> None:
    vae = load_vae("dct:8")
    latents = encode_chunks(vae, np.zeros((2, 17, 16, 24, 3), np.uint8))
    assert latents.dtype == np.float16
    assert latents.shape == (2, *vae.spec.latent_shape(17, 16, 24)) == (2, 8, 5, 2, 3)


@pytest.mark.parametrize("name", COLOURS)
def test_black_is_minus_one_and_white_is_one(name: str) -> None:
    vae = load_vae("dct")
    latents = torch.from_numpy(encode_chunks(vae, flat(COLOURS[name]))).float()
    pixels = vae.decode(latents, 17)  # (1, 3, 17, 16, 24)
    for channel, level in enumerate(COLOURS[name]):
        wanted = torch.full_like(pixels[:, channel], level / 127.5 - 1)
        assert torch.allclose(pixels[:, channel], wanted, atol=0.004)


def test_time_and_place_are_kept() -> None:
    frames = np.zeros((1, 17, 16, 24, 3), np.uint8)
    frames[:, 9:, :8, 16:] = 255  # from the tenth frame on, top right
    vae = load_vae("dct")
    pixels = vae.decode(torch.from_numpy(encode_chunks(vae, frames)).float(), 17)
    assert torch.allclose(pixels, torch.from_numpy(frames).permute(0, 4, 1, 2, 3) / 127.5 - 1, atol=0.02)


def test_a_chunk_does_not_depend_on_its_neighbours() -> None:
    vae = load_vae("dct")
    frames = np.random.default_rng(0).integers(0, 256, (3, 17, 16, 24, 3), dtype=np.uint8)
    together = encode_chunks(vae, frames)
    swapped = encode_chunks(vae, frames[::-1].copy())
    assert np.array_equal(swapped[::-1], together)


@pytest.mark.parametrize("scale", [0.0, 1e-6])
def test_what_float16_cannot_hold_is_refused(scale: float) -> None:
    vae = load_vae("dct")
    vae.get_buffer("scale").fill_(scale)
    with pytest.raises(FloatingPointError, match="dct gave latents that are not finite"):
        encode_chunks(vae, flat((10, 20, 30)))
