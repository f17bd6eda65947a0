"""The temporal VAE of Open-Sora v1.2: frames of 2-D latents to a quarter as many, and back; space keeps its size.

State-dict names, shapes and numbers are the original's. Videos are (B, c, t, h, w) throughout.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


@dataclass(frozen=True)
class TemporalConfig:
    """The shape of a temporal VAE; everything its weights depend on. The defaults are the published ones."""

    channels: int = 4  # of the 2-D latents, and of its own
    filters: int = 128  # of level 0; level i has `channel_multipliers[i]` times as many
    num_res_blocks: int = 4  # per level
    channel_multipliers: tuple[int, ...] = (1, 2, 2, 4)
    temporal_downsample: tuple[bool, ...] = (False, True, True)  # whether frames are halved after level 0, 1, ..
    num_groups: int = 32

    def __post_init__(self) -> None:
        if len(self.temporal_downsample) != len(self.channel_multipliers) - 1:
            raise ValueError(
                f"{len(self.channel_multipliers)} channel_multipliers and {len(self.temporal_downsample)} "
                f"temporal_downsample; between levels there is one fewer than levels"
            )

    @property
    def stride(self) -> int:
        """Frames per latent."""
        return 2 ** sum(self.temporal_downsample)

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.filters * multiplier for multiplier in self.channel_multipliers]

    @property
    def maps_per_position(self) -> int:
        """Numbers held at once per frame and position of the 2-D latents, encoding or decoding.

        Both peak where frames are not halved yet, in maps of the widest level's channels: the residual, what goes into
        a convolution without and with the zeros in front, what comes out, and both again as a kernel reorders them, for
        20 frames where 17 came in. Measured on a CPU: 7.5 to 9 maps.
        """
        whole = (*self.temporal_downsample, True).index(True)  # the last level before frames are first halved
        return 9 * max(self.widths[: whole + 1])


class CausalConv3d(nn.Module):
    """A convolution that sees no later frame: zeros around in space, and in time in front alone.

    `kernel` is that of all three axes. With a `stride` in time it takes a frame fewer in front, so that a multiple of
    the stride is divided exactly.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.front = kernel - stride
        around = kernel // 2
        self.conv = nn.Conv3d(inputs, outputs, kernel, (stride, 1, 1), padding=(0, around, around), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 0, 0, 0, self.front, 0)))


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, and the input added: (B, inputs, t, h, w) -> (B, outputs, t, h, w)."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs)
        self.conv1 = CausalConv3d(inputs, outputs, 3, bias=False)
        self.norm2 = nn.GroupNorm(groups, outputs)
        self.conv2 = CausalConv3d(outputs, outputs, 3, bias=False)
        self.conv3 = nn.Identity() if inputs == outputs else CausalConv3d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm1(x))
        h = F.silu(self.norm2(self.conv1(h)))
        return self.conv2(h) + self.conv3(x)


def res_blocks(inputs: int, outputs: int, config: TemporalConfig) -> nn.Sequential:
    """The blocks of one level; the first of them changes the width."""
    widths = [inputs, *[outputs] * config.num_res_blocks]
    return nn.Sequential(*(ResBlock(a, b, config.num_groups) for a, b in zip(widths, widths[1:])))


class Encoder(nn.Module):
    """2-D latents (B, c, F, h, w), F a multiple of the stride -> features of moments (B, 2c, F / stride, h, w)."""

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = CausalConv3d(config.channels, widths[0], 3, bias=False)
        self.block_res_blocks = nn.ModuleList(
            res_blocks(inputs, outputs, config) for inputs, outputs in zip([widths[0], *widths], widths)
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, width, 3, stride=2) if halves else nn.Identity()
            for width, halves in zip(widths, config.temporal_downsample)
        )
        self.res_blocks = res_blocks(widths[-1], widths[-1], config)
        self.norm1 = nn.GroupNorm(config.num_groups, widths[-1])
        self.conv2 = CausalConv3d(widths[-1], 2 * config.channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level, halve in zip(self.block_res_blocks, [*self.conv_blocks, nn.Identity()], strict=True):
            x = halve(level(x))
        return self.conv2(F.silu(self.norm1(self.res_blocks(x))))


def channels_to_frames(x: Tensor) -> Tensor:
    """(B, 2c, t, h, w) -> (B, c, 2t, h, w): channels 2i and 2i + 1 are the even and the odd frames of channel i."""
    return rearrange(x, "b (c two) t h w -> b c (t two) h w", two=2)


class Decoder(nn.Module):
    """Features of latents (B, c, f, h, w) -> 2-D latents (B, c, f * stride, h, w)."""

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv1 = CausalConv3d(config.channels, widths[-1], 3)
        self.res_blocks = res_blocks(widths[-1], widths[-1], config)
        # In the order of the levels, which is not the order of use: the widest level comes first.
        self.block_res_blocks = nn.ModuleList(
            res_blocks(inputs, outputs, config) for inputs, outputs in zip([*widths[1:], widths[-1]], widths)
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, 2 * width, 3) if doubles else nn.Identity()
            for width, doubles in zip(widths[1:], config.temporal_downsample)
        )
        self.doubles = config.temporal_downsample
        self.norm1 = nn.GroupNorm(config.num_groups, widths[0])
        self.conv_out = CausalConv3d(widths[0], config.channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.res_blocks(self.conv1(x))
        for i in reversed(range(len(self.block_res_blocks))):
            x = self.block_res_blocks[i](x)
            if i > 0 and self.doubles[i - 1]:
                x = channels_to_frames(self.conv_blocks[i - 1](x))
        return self.conv_out(F.silu(self.norm1(x)))


class TemporalVAE(nn.Module):
    """One chunk of 2-D latents to the moments of its latents, and latents to the chunk's 2-D latents.

    Convolutions see no later frame, but a norm's mean and variance are over all frames and positions of what it is
    given. So every frame of a chunk shows in all its latents: a chunk is one unit, and a part of it is another chunk.
    """

    def __init__(self, config: TemporalConfig) -> None:
        super().__init__()
        self.stride = config.stride
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = CausalConv3d(2 * config.channels, 2 * config.channels, 1)
        self.post_quant_conv = CausalConv3d(config.channels, config.channels, 1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """2-D latents (B, c, F, h, w) -> mean and log variance, each (B, c, ceil(F / stride), h, w).

        F is filled up to a multiple of the stride by zeros in front, of the latents themselves.
        """
        x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % self.stride, 0))
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, logvar

    def decode(self, latents: Tensor, num_frames: int) -> Tensor:
        """Latents (B, c, f, h, w) -> 2-D latents (B, c, num_frames, h, w): what the zeros became is cut off again."""
        return self.decoder(self.post_quant_conv(latents))[:, :, -num_frames % self.stride :]
