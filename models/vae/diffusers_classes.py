"""The video autoencoders of diffusers that we know, and what a class does not say of itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

Settings = Mapping[str, Any]  # a config.json, with the defaults of its class where it is silent


@dataclass(frozen=True)
class KnownClass:
    """One class; the functions are of its settings."""

    channels: str  # the setting that counts a latent's
    time_stride: Callable[[Settings], int]  # frames per latent
    space_stride: Callable[[Settings], int]  # pixels per latent, along height and along width
    statistics: Literal["config", "weights", "none"]  # where it has mean and std of raw latents, per channel
    width: Callable[[Settings], float]  # channels per pixel of its widest layer at full size
    copies: int = (
        11  # of its output alive at once, at the most: counted in the published ones, where decoders hold most
    )
    latents_together: int = 1  # behind the first latent, the decoder takes a multiple of this many
    only_float32: bool = False
    compiles: bool = True  # to one graph; frames that hand features on make several, and all anew for each size
    refused: Mapping[str, str] = field(default_factory=dict)  # settings that must be off -> why
    outdated: Sequence[str] = ()  # settings in published configs that the class no longer has


CLASSES = {
    "AutoencoderKLWan": KnownClass(
        channels="z_dim",
        time_stride=lambda has: 2 ** sum(has["temperal_downsample"]),
        space_stride=lambda has: 2 ** (len(has["dim_mult"]) - 1) * (has["patch_size"] or 1),
        statistics="config",
        width=lambda has: max(has["base_dim"], has["decoder_base_dim"] or 0) / (has["patch_size"] or 1) ** 2,
        copies=5,  # of 17 frames, of which it has only four in work
        compiles=False,
        outdated=("clip_output",),  # decoded pixels are clipped whatever it says
    ),
    "AutoencoderKLHunyuanVideo": KnownClass(
        channels="latent_channels",
        time_stride=lambda has: has["temporal_compression_ratio"],
        space_stride=lambda has: has["spatial_compression_ratio"],
        statistics="none",
        width=lambda has: has["block_out_channels"][0],
    ),
    # invert_scale_latents is about the image that a video may start from, encoded by itself; videos are as ever.
    "AutoencoderKLCogVideoX": KnownClass(
        channels="latent_channels",
        time_stride=lambda has: has["temporal_compression_ratio"],
        space_stride=lambda has: 2 ** (len(has["block_out_channels"]) - 1),
        statistics="none",
        width=lambda has: has["block_out_channels"][0],
        latents_together=2,
        compiles=False,
        refused=dict.fromkeys(("shift_factor", "latents_mean", "latents_std"), "its pipelines leave it out"),
    ),
    "AutoencoderKLLTXVideo": KnownClass(
        channels="latent_channels",
        time_stride=lambda has: (
            has["temporal_compression_ratio"] or has["patch_size_t"] * 2 ** sum(has["spatio_temporal_scaling"])
        ),
        space_stride=lambda has: (
            has["spatial_compression_ratio"] or has["patch_size"] * 2 ** sum(has["spatio_temporal_scaling"])
        ),
        statistics="weights",
        width=lambda has: (
            max(has["block_out_channels"][0], has["decoder_block_out_channels"][0]) / has["patch_size"] ** 2
        ),
        refused={"decoder_inject_noise": "its decoder adds noise, so that no two decodings agree"},
    ),
    "AutoencoderKLMochi": KnownClass(
        channels="latent_channels",
        time_stride=lambda has: prod(has["temporal_expansions"]),
        space_stride=lambda has: prod(has["spatial_expansions"]),
        statistics="config",
        width=lambda has: max(has["encoder_block_out_channels"][0], has["decoder_block_out_channels"][0]),
        only_float32=True,  # it takes the sine of 256 pi times a pixel: half precision is off by up to a quarter turn
    ),
}

# Settings that the spec holds by itself (normalization, stride), and those that only training and tiling read.
NOT_ARCHITECTURE = {
    *("latents_mean", "latents_std", "scaling_factor", "shift_factor", "invert_scale_latents"),
    *("temporal_compression_ratio", "spatial_compression_ratio", "scale_factor_temporal", "scale_factor_spatial"),
    *("dropout", "force_upcast", "sample_height", "sample_width"),
}
