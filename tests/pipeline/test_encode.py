"""Pixels reach the VAE in [-1, 1], channels first; latents leave it as finite float16."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.latent_spec import Posterior
from models.vae import load_vae
from models.vae.interface import VideoVAE
from pipeline.encode import batch_size, chunk_seed, chunks_at_once, encode_chunks
from pipeline.gate import value_problem

COLOURS = {"black": (0, 0, 0), "white": (255, 255, 255), "red": (255, 0, 0), "blue": (0, 0, 255)}


def flat(colour: tuple[int, int, int], height: int = 16, width: int = 24) -> np.ndarray:
    return np.full((1, 17, height, width, 3), colour, np.uint8)


def test_latents_are_float16_of_the_shape_the_spec_says() -> None:
    vae = load_vae("dct:8")
    latents = encode_chunks(vae, np.zeros((2, 17, 16, 24, 3), np.uint8), [0, 0])
    assert latents.dtype == np.float16
    assert latents.shape == (2, *vae.spec.latent_shape(17, 16, 24)) == (2, 8, 5, 2, 3)


@pytest.mark.parametrize("name", COLOURS)
def test_black_is_minus_one_and_white_is_one(name: str) -> None:
    vae = load_vae("dct")
    latents = torch.from_numpy(encode_chunks(vae, flat(COLOURS[name]), [0])).float()
    pixels = vae.decode(latents, 17)  # (1, 3, 17, 16, 24)
    for channel, level in enumerate(COLOURS[name]):
        wanted = torch.full_like(pixels[:, channel], level / 127.5 - 1)
        assert torch.allclose(pixels[:, channel], wanted, atol=0.004)


def test_time_and_place_are_kept() -> None:
    frames = np.zeros((1, 17, 16, 24, 3), np.uint8)
    frames[:, 9:, :8, 16:] = 255  # from the tenth frame on, top right
    vae = load_vae("dct")
    pixels = vae.decode(torch.from_numpy(encode_chunks(vae, frames, [0])).float(), 17)
    assert torch.allclose(pixels, torch.from_numpy(frames).permute(0, 4, 1, 2, 3) / 127.5 - 1, atol=0.02)


def test_a_chunk_does_not_depend_on_its_neighbours() -> None:
    vae = load_vae("dct")
    frames = np.random.default_rng(0).integers(0, 256, (3, 17, 16, 24, 3), dtype=np.uint8)
    together = encode_chunks(vae, frames, [0, 1, 2])
    swapped = encode_chunks(vae, frames[::-1].copy(), [2, 1, 0])
    assert np.array_equal(swapped[::-1], together)


@pytest.mark.parametrize("scale", [1e-30, 1e-6])
def test_what_float16_cannot_hold_stays_visible_to_the_gate(scale: float) -> None:
    vae = load_vae("dct")
    vae.spec = replace(vae.spec, scale=(scale,) * 16)
    [latents] = encode_chunks(vae, flat((10, 20, 30)), [0])
    assert not np.isfinite(latents).all() and "not finite in float16" in value_problem(latents)


class BlurredVAE(VideoVAE):
    """`dct` with a posterior that is not a point: the std of channel n is n / 10."""

    def __init__(self, posterior: Posterior) -> None:
        super().__init__()
        self.exact = load_vae("dct:8")
        self.spec = replace(self.exact.spec, posterior=posterior)

    def raw_moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.exact.raw_moments(pixels)
        return mean, std + torch.arange(8.0)[:, None, None, None] / 10


def random_chunks(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 17, 16, 24, 3), dtype=np.uint8)


def test_moments_are_the_mean_then_the_std() -> None:
    frames = random_chunks(2)
    moments, mean = (encode_chunks(BlurredVAE(kind), frames, [1, 2]) for kind in ("moments", "mean"))
    assert moments.shape == (2, 16, 5, 2, 3)
    assert np.array_equal(moments[:, :8], mean)
    scale = np.array(load_vae("dct:8").spec.scale)[:, None, None, None]
    np.testing.assert_allclose(
        moments[:, 8:], np.ones((2, 8, 5, 2, 3)) * np.arange(8)[:, None, None, None] / 10 / scale, rtol=1e-3
    )


def test_a_sample_belongs_to_the_seed_of_its_chunk() -> None:
    frames, vae = random_chunks(3), BlurredVAE("sample")
    together = encode_chunks(vae, frames, [4, 5, 6])
    alone = encode_chunks(vae, frames[1:2], [5])
    np.testing.assert_allclose(together[1], alone[0], atol=1e-3)
    assert not np.array_equal(encode_chunks(vae, frames[1:2], [7]), alone)
    assert np.array_equal(together, encode_chunks(vae, frames, [4, 5, 6]))


def test_the_mean_needs_no_chance() -> None:
    frames, vae = random_chunks(1), BlurredVAE("mean")
    assert np.array_equal(encode_chunks(vae, frames, [1]), encode_chunks(vae, frames, [2]))


def test_seeds_differ_by_recipe_clip_and_chunk() -> None:
    seeds = [
        chunk_seed(*given) for given in (("r", "k", 0), ("s", "k", 0), ("r", "l", 0), ("r", "k", 1), ("r", "k", 10))
    ]
    assert len(set(seeds)) == 5 and all(0 <= seed < 2**63 for seed in seeds)
    assert chunk_seed("r", "k", 0) == seeds[0]


@given(st.integers(1, 500), st.integers(1, 40))
def test_batches_are_even_and_no_more_than_need_be(num_chunks: int, most: int) -> None:
    size = batch_size(num_chunks, most)
    num_batches = math.ceil(num_chunks / most)
    assert 1 <= size <= most
    assert num_batches * (size - 1) < num_chunks <= num_batches * size  # one fewer would not hold them


def test_a_shard_of_nothing_has_no_batches() -> None:
    assert batch_size(0, 8) == 0


def test_a_batch_is_what_its_memory_holds_and_one_chunk_at_least() -> None:
    chunk_bytes = 17 * 64 * 96 * 3 * 4
    assert chunks_at_once((17, 64, 96), 5 * chunk_bytes, "cpu") == 5
    assert chunks_at_once((17, 64, 96), 5 * chunk_bytes - 1, "cpu") == 4
    assert chunks_at_once((17, 64, 96), 1, "cpu") == 1
