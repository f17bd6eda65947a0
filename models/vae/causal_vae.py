"""CausalVAE, the VAE of Open-Sora-Plan v1.0, v1.1 and v1.2: one network, whose blocks are named by its config.

Its name is half the truth. No convolution of the encoder sees a later frame, but the group norms of its 3-D blocks pool
over time. So a chunk is one unit: its latents are not those of its frames streamed, nor of shorter chunks joined.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch.nn.functional as F
from torch import Tensor, nn

from models.vae.causal_attention import AttnBlock3D, AttnBlock3DFix
from models.vae.causal_layers import (
    CausalConv3d,
    Conv2d,
    Downsample,
    Factors,
    Resampler,
    ResnetBlock2D,
    ResnetBlock3D,
    Spatial2xTime2x3DDownsample,
    Spatial2xTime2x3DUpsample,
    SpatialDownsample2x,
    SpatialUpsample2x,
    TimeDownsample2x,
    TimeDownsampleRes2x,
    TimeUpsample2x,
    TimeUpsampleRes2x,
    Upsample,
    group_norm,
)

CONVOLUTIONS: dict[str, type[nn.Module]] = {"CausalConv3d": CausalConv3d, "Conv2d": Conv2d}
RESNETS: dict[str, type[nn.Module]] = {"ResnetBlock3D": ResnetBlock3D, "ResnetBlock2D": ResnetBlock2D}
ATTENTIONS: dict[str, type[nn.Module]] = {"AttnBlock3DFix": AttnBlock3DFix, "AttnBlock3D": AttnBlock3D}
DOWNSAMPLERS: dict[str, type[Resampler]] = {
    "": Resampler,
    "Downsample": Downsample,
    "SpatialDownsample2x": SpatialDownsample2x,
    "Spatial2xTime2x3DDownsample": Spatial2xTime2x3DDownsample,
    "TimeDownsample2x": TimeDownsample2x,
    "TimeDownsampleRes2x": TimeDownsampleRes2x,
}
UPSAMPLERS: dict[str, type[Resampler]] = {
    "": Resampler,
    "Upsample": Upsample,
    "SpatialUpsample2x": SpatialUpsample2x,
    "Spatial2xTime2x3DUpsample": Spatial2xTime2x3DUpsample,
    "TimeUpsample2x": TimeUpsample2x,
    "TimeUpsampleRes2x": TimeUpsampleRes2x,
}

NAMES: dict[str, Mapping[str, type[nn.Module]]] = {  # field of the config -> what it may name
    "q_conv": CONVOLUTIONS,
    "encoder_conv_in": CONVOLUTIONS,
    "encoder_conv_out": CONVOLUTIONS,
    "encoder_attention": ATTENTIONS,
    "encoder_mid_resnet": RESNETS,
    "decoder_conv_in": CONVOLUTIONS,
    "decoder_conv_out": CONVOLUTIONS,
    "decoder_attention": ATTENTIONS,
    "decoder_mid_resnet": RESNETS,
}
NAMES_BY_LEVEL: dict[str, Mapping[str, type[nn.Module]]] = {
    "encoder_resnet_blocks": RESNETS,
    "encoder_spatial_downsample": DOWNSAMPLERS,
    "encoder_temporal_downsample": DOWNSAMPLERS,
    "decoder_resnet_blocks": RESNETS,
    "decoder_spatial_upsample": UPSAMPLERS,
    "decoder_temporal_upsample": UPSAMPLERS,
}


@dataclass(frozen=True)
class CausalVAEConfig:
    """The fields of a published config.json that decide what is computed.

    A field without a default has to be in the file. The originals' own defaults name the mistaken attention, and time
    down-sampling at other levels than v1.0 has it; weights show neither, so a guess would load cleanly.
    """

    hidden_size: int  # channels of level 0, a multiple of 32
    hidden_size_mult: tuple[int, ...]  # by level, as all tuples here
    num_res_blocks: int  # of a level of the encoder; the decoder has one more
    z_channels: int
    embed_dim: int  # channels of a latent
    encoder_conv_in: str
    encoder_conv_out: str
    encoder_attention: str
    encoder_mid_resnet: str
    encoder_resnet_blocks: tuple[str, ...]
    encoder_spatial_downsample: tuple[str, ...]
    encoder_temporal_downsample: tuple[str, ...]
    decoder_conv_in: str
    decoder_conv_out: str
    decoder_attention: str
    decoder_mid_resnet: str
    decoder_resnet_blocks: tuple[str, ...]
    decoder_spatial_upsample: tuple[str, ...]
    decoder_temporal_upsample: tuple[str, ...]
    # What these decide the weights show, so that others than the config says are refused:
    q_conv: str = "CausalConv3d"  # the shape of quant_conv
    use_quant_layer: bool = True  # whether there is a quant_conv; v1.0 and v1.1 have no such field
    double_z: bool = True  # twice as many channels out of the encoder
    attn_resolutions: tuple[int, ...] = ()  # whether there are names like down.0.attn

    def __post_init__(self) -> None:
        sizes = (self.hidden_size, *self.hidden_size_mult, self.num_res_blocks, self.z_channels, self.embed_dim)
        if not all(isinstance(size, int) and size > 0 for size in sizes) or self.hidden_size % 32:
            raise ValueError(
                f"hidden_size, hidden_size_mult, num_res_blocks, z_channels and embed_dim are {sizes}, wanted integers "
                f"above 0, the first a multiple of 32, the groups of a norm"
            )
        for field, known in NAMES.items():
            _check_name(field, getattr(self, field), known)
        for field, known in NAMES_BY_LEVEL.items():
            named = getattr(self, field)
            if not isinstance(named, tuple) or len(named) != len(self.hidden_size_mult):
                raise ValueError(
                    f"{field} is {named!r}, wanted a list of {len(self.hidden_size_mult)}, a name for each level in "
                    f"hidden_size_mult"
                )
            for name in named:
                _check_name(field, name, known)
        if not self.double_z or self.attn_resolutions:
            raise ValueError(
                f"double_z {self.double_z} and attn_resolutions {list(self.attn_resolutions)}, wanted true and [], "
                f"which every release has: a posterior, and attention in the middle only"
            )
        if not self.use_quant_layer and self.embed_dim != self.z_channels:
            raise ValueError(
                f"embed_dim {self.embed_dim} and z_channels {self.z_channels} differ, and no quant layer is between "
                f"them"
            )
        growth = factors_of(UPSAMPLERS, self.decoder_spatial_upsample, self.decoder_temporal_upsample)
        if growth != self.stride:
            raise ValueError(f"the encoder divides (t, h, w) by {self.stride} and the decoder multiplies by {growth}")

    @property
    def channels(self) -> int:
        """Of a latent."""
        return self.embed_dim

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.hidden_size * times for times in self.hidden_size_mult)

    @property
    def channels_at_once(self) -> int:
        """Of all tensors in memory, at most, per pixel of a frame.

        The most is in the decoder's first block at full size, which gets the channels of level 1: its input, the norm
        of that, SiLU of that, and that with the first frame repeated.
        """
        return 4 * max(self.widths[:2])

    @property
    def attention(self) -> str:
        names = self.encoder_attention, self.decoder_attention
        return names[0] if names[0] == names[1] else " and ".join(names)

    @property
    def stride(self) -> Factors:
        """Pixels per latent in (t, h, w)."""
        return factors_of(DOWNSAMPLERS, self.encoder_spatial_downsample, self.encoder_temporal_downsample)


def _check_name(field: str, name: str, known: Mapping[str, type[nn.Module]]) -> None:
    if name not in known:
        raise ValueError(f"{field} names {name!r}, known are {', '.join(map(repr, known))}")


def factors_of(samplers: Mapping[str, type[Resampler]], *named: Sequence[str]) -> Factors:
    """By how much all the named samplers together divide or multiply (t, h, w)."""
    t, h, w = (prod(samplers[name].factors[axis] for names in named for name in names) for axis in range(3))
    return t, h, w


class Middle(nn.Module):
    """Attention between two residual blocks, where encoder and decoder are smallest."""

    def __init__(self, resnet: str, attention: str, width: int) -> None:
        super().__init__()
        self.block_1 = RESNETS[resnet](width, width)
        self.attn_1 = ATTENTIONS[attention](width)
        self.block_2 = RESNETS[resnet](width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class DownLevel(nn.Module):
    """Level `level` of the encoder: residual blocks, then smaller frames, then fewer."""

    def __init__(self, config: CausalVAEConfig, level: int) -> None:
        super().__init__()
        resnet, width = RESNETS[config.encoder_resnet_blocks[level]], config.widths[level]
        before = config.widths[level - 1] if level else config.hidden_size
        inputs = [before, *[width] * (config.num_res_blocks - 1)]
        self.block = nn.ModuleList(resnet(channels, width) for channels in inputs)
        self.downsample = DOWNSAMPLERS[config.encoder_spatial_downsample[level]](width)
        self.time_downsample = DOWNSAMPLERS[config.encoder_temporal_downsample[level]](width)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.time_downsample(self.downsample(x))


class UpLevel(nn.Module):
    """Level `level` of the decoder: residual blocks, then larger frames, then more."""

    def __init__(self, config: CausalVAEConfig, level: int) -> None:
        super().__init__()
        resnet, width = RESNETS[config.decoder_resnet_blocks[level]], config.widths[level]
        before = config.widths[min(level + 1, len(config.widths) - 1)]
        inputs = [before, *[width] * config.num_res_blocks]
        self.block = nn.ModuleList(resnet(channels, width) for channels in inputs)
        self.upsample = UPSAMPLERS[config.decoder_spatial_upsample[level]](width)
        self.time_upsample = UPSAMPLERS[config.decoder_temporal_upsample[level]](width)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.time_upsample(self.upsample(x))


class Encoder(nn.Module):
    """Pixels (B, 3, T, H, W) -> (B, 2 * z_channels, t, h, w)."""

    def __init__(self, config: CausalVAEConfig) -> None:
        super().__init__()
        width = config.widths[-1]
        self.conv_in = CONVOLUTIONS[config.encoder_conv_in](3, config.hidden_size, 3, padding=1)
        self.down = nn.ModuleList(DownLevel(config, level) for level in range(len(config.widths)))
        self.mid = Middle(config.encoder_mid_resnet, config.encoder_attention, width)
        self.norm_out = group_norm(width)
        self.conv_out = CONVOLUTIONS[config.encoder_conv_out](width, 2 * config.z_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        h = self.conv_in(pixels)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """(B, z_channels, t, h, w) -> pixels (B, 3, T, H, W); the last level comes first."""

    def __init__(self, config: CausalVAEConfig) -> None:
        super().__init__()
        self.conv_in = CONVOLUTIONS[config.decoder_conv_in](config.z_channels, config.widths[-1], 3, padding=1)
        self.mid = Middle(config.decoder_mid_resnet, config.decoder_attention, config.widths[-1])
        self.up = nn.ModuleList(UpLevel(config, level) for level in range(len(config.widths)))
        self.norm_out = group_norm(config.widths[0])
        self.conv_out = CONVOLUTIONS[config.decoder_conv_out](config.widths[0], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        h = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class CausalVAE(nn.Module):
    """Pixels -> the mean and log variance of their posterior, and latents -> pixels; names are the originals'."""

    def __init__(self, config: CausalVAEConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.use_quant_layer:
            convolution = CONVOLUTIONS[config.q_conv]
            self.quant_conv = convolution(2 * config.z_channels, 2 * config.embed_dim, 1)
            self.post_quant_conv = convolution(config.embed_dim, config.z_channels, 1)
        else:
            self.quant_conv = self.post_quant_conv = nn.Identity()

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, T, H, W) -> mean and log variance (B, 2 * embed_dim, t, h, w)."""
        return self.quant_conv(self.encoder(pixels))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, embed_dim, t, h, w) -> pixels (B, 3, T, H, W)."""
        return self.decoder(self.post_quant_conv(latents))
