"""Statistics of parts, merged in any grouping and order, are those of everything at once."""

from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.latent_spec import LatentSpec
from models.vae import load_vae
from pipeline.stats import ChannelStats, merge_all, normalization

CHANNELS = 3


def clips(seed: int, lengths: list[int], offset: float = 0.0) -> list[np.ndarray]:
    """Latents (3, t, 2, 4) in float16, of so many frames each, whose means lie apart."""
    chance = np.random.default_rng(seed)
    return [
        chance.normal(offset + place % 7, 1, (CHANNELS, t, 2, 4)).astype(np.float16) for place, t in enumerate(lengths)
    ]


def columns(stats: ChannelStats) -> np.ndarray:
    return np.array([stats.mean, stats.std, stats.least, stats.greatest])


def of_all(parts: list[np.ndarray]) -> np.ndarray:
    """What NumPy says of all values together, (4, channels), in float64."""
    values = np.concatenate(parts, axis=1).astype(np.float64)
    return np.array([getattr(values, name)(axis=(1, 2, 3)) for name in ("mean", "std", "min", "max")])


def merged_in_some_grouping(parts: list[ChannelStats], cuts: list[int]) -> ChannelStats:
    """Two neighbours become one, wherever the cuts say, until one is left."""
    for cut in cuts:
        if len(parts) > 1:
            at = cut % (len(parts) - 1)
            parts = [*parts[:at], parts[at].merge(parts[at + 1]), *parts[at + 2 :]]
    return reduce(ChannelStats.merge, parts)


@given(
    seed=st.integers(0, 2**32),
    lengths=st.lists(st.integers(1, 10), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 100), max_size=7),
    offset=st.sampled_from([0.0, 500.0, -3e4]),
)
def test_any_grouping_gives_what_all_values_give(seed: int, lengths: list[int], cuts: list[int], offset: float) -> None:
    parts = clips(seed, lengths, offset)
    merged = merged_in_some_grouping([ChannelStats.of(part) for part in parts], cuts)
    assert merged.count == sum(lengths) * 8
    np.testing.assert_allclose(columns(merged), of_all(parts), rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 2**32), order=st.permutations(range(6)))
def test_the_order_does_not_matter(seed: int, order: list[int]) -> None:
    parts = [ChannelStats.of(part) for part in clips(seed, [1, 5, 2, 10, 3, 5])]
    one, other = merge_all(parts), merge_all(parts[place] for place in order)
    assert one and other
    np.testing.assert_allclose(columns(one), columns(other), rtol=1e-9, atol=1e-9)


def test_none_of_none() -> None:
    assert merge_all([]) is None


def test_a_sidecar_holds_them_exactly() -> None:
    stats = ChannelStats.of(clips(0, [5])[0])
    assert ChannelStats.from_json(stats.to_json()) == stats


def spec(posterior: str) -> LatentSpec:
    dct = load_vae(f"dct:{CHANNELS}").spec
    return replace(dct, posterior=posterior, scaling_factor=0.5, shift=(1.0, -2.0, 3.0), scale=(0.5, 2.0, 4.0))


def test_another_normalization_brings_them_to_0_and_1() -> None:
    [latents] = clips(0, [40], offset=7.0)
    stored = spec("mean")
    shift, scale = normalization(ChannelStats.of(latents), stored)
    converted = stored.convert(torch.from_numpy(latents), to=replace(stored, shift=shift, scale=scale)).double().numpy()
    np.testing.assert_allclose(converted.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(converted.std(axis=(1, 2, 3)), 1, atol=1e-5)


def test_of_moments_it_is_the_samples_that_are_normalized() -> None:
    chance = np.random.default_rng(0)
    mean, std = chance.normal(5, 2, (CHANNELS, 500, 8, 8)), chance.uniform(0.5, 3, (CHANNELS, 500, 8, 8))
    stored = spec("moments")
    cached = np.concatenate([mean, std]).astype(np.float16)  # (2c, t, h, w)
    shift, scale = normalization(ChannelStats.of(cached), stored)
    converted = stored.convert(torch.from_numpy(cached), to=replace(stored, shift=shift, scale=scale)).numpy()
    samples = converted[:CHANNELS] + converted[CHANNELS:] * chance.normal(size=mean.shape)
    np.testing.assert_allclose(samples.mean(axis=(1, 2, 3)), 0, atol=0.02)
    np.testing.assert_allclose(samples.std(axis=(1, 2, 3)), 1, atol=0.02)


def test_a_constant_channel_keeps_its_scale() -> None:
    flat = np.full((CHANNELS, 5, 2, 4), 2.0, np.float16)
    shift, scale = normalization(ChannelStats.of(flat), spec("mean"))
    assert scale == (0.5, 2.0, 4.0)
    assert shift == pytest.approx((1.0 + 0.5 * 2, -2.0 + 2.0 * 2, 3.0 + 4.0 * 2))
