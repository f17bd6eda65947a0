"""Causal blocks see no later frame, pool their norms as they were trained to, and keep the first frame apart."""

import pytest
import torch
from torch import Tensor, nn

from models.vae.causal_layers import (
    CausalConv3d,
    ResnetBlock2D,
    ResnetBlock3D,
    TimeDownsample2x,
    TimeDownsampleRes2x,
    TimeUpsample2x,
    TimeUpsampleRes2x,
    group_norm,
)
from models.vae.causal_vae import DOWNSAMPLERS, UPSAMPLERS


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@torch.no_grad()
def test_norms_pool_over_time_in_3d_blocks_and_over_each_frame_in_2d_ones():
    x = noise(2, 64, 5, 4, 4)
    pooled = x.reshape(2, 32, -1)
    expected = (pooled - pooled.mean(2, keepdim=True)) / (pooled.var(2, keepdim=True, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(group_norm(64)(x), expected.reshape(x.shape), atol=1e-5, rtol=0)

    flat, deep, louder = ResnetBlock2D(64, 32), ResnetBlock3D(64, 32), torch.cat([x[:, :, :4], 10 * x[:, :, 4:]], dim=2)
    assert torch.equal(flat(x)[:, :, :4], flat(louder)[:, :, :4])
    assert (deep(x) - deep(louder))[:, :, 0].abs().max() > 0.01
    deep.norm1 = deep.norm2 = nn.Identity()
    assert torch.equal(deep(x)[:, :, :4], deep(louder)[:, :, :4])


@torch.no_grad()
def test_a_causal_convolution_sees_this_frame_and_the_two_before_and_repeats_the_first():
    conv, x = CausalConv3d(4, 4, 3, padding=1), noise(1, 4, 7, 5, 5)
    for frame in range(7):
        other = x.clone()
        other[:, :, frame] += 1
        seen = (conv(x) != conv(other)).flatten(3).any(3).any(1)[0]
        assert seen.tolist() == [frame <= t <= frame + 2 for t in range(7)]
    still = x[:, :, :1].repeat(1, 1, 7, 1, 1)
    torch.testing.assert_close(conv(still), conv(x[:, :, :1]).repeat(1, 1, 7, 1, 1), atol=1e-6, rtol=0)


def counting(frames: int) -> Tensor:
    """Frame t is t everywhere: (1, 1, frames, 2, 2)."""
    return torch.arange(float(frames))[None, None, :, None, None].expand(1, 1, -1, 2, 2).contiguous()


def test_halving_time_averages_three_frames_the_first_repeated():
    assert TimeDownsample2x(1)(counting(9))[0, 0, :, 0, 0].tolist() == [0, 1, 3, 5, 7]


def test_doubling_time_keeps_the_first_frame_and_interpolates_the_others():
    assert TimeUpsample2x(1)(counting(3))[0, 0, :, 0, 0].tolist() == [0, 1, 1.25, 1.75, 2]


@torch.no_grad()
def test_time_is_halved_and_doubled_with_a_learned_share_of_a_convolution():
    for sampler, clip, without in (
        (TimeDownsampleRes2x(1), counting(5), torch.tensor([0.0, 1, 3])),
        (TimeUpsampleRes2x(1), counting(3), torch.tensor([0, 1, 1.25, 1.75, 2])),
    ):
        weight, bias = sampler.conv.parameters()
        weight.zero_()
        bias.fill_(10)
        sampler.mix_factor.fill_(-1.0986123)  # whose sigmoid is 1/4
        torch.testing.assert_close(sampler(clip)[0, 0, :, 0, 0], without / 4 + 7.5)


@pytest.mark.parametrize("name", ["Downsample", "SpatialDownsample2x", "Spatial2xTime2x3DDownsample"])
@torch.no_grad()
def test_halving_space_pads_behind(name: str):
    """A kernel of its first place alone takes every second place from the first, which padding before would shift."""
    sampler, x = DOWNSAMPLERS[name](1), noise(1, 1, 5, 6, 8)
    weight, bias = sampler.get_submodule("conv").parameters()
    bias.zero_()
    weight.zero_()
    (weight[0, 0] if weight.ndim == 4 else weight[0, 0, -1])[0, 0] = 1  # in time the last place, the frame itself
    assert torch.equal(sampler(x), x[:, :, :: sampler.factors[0], ::2, ::2])


def test_doubling_space_repeats_or_interpolates():
    row = torch.tensor([0.0, 1.0]).expand(1, 1, 3, 2, 2)
    for name, doubled in (
        ("Upsample", [0, 0, 1, 1]),
        ("SpatialUpsample2x", [0, 0, 1, 1]),
        ("Spatial2xTime2x3DUpsample", [0, 0.25, 0.75, 1]),
    ):
        sampler = UPSAMPLERS[name](1)
        sampler.conv = nn.Identity()
        assert sampler(row)[0, 0, -1, 0].tolist() == doubled


@pytest.mark.parametrize("kind", [ResnetBlock2D, ResnetBlock3D])
def test_a_residual_block_adds_its_input_to_two_activated_convolutions(kind: type[ResnetBlock3D]):
    block, x = kind(32, 32), noise(1, 32, 3, 4, 4)
    for name in ("norm1", "conv1", "norm2", "conv2"):
        setattr(block, name, nn.Identity())
    once = x * torch.sigmoid(x)
    torch.testing.assert_close(block(x), x + once * torch.sigmoid(once))


@pytest.mark.parametrize("name", [name for name in DOWNSAMPLERS if name])
@torch.no_grad()
def test_halving_keeps_the_first_frame_apart(name: str):
    sampler = DOWNSAMPLERS[name](4)
    t, h, w = sampler.factors
    for frames in (1, 5, 9, 17):
        assert sampler(noise(1, 4, frames, 8, 12)).shape == (1, 4, 1 + (frames - 1) // t, 8 // h, 12 // w)


@pytest.mark.parametrize("name", [name for name in UPSAMPLERS if name])
@torch.no_grad()
def test_doubling_is_the_opposite(name: str):
    sampler = UPSAMPLERS[name](4)
    t, h, w = sampler.factors
    for frames in (1, 2, 3, 5):
        assert sampler(noise(1, 4, frames, 4, 6)).shape == (1, 4, 1 + (frames - 1) * t, 4 * h, 6 * w)
