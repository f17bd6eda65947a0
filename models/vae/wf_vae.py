"""WF-VAE, the VAE of Open-Sora-Plan v1.3: a small network between Haar transforms.

The transform is applied three times, each time to the averages of the one before. The network works on the first; the
other two join its encoder on the way, and its decoder predicts them on the way and adds them to its output. With the
layer norms of the releases the encoder is strictly causal: the first latent is that of the first frame alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.vae.causal_attention import AttnBlock3DFix
from models.vae.causal_layers import (
    CausalConv3d,
    ChannelNorm,
    Conv2d,
    Downsample,
    Factors,
    ResnetBlock2D,
    ResnetBlock3D,
    Spatial2xTime2x3DDownsample,
    Spatial2xTime2x3DUpsample,
    Upsample,
    group_norm,
)
from models.vae.haar import BANDS_2D, BANDS_3D, haar_2d, haar_3d, inverse_haar_2d, inverse_haar_3d

COLOURS = 3
NORMS: dict[str, Callable[[int], nn.Module]] = {"groupnorm": group_norm, "layernorm": ChannelNorm}
TIME_MODES = ("trilinear", "nearest")


@dataclass(frozen=True)
class WFVAEConfig:
    """The fields of a published config.json that decide what is computed, spelled as there.

    A field without a default has to be in the file. That matters most for `t_interpolation`: copies of the v1.3 config
    disagree on it, and no weights show it.
    """

    latent_dim: int
    base_channels: int
    encoder_num_resblocks: int
    encoder_energy_flow_hidden_size: int
    decoder_num_resblocks: int
    decoder_energy_flow_hidden_size: int
    use_attention: bool
    norm_type: str
    t_interpolation: str
    connect_res_layer_num: int = 2  # the weights show it, by name
    # Before these were fields they could be nothing else; v1.5 has another level 1, which halves time as well.
    attention_type: str = "AttnBlock3DFix"
    l1_dowmsample_block: str = "Downsample"
    l1_downsample_wavelet: str = "HaarWaveletTransform2D"
    l1_upsample_block: str = "Upsample"
    l1_upsample_wavelet: str = "InverseHaarWaveletTransform2D"
    l2_dowmsample_block: str = "Spatial2xTime2x3DDownsample"
    l2_downsample_wavelet: str = "HaarWaveletTransform3D"
    l2_upsample_block: str = "Spatial2xTime2x3DUpsample"
    l2_upsample_wavelet: str = "InverseHaarWaveletTransform3D"

    def __post_init__(self) -> None:
        choices = {"norm_type": tuple(NORMS), "t_interpolation": TIME_MODES}
        choices |= {field.name: (field.default,) for field in fields(self) if isinstance(field.default, str)}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, known are {', '.join(map(repr, known))}")
        sizes = (
            self.latent_dim,
            self.base_channels,
            self.encoder_num_resblocks,
            self.encoder_energy_flow_hidden_size,
            self.decoder_num_resblocks,
            self.decoder_energy_flow_hidden_size,
            self.connect_res_layer_num,
        )
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(f"latent_dim, base_channels and the other sizes are {sizes}, wanted integers above 0")

    @property
    def channels(self) -> int:
        """Of a latent."""
        return self.latent_dim

    @property
    def stride(self) -> Factors:
        """Pixels per latent in (t, h, w)."""
        return (4, 8, 8)

    @property
    def channels_at_once(self) -> int:
        """Of all tensors in memory, at most, per pixel of a frame.

        The most is in the decoder, at half the size in t, h and w, in blocks of twice the base's channels: their input,
        the norm of that, SiLU of that, that with the first frame repeated, and what layer norms copy to turn channels.
        """
        return 7 * 2 * self.base_channels // 8

    @property
    def attention(self) -> str:
        return self.attention_type if self.use_attention else "none"


class Encoder(nn.Module):
    """Pixels (B, 3, T, H, W) -> (B, 2 * latent_dim, t, h, w)."""

    def __init__(self, config: WFVAEConfig) -> None:
        super().__init__()
        base, flow, norm = config.base_channels, config.encoder_energy_flow_hidden_size, NORMS[config.norm_type]
        self.down1 = nn.Sequential(
            Conv2d(BANDS_3D * COLOURS, base, 3, padding=1),
            *(ResnetBlock2D(base, base, norm) for _ in range(config.encoder_num_resblocks)),
            Downsample(base),
        )
        self.down2 = nn.Sequential(
            Conv2d(base + flow, 2 * base, 3, padding=1),
            *(ResnetBlock3D(2 * base, 2 * base, norm) for _ in range(config.encoder_num_resblocks)),
            Spatial2xTime2x3DDownsample(2 * base),
        )
        self.connect_l1 = Conv2d(BANDS_2D * COLOURS, flow, 3, padding=1)
        self.connect_l2 = Conv2d(BANDS_3D * COLOURS, flow, 3, padding=1)
        self.mid = nn.Sequential(
            ResnetBlock3D(2 * base + flow, 4 * base, norm),
            *([AttnBlock3DFix(4 * base, norm)] if config.use_attention else []),
            ResnetBlock3D(4 * base, 4 * base, norm),
        )
        self.norm_out = norm(4 * base)
        self.conv_out = CausalConv3d(4 * base, 2 * config.latent_dim, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        bands = haar_3d(pixels)
        bands_1 = haar_2d(bands[:, :COLOURS])  # the averages come first
        bands_2 = haar_3d(bands_1[:, :COLOURS])
        h = torch.cat([self.down1(bands), self.connect_l1(bands_1)], dim=1)
        h = torch.cat([self.down2(h), self.connect_l2(bands_2)], dim=1)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """(B, latent_dim, t, h, w) -> pixels (B, 3, T, H, W)."""

    def __init__(self, config: WFVAEConfig) -> None:
        super().__init__()
        base, flow, norm = config.base_channels, config.decoder_energy_flow_hidden_size, NORMS[config.norm_type]
        self.split = [4 * base, flow]

        def blocks(inputs: int, outputs: int, number: int) -> list[nn.Module]:
            return [ResnetBlock3D(outputs if at else inputs, outputs, norm) for at in range(number)]

        def connection(bands: int) -> nn.Sequential:
            return nn.Sequential(
                *blocks(flow, flow, config.connect_res_layer_num), Conv2d(flow, bands * COLOURS, 3, padding=1)
            )

        self.conv_in = CausalConv3d(config.latent_dim, 4 * base, 3, padding=1)
        self.mid = nn.Sequential(
            ResnetBlock3D(4 * base, 4 * base, norm),
            *([AttnBlock3DFix(4 * base, norm)] if config.use_attention else []),
            ResnetBlock3D(4 * base, 4 * base + flow, norm),
        )
        self.up2 = nn.Sequential(
            *blocks(4 * base, 4 * base, config.decoder_num_resblocks),
            Spatial2xTime2x3DUpsample(4 * base, config.t_interpolation),
            ResnetBlock3D(4 * base, 4 * base + flow, norm),
        )
        self.up1 = nn.Sequential(
            *blocks(4 * base, 2 * base, config.decoder_num_resblocks),
            Upsample(2 * base),
            ResnetBlock3D(2 * base, 2 * base, norm),
        )
        self.layer = nn.Sequential(*blocks(2 * base, base, 2))
        self.connect_l1 = connection(BANDS_2D)
        self.connect_l2 = connection(BANDS_3D)
        self.norm_out = norm(base)
        self.conv_out = Conv2d(base, BANDS_3D * COLOURS, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        h, flow = self.mid(self.conv_in(latents)).split(self.split, dim=1)
        averages = inverse_haar_3d(self.connect_l2(flow))
        h, flow = self.up2(h).split(self.split, dim=1)
        averages = inverse_haar_2d(add_to_averages(self.connect_l1(flow), averages))
        bands = self.conv_out(F.silu(self.norm_out(self.layer(self.up1(h)))))
        return inverse_haar_3d(add_to_averages(bands, averages))


def add_to_averages(bands: Tensor, averages: Tensor) -> Tensor:
    """Bands (B, n * 3, t, h, w), whose first is of averages, + averages (B, 3, t, h, w) -> bands."""
    return torch.cat([bands[:, :COLOURS] + averages, bands[:, COLOURS:]], dim=1)


class WFVAE(nn.Module):
    """Pixels -> the mean and log variance of their posterior, and latents -> pixels; names are the originals'."""

    def __init__(self, config: WFVAEConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, T, H, W) -> mean and log variance (B, 2 * latent_dim, t, h, w)."""
        return self.encoder(pixels)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, latent_dim, t, h, w) -> pixels (B, 3, T, H, W)."""
        return self.decoder(latents)
