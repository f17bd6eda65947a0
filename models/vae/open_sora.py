"""The VAE of Open-Sora v1.2: the image autoencoder of SDXL, fine-tuned, then a causal one in time.

A checkpoint has both parts in one file, and with them the shift and scale that its latents are normalized by.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from models.hub import locate
from models.latent_spec import LatentSpec
from models.vae.description import DEFAULT_CHUNK_FRAMES, OVERRIDDEN, Asked, Description, digest
from models.vae.interface import DTYPES, Generators, VideoVAE, std_of
from models.vae.kl import FrameAutoencoder, KLConfig, read_settings
from models.vae.temporal import TemporalConfig, TemporalVAE
from models.weights import file_sha256, fill_weights, find_file, read_config, read_weights

FAMILY = "open-sora-v1.2"
HUB_ID = "hpcai-tech/OpenSora-VAE-v1.2"
WEIGHTS = "model.safetensors"
NORMALIZING = ("shift", "scale")  # two tensors of the file that no module holds

# Between the two parts 2-D latents are multiplied by the scaling factor of Stable Diffusion 1.5. The autoencoder is
# SDXL's, whose factor is 0.13025: a slip of the authors, but the temporal part was trained on the product, so it stays.
# It is not the factor of the latents that come out; in the spec that is 1.
BETWEEN = 0.18215

SDXL = KLConfig(  # as published: that config.json names where the part once came from, not its shape
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
)


class OpenSoraVAE(VideoVAE):
    """Pixels -> 2-D latents of every frame -> latents of a quarter as many frames, and back.

    The raw sizes are floored by the stride, as the original does: what is left of a frame at its right and bottom is
    lost. `check_pixels` refuses such frames before they come here.
    """

    frame_step = 1  # zeros in front fill any number of frames up

    def __init__(self, spec: LatentSpec, spatial: KLConfig, temporal: TemporalConfig) -> None:
        super().__init__()
        self.spec = spec
        self.spatial_vae = FrameAutoencoder(spatial)
        self.temporal_vae = TemporalVAE(temporal)
        # Of the temporal part, which decides how many chunks go together; the spatial part splits them into frames.
        position = temporal.maps_per_position * DTYPES[spec.dtype].itemsize
        self.bytes_per_pixel = -(-position // spatial.stride**2)

    def raw_moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The moments that follow from the posterior mean of the 2-D latents, so that they do not depend on chance."""
        mean, _ = self.spatial_vae.encode(pixels, self.memory)
        return self._encode_time(mean)

    def raw_sample(self, pixels: Tensor, generators: Generators) -> Tensor:
        """Both posteriors are sampled: a row's generator gives the noise of its frames, then that of its latents."""
        _, _, frames, height, width = pixels.shape
        time, down, across = self.spec.stride
        place = (height // down, width // across)
        spatial = (self.spatial_vae.config.latent_channels, frames, *place)
        temporal = (self.spec.channels, -(-frames // time), *place)
        # Row by row, for a generator may have several chunks of one clip: how many go together must not show.
        noise = [
            [torch.randn(shape, generator=one, device=one.device) for shape in (spatial, temporal)]
            for one in generators
        ]
        spatial_noise, temporal_noise = (torch.stack(rows).to(pixels.device) for rows in zip(*noise))
        return self.sample_with(pixels, spatial_noise, temporal_noise)

    def sample_with(self, pixels: Tensor, spatial_noise: Tensor, temporal_noise: Tensor) -> Tensor:
        """Pixels (B, 3, F, H, W), float32 noise (B, 4, F, h, w) and (B, c, f, h, w) -> raw (B, c, f, h, w), float32."""
        mean, std = self.spatial_vae.encode(pixels, self.memory)
        mean, std = self._encode_time((mean.float() + std * spatial_noise).to(pixels.dtype))
        return mean.float() + std * temporal_noise

    def raw_decode(self, latents: Tensor, num_frames: int) -> Tensor:
        frames = self.temporal_vae.decode(latents, num_frames)  # (B, 4, num_frames, h, w)
        return self.spatial_vae.decode(frames / BETWEEN, self.memory)

    def modules_to_compile(self) -> list[nn.Module]:
        return [*self.spatial_vae.modules_to_compile(), self.temporal_vae.encoder, self.temporal_vae.decoder]

    def _encode_time(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """2-D latents (B, 4, F, h, w) -> raw mean and std (B, c, f, h, w)."""
        mean, logvar = self.temporal_vae.encode(frames * BETWEEN)
        return mean, std_of(logvar)


def describe_open_sora(argument: str | None, path: str | Path | None, asked: Asked) -> Description:
    """`open-sora-v1.2`, from a folder as it is published or the id of one on the hub; nothing else is ever fetched.

    A config.json may be missing. Sections `spatial` and `temporal` in it, with the fields of KLConfig and
    TemporalConfig, describe models of other than the published sizes.
    """
    if argument is not None:
        raise ValueError(f"{FAMILY}:{argument}: {FAMILY} takes no argument; ask for {FAMILY}")
    if path is None:
        raise ValueError(f"{FAMILY} needs its weights; give a folder or a hub id as path, as {HUB_ID}")
    weights = find_file(locate(path, ["config.json", WEIGHTS]), [WEIGHTS])
    origin = weights.parent / "config.json"
    found = read_config(origin) if origin.exists() else {}
    check_kinds(found, origin)
    spatial = read_settings(KLConfig, found["spatial"], f"{origin}: spatial") if "spatial" in found else SDXL
    temporal = read_settings(TemporalConfig, found.get("temporal", {}), f"{origin}: temporal")
    channels = temporal.channels
    if spatial.latent_channels != channels:
        raise ValueError(
            f"{origin}: {spatial.latent_channels} channels in space, {channels} in time; give both the same"
        )

    normalization = asked.normalization(
        channels,
        scaling_factor=(1.0, f"none of its own; {BETWEEN} between its parts, as trained"),
        **read_normalization(weights, channels, found),
    )
    # 17 = 1+4+4+4+4: the temporal part was trained on fewer than 34 frames at once, longer chunks bring artefacts, and
    # 16 or 18 do not divide.
    frames, frames_origin = DEFAULT_CHUNK_FRAMES, "as it was trained"
    if found.get("micro_frame_size") is not None:
        frames, frames_origin = found["micro_frame_size"], "config.json: micro_frame_size"
    if asked.chunk_frames is not None:
        frames, frames_origin = asked.chunk_frames, f"{OVERRIDDEN}; {frames_origin}: {frames}"
    spec = LatentSpec(
        vae=FAMILY,
        channels=channels,
        stride=(temporal.stride, spatial.stride, spatial.stride),
        chunk_frames=frames,
        **normalization.values,
        dtype=asked.dtype or "float32",
        posterior=asked.posterior or "sample",
        config_sha256=digest([asdict(spatial), asdict(temporal), BETWEEN]),
        weights_sha256=file_sha256(weights),
    )

    def load() -> OpenSoraVAE:
        with torch.device("meta"):
            vae = OpenSoraVAE(spec, spatial, temporal).to(DTYPES[spec.dtype])
        tensors = read_weights(weights)
        fill_weights(vae, {name: tensors[name] for name in tensors.keys() - set(NORMALIZING)}, str(weights))
        return vae

    return Description(spec, {**normalization.origins, "chunk_frames": frames_origin}, load, OpenSoraVAE.frame_step)


def check_kinds(found: Mapping[str, Any], origin: Path) -> None:
    """ValueError where a config names other classes than ours; its other settings are of training and of sources."""
    named = {
        "VideoAutoencoderPipeline": found.get("model_type"),
        "VideoAutoencoderKL": (found.get("vae_2d") or {}).get("type"),
        "VAE_Temporal_SD": (found.get("vae_temporal") or {}).get("type"),
    }
    for wanted, kind in named.items():
        if kind not in (None, wanted):
            raise ValueError(f"{origin}: of a {kind}, {FAMILY} has a {wanted}; give the folder of {HUB_ID}")


def read_normalization(weights: Path, channels: int, found: Mapping[str, Any]) -> dict[str, tuple[list[float], str]]:
    """Shift and scale of a checkpoint, one number per channel, and where they come from."""
    tensors, read = read_weights(weights, only=NORMALIZING), {}
    for name in NORMALIZING:
        if name not in tensors or tensors[name].numel() != channels:
            what = list(tensors[name].shape) if name in tensors else "none"
            raise ValueError(f"{weights}: {name}: found {what}, wanted [1, {channels}, 1, 1, 1]; fetch {HUB_ID} again")
        # The shortest number that a float32 stands for: 3.85 and not 3.8499999046325684.
        values = [float(str(value)) for value in rearrange(tensors[name].float().numpy(), "... -> (...)")]
        differs = found.get(name) not in (None, values)
        read[name] = (values, f"{WEIGHTS}, where config.json has {found[name]}" if differs else WEIGHTS)
    return read
