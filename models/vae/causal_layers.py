"""The blocks of Open-Sora-Plan's VAEs: causal convolutions, residual blocks, and what halves and doubles each axis.

Videos are (B, c, t, h, w) throughout. Class and attribute names are the originals', of their configs and state dicts.
`factors` says by how much a block divides or multiplies (t, h, w). Of t frames the first is one by itself: halving
makes (t - 1) // 2 + 1 of them, doubling 1 + 2 * (t - 1), so 17 -> 9 -> 5 -> 9 -> 17 and 1 -> 1.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

Factors = tuple[int, int, int]
NORM_EPS = 1e-6


def group_norm(channels: int) -> nn.Module:
    """Norm over 32 groups of channels: of a video (B, c, t, h, w) over all frames at once, of frames over each."""
    return nn.GroupNorm(32, channels, eps=NORM_EPS)


class ChannelNorm(nn.Module):
    """Layer norm over channels, (B, c, ...) -> the same: of every place and frame by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.norm(rearrange(x, "b c ... -> b ... c")), "b ... c -> b c ...")


def repeat_first(x: Tensor, times: int) -> Tensor:
    """(B, c, t, h, w) -> (B, c, times + t, h, w): the first frame again in front, so that nothing sees ahead."""
    if times == 0:
        return x
    return torch.cat([repeat(x[:, :, 0], "b c h w -> b c n h w", n=times), x], dim=2)


def pad_end(x: Tensor) -> Tensor:
    """(..., h, w) -> (..., h + 1, w + 1): zeros at the bottom and the right, before a convolution of stride 2."""
    return F.pad(x, (0, 1, 0, 1))


def double_frames(x: Tensor, mode: str = "trilinear") -> Tensor:
    """(B, c, t, h, w) -> (B, c, 1 + 2 (t - 1), h, w): the first frame as it is, the others interpolated."""
    if x.shape[2] == 1:
        return x
    return torch.cat([x[:, :, :1], F.interpolate(x[:, :, 1:], scale_factor=(2.0, 1.0, 1.0), mode=mode)], dim=2)


def every_other_average(x: Tensor) -> Tensor:
    """(B, c, t, h, w) -> (B, c, (t - 1) // 2, h, w): means of three frames, which overlap in one."""
    planes = rearrange(x, "b c t h w -> b c t (h w)")  # torch has no 3-D pooling in bfloat16 on the CPU
    return rearrange(F.avg_pool2d(planes, (3, 1), stride=(2, 1)), "b c t (h w) -> b c t h w", h=x.shape[3])


def each_frame(work: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """(B, c, t, h, w) -> the same, by `work` on (B * t, c, h, w), which sees every frame by itself."""
    return rearrange(work(rearrange(x, "b c t h w -> (b t) c h w")), "(b t) c h w -> b c t h w", b=len(x))


class Conv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return each_frame(super().forward, input)


class CausalConv3d(nn.Module):
    """A convolution that sees no later frame: in time the first frame is repeated in front, in space zeros around.

    `kernel` and `stride` are of (t, h, w), or one number for all three; `padding` is of space alone.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int | Factors, stride: int | Factors = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.repeats = (kernel if isinstance(kernel, int) else kernel[0]) - 1
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, padding=(0, padding, padding))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(repeat_first(x, self.repeats))


class ResnetBlock3D(nn.Module):
    """Norm, SiLU, convolution, twice, and the input added: (B, inputs, t, h, w) -> (B, outputs, t, h, w)."""

    convolution: type[nn.Module] = CausalConv3d

    def __init__(self, inputs: int, outputs: int, norm: Callable[[int], nn.Module] = group_norm) -> None:
        super().__init__()
        self.norm1 = norm(inputs)
        self.conv1 = self.convolution(inputs, outputs, 3, padding=1)
        self.norm2 = norm(outputs)
        self.conv2 = self.convolution(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Identity() if inputs == outputs else self.convolution(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class ResnetBlock2D(ResnetBlock3D):
    """The same of every frame by itself, norms included."""

    convolution = nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        return each_frame(super().forward, x)


class Resampler(nn.Module):
    """What a level does to the size of its videos; this one, which stands where a config names none, does nothing."""

    factors: Factors = (1, 1, 1)

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


class Downsample(Resampler):
    factors = (1, 2, 2)

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return each_frame(self.conv, pad_end(x))


class SpatialDownsample2x(Resampler):
    factors = (1, 2, 2)

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.conv = CausalConv3d(channels, channels, (1, 3, 3), stride=(1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(pad_end(x))


class Spatial2xTime2x3DDownsample(Resampler):
    factors = (2, 2, 2)

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.conv = CausalConv3d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(pad_end(x))


class TimeDownsample2x(Resampler):
    """Averages of three frames, every second one. It has no weights, so none show where in the encoder it stands."""

    factors = (2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return every_other_average(repeat_first(x, 2))


class TimeDownsampleRes2x(Resampler):
    """A learned mix of those averages and a convolution."""

    factors = (2, 1, 1)

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.conv = nn.Conv3d(channels, channels, 3, stride=(2, 1, 1), padding=(0, 1, 1))
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Tensor) -> Tensor:
        x, share = repeat_first(x, 2), self.mix_factor.sigmoid()
        return share * every_other_average(x) + (1 - share) * self.conv(x)


class Upsample(Resampler):
    factors = (1, 2, 2)

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return each_frame(self.conv, F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest"))


class SpatialUpsample2x(Resampler):
    factors = (1, 2, 2)

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.conv = CausalConv3d(channels, channels, (1, 3, 3), padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest"))


class Spatial2xTime2x3DUpsample(Resampler):
    """Interpolates linearly in space, and in time by `time_mode`, then convolves."""

    factors = (2, 2, 2)

    def __init__(self, channels: int, time_mode: str = "trilinear") -> None:
        super().__init__(channels)
        self.time_mode = time_mode
        self.conv = CausalConv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        longer = double_frames(x, self.time_mode)
        return self.conv(F.interpolate(longer, scale_factor=(1.0, 2.0, 2.0), mode="trilinear"))


class TimeUpsample2x(Resampler):
    """Interpolates between frames, so that a frame sees half of the next one: no decoder here is causal."""

    factors = (2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return double_frames(x)


class TimeUpsampleRes2x(Resampler):
    """A learned mix of the interpolated frames and a convolution of them."""

    factors = (2, 1, 1)

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.conv = CausalConv3d(channels, channels, 3, padding=1)
        self.mix_factor = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Tensor) -> Tensor:
        x, share = double_frames(x), self.mix_factor.sigmoid()
        return share * x + (1 - share) * self.conv(x)
