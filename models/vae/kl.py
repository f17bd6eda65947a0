"""The image autoencoder of Stable Diffusion, `AutoencoderKL` of diffusers, on the frames of a video.

`sd` is that of Stable Diffusion 1.5 and of Open-Sora 1.0 and 1.1, `pixart` that of PixArt and SDXL. They compress space
only: a frame knows nothing of the others.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn

from models.hub import locate
from models.latent_spec import LatentSpec
from models.vae.description import DEFAULT_CHUNK_FRAMES, Asked, Description, Normalization, digest
from models.vae.interface import DTYPES, VideoVAE, items_at_once, std_of
from models.weights import file_sha256, fill_weights, find_file, read_config, read_weights

# At the top of a VAE's own repository, in vae/ of a whole pipeline's. Pickles are looked for only to be refused.
WEIGHTS = ["diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
PICKLES = ["diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.bin"]
CONFIGS = ["config.json", "vae/config.json"]
SCALING_FACTORS = {"sd": 0.18215, "pixart": 0.13025}  # for configs that give none, as the oldest do
EXAMPLES = {"sd": "stabilityai/sd-vae-ft-ema", "pixart": "PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers"}

# Settings that decide how latents are normalized, and those that decide nothing here: the size of the training images,
# and whether a pipeline should leave half precision, which for us `LatentSpec.dtype` says.
NORMALIZING = {"scaling_factor", "shift_factor", "latents_mean", "latents_std"}
IDLE = {"sample_size", "force_upcast"}

# Names of attention weights before diffusers 0.17, in files that are still published, and their names since.
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD_NAME = re.compile(rf"(\.attentions\.\d+)\.({'|'.join(RENAMED)})\.(weight|bias)$")

Config = TypeVar("Config")  # a frozen record of settings


@dataclass(frozen=True)
class KLConfig:
    """What decides the arithmetic of an `AutoencoderKL`: its arguments, and their defaults, by its own names."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (64,)  # one per level; each level but the last halves the frame
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    layers_per_block: int = 1
    act_fn: str = "silu"
    norm_num_groups: int = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        if (self.in_channels, self.out_channels) != (3, 3):
            raise ValueError(
                f"a VAE of {self.in_channels} channels in and {self.out_channels} out; frames have 3, red, green and "
                f"blue: give a VAE of those"
            )
        levels = len(self.block_out_channels)
        if not levels == len(self.down_block_types) == len(self.up_block_types):
            raise ValueError(
                f"{levels} block_out_channels, {len(self.down_block_types)} down_block_types and "
                f"{len(self.up_block_types)} up_block_types; a level has one of each"
            )

    @property
    def stride(self) -> int:
        """Pixels per latent, along height and along width."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def maps_per_pixel(self) -> int:
        """Numbers held at once per pixel of a frame, encoding or decoding, whichever takes more.

        Both peak at full resolution: the encoder in its first level, where the residual, the two sides of a norm and of
        a convolution, and what a kernel reorders make six maps of the level's width; the decoder where it enters that
        level with maps of the width below. Measured on a CPU: 5.4 to 6 and 3.2 to 3.6 maps.
        """
        return max(6 * self.block_out_channels[0], 4 * max(self.block_out_channels[:2]))


def read_settings(kind: type[Config], found: Mapping[str, Any], origin: str) -> Config:
    """A section of a config -> the record `kind`, defaults filled in; ValueError on a setting that it does not have.

    A setting that nobody here knows may change the arithmetic, so it is neither passed over nor guessed.
    """
    known = list(inspect.signature(kind).parameters)
    if unknown := sorted(found.keys() - set(known)):
        raise ValueError(f"{origin}: no setting is called {', '.join(unknown)}; there are: {', '.join(known)}")
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})
    except (TypeError, ValueError) as error:  # a number where a list should be is a TypeError
        raise ValueError(f"{origin}: {error}") from error


class FrameAutoencoder(nn.Module):
    """Frames to the moments of their latents and back, as many frames at a time as fit into memory.

    Frames are independent, so how many go together changes rounding alone.
    """

    def __init__(self, config: KLConfig) -> None:
        # Here, because importing diffusers takes seconds.
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        super().__init__()
        self.config = config
        self.module: Any = AutoencoderKL(**asdict(config))

    def encode(self, pixels: Tensor, memory_bytes: int) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, T, H, W) -> posterior mean, in their dtype, and std, float32, each (B, c, T, h, w)."""
        mean, logvar = self._by_frame(pixels, 1, memory_bytes, self._moments).chunk(2, dim=1)
        return mean, std_of(logvar)

    def decode(self, latents: Tensor, memory_bytes: int) -> Tensor:
        """Latents (B, c, T, h, w) -> pixels (B, 3, T, H, W)."""
        return self._by_frame(latents, self.config.stride, memory_bytes, self._pixels)

    def modules_to_compile(self) -> list[nn.Module]:
        return [self.module.encoder, self.module.decoder]

    def _by_frame(self, video: Tensor, stride: int, memory_bytes: int, work: Callable[[Tensor], Tensor]) -> Tensor:
        """Let `work` see (B, ., T, H, W), where a position is `stride` pixels high and wide, as a batch of frames."""
        frames = rearrange(video, "b c t h w -> (b t) c h w")
        numbers = self.config.maps_per_pixel * frames.shape[2] * stride * frames.shape[3] * stride
        at_once = items_at_once(numbers * frames.element_size(), memory_bytes)
        done = torch.cat([work(some) for some in frames.split(at_once)])
        return rearrange(done, "(b t) c h w -> b c t h w", b=len(video))

    def _moments(self, frames: Tensor) -> Tensor:
        """(N, 3, H, W) -> mean and log variance (N, 2c, h, w)."""
        # Channels last makes encoding a quarter faster on a CPU; decoding it leaves as it is.
        moments = self.module.encoder(frames.contiguous(memory_format=torch.channels_last))
        return self.module.quant_conv(moments) if self.config.use_quant_conv else moments

    def _pixels(self, latents: Tensor) -> Tensor:
        """(N, c, h, w) -> (N, 3, H, W)."""
        if self.config.use_post_quant_conv:
            latents = self.module.post_quant_conv(latents)
        return self.module.decoder(latents)


class FrameVAE(VideoVAE):
    """A video's frames, each through the same image autoencoder: any number of them, as many latents."""

    frame_step = 1  # and `bytes_per_pixel` stays 0: the autoencoder splits chunks into frames itself

    def __init__(self, spec: LatentSpec, config: KLConfig) -> None:
        super().__init__()
        self.spec = spec
        self.kl = FrameAutoencoder(config)

    def raw_moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.kl.encode(pixels, self.memory)

    def raw_decode(self, latents: Tensor, num_frames: int) -> Tensor:
        return self.kl.decode(latents, self.memory)

    def modules_to_compile(self) -> list[nn.Module]:
        return self.kl.modules_to_compile()


def describe_frames(family: str, argument: str | None, path: str | Path | None, asked: Asked) -> Description:
    """`sd` or `pixart`, from a folder as diffusers publishes it, or its subfolder `vae`, or the id of one on the hub.

    ValueError on an argument, without a path, and on a config or weights of something else.
    """
    if argument is not None:
        raise ValueError(f"{family}:{argument}: {family} takes no argument; its config.json says all, ask for {family}")
    if path is None:
        raise ValueError(f"{family} needs its weights; give a folder or a hub id as path, as {EXAMPLES[family]}")
    weights = find_file(locate(path, [*CONFIGS, *WEIGHTS]), [*WEIGHTS, *PICKLES])
    if weights.suffix == ".bin":
        raise ValueError(
            f"{weights} is pickled, and reading a pickle can run any code; where you trust it, save the VAE again with "
            f"save_pretrained(safe_serialization=True) and give that folder"
        )
    origin = weights.parent / "config.json"
    found = read_config(origin)
    if found.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise ValueError(f"{origin}: of an {found['_class_name']}, {family} wants an AutoencoderKL; ask for its family")
    settings = {name: value for name, value in found.items() if name[0] != "_" and name not in NORMALIZING | IDLE}
    config = read_settings(KLConfig, settings, str(origin))
    normalization = read_normalization(family, config.latent_channels, found, asked)
    spec = LatentSpec(
        vae=family,
        channels=config.latent_channels,
        stride=(1, config.stride, config.stride),
        chunk_frames=asked.chunk_frames or DEFAULT_CHUNK_FRAMES,
        **normalization.values,
        dtype=asked.dtype or "float32",
        posterior=asked.posterior or "sample",
        config_sha256=digest(asdict(config)),
        weights_sha256=file_sha256(weights),
    )

    def load() -> FrameVAE:
        with torch.device("meta"):
            vae = FrameVAE(spec, config).to(DTYPES[spec.dtype])
        fill_weights(vae.kl.module, rename_attention(read_weights(weights)), str(weights))
        return vae

    return Description(spec, normalization.origins, load, FrameVAE.frame_step)


def read_normalization(family: str, channels: int, found: Mapping[str, Any], asked: Asked) -> Normalization:
    """What a config.json says of normalization, in the terms of LatentSpec.

    Diffusers normalizes as `(raw - shift_factor) * scaling_factor`, or as `(raw - latents_mean) * scaling_factor /
    latents_std`: its offset comes before the scaling factor and ours after, so it is multiplied by the one in use.
    """
    usual, published = SCALING_FACTORS[family], found.get("scaling_factor")
    if published is None:
        factor = (usual, f"that of {family}; none in config.json")
    else:
        factor = (published, "config.json" if published == usual else f"config.json, where {family} has {usual}")
    in_use = factor[0] if asked.scaling_factor is None else asked.scaling_factor

    names = [name for name in ("shift_factor", "latents_mean") if found.get(name) is not None]
    if len(names) == 2:
        raise ValueError(
            "config.json gives a shift_factor and latents_mean, two offsets for the same latents; keep one"
        )
    shift: tuple[float | Sequence[float], str] = (0.0, "none in config.json")
    if names:
        offset = found[names[0]]
        offsets = offset if isinstance(offset, list) else [offset] * channels
        shift = ([in_use * value for value in offsets], f"config.json: {names[0]} times the scaling factor")
    scale = (1.0, "none in config.json")
    if (std := found.get("latents_std")) is not None:
        scale = (std, "config.json: latents_std")
    return asked.normalization(channels, scaling_factor=factor, shift=shift, scale=scale)


def rename_attention(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names that diffusers has now, whether a file has the old ones or not."""
    return {
        OLD_NAME.sub(lambda old: f"{old[1]}.{RENAMED[old[2]]}.{old[3]}", name): tensor for name, tensor in found.items()
    }


describe_sd = partial(describe_frames, "sd")
describe_pixart = partial(describe_frames, "pixart")
