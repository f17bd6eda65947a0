"""`diffusers:FOLDER`: the causal video VAEs of diffusers, normalized as their pipelines do. The modules are its own."""

import inspect
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.hub import locate
from models.latent_spec import LatentSpec
from models.vae.description import DEFAULT_CHUNK_FRAMES, Asked, Description, Normalization, digest
from models.vae.diffusers_classes import CLASSES, NOT_ARCHITECTURE, KnownClass, Settings
from models.vae.interface import DTYPES, VideoVAE, std_of
from models.weights import file_sha256, fill_weights, find_file, read_config, read_weights

# At the top of a VAE's own repository, in vae/ of a whole pipeline's. Pickles are looked for, to be refused as pickles.
WEIGHTS = ["diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
PICKLES = ["diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.bin"]
CONFIGS = ["config.json", "vae/config.json"]


class DiffusersVAE(VideoVAE):
    """A VAE of diffusers, its chunks whole: neither tiled nor sliced."""

    def __init__(self, spec: LatentSpec, known: KnownClass, settings: Settings, module: Any) -> None:
        super().__init__()
        self.spec = spec
        self.known = known
        self.frame_step = spec.stride[0] * known.latents_together
        # By default HunyuanVideo cuts even 17 frames into overlapping runs, and blends what they decode to.
        module.use_framewise_encoding = module.use_framewise_decoding = False
        self.module = module
        # At full size the layers hold the most: each its input, its output, a padded copy, and what a residual keeps.
        self.bytes_per_pixel = int(known.copies * known.width(settings) * DTYPES[spec.dtype].itemsize)
        # Where the decoder of LTX also removes noise, its pipelines tell it by default that there is none.
        self.takes_timestep = bool(settings.get("timestep_conditioning"))

    def raw_moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, F, H, W) -> raw posterior mean and std (B, c, f, h, w)."""
        posterior = self.module.encode(pixels).latent_dist
        return posterior.mean, std_of(posterior.logvar)

    def raw_decode(self, latents: Tensor, num_frames: int) -> Tensor:
        """Raw latents (B, c, f, h, w) -> pixels (B, 3, num_frames, H, W)."""
        timestep = [latents.new_zeros(len(latents))] if self.takes_timestep else []
        return self.module.decode(latents, *timestep).sample

    def modules_to_compile(self) -> list[nn.Module]:
        """Encoder and decoder, or nothing."""
        return [self.module.encoder, self.module.decoder] if self.known.compiles else []


@dataclass(frozen=True)
class Checkpoint:
    """A folder of diffusers: its config, checked, and where its weights are."""

    name: str  # of the class
    config: Path
    weights: Path
    given: frozenset[str]  # the settings that the config spells out
    settings: Settings

    @property
    def known(self) -> KnownClass:
        return CLASSES[self.name]

    @property
    def channels(self) -> int:
        return self.settings[self.known.channels]

    def origin(self, setting: str) -> str:
        return self.config.name if setting in self.given else f"default of {self.name}"

    def build(self) -> Any:
        """The module, without numbers: on the meta device."""
        import diffusers

        with torch.device("meta"):
            return getattr(diffusers, self.name).from_config(dict(self.settings))


def describe_diffusers(argument: str | None, path: str | Path | None, asked: Asked) -> Description:
    """`diffusers:FOLDER-OR-HUB-ID`, or `diffusers` and its path; ValueError where there is no class of CLASSES."""
    places = [place for place in (argument, path) if place is not None]
    if len(places) != 1:
        raise ValueError("diffusers wants one folder or hub id; give it as diffusers:FOLDER, or as the path")
    folder = locate(places[0], [*CONFIGS, *WEIGHTS])
    found = read_checkpoint(find_file(folder, [*WEIGHTS, *PICKLES]))
    known = found.known
    try:
        module = found.build()
        time, space = known.time_stride(found.settings), known.space_stride(found.settings)
    except Exception as error:  # whatever comes of settings that mean nothing
        raise ValueError(f"{found.config}: no {found.name} can be built of it ({first_line(error)})") from error
    normalization = read_normalization(found, asked)
    origins = dict(normalization.origins)
    if known.only_float32:
        origins["dtype"] = f"{found.name} sees pixels too finely for any other"
    step = time * known.latents_together
    spec = LatentSpec(
        vae=f"diffusers:{found.name}",
        channels=found.channels,
        stride=(time, space, space),
        chunk_frames=asked.chunk_frames or 1 + step * -(-(DEFAULT_CHUNK_FRAMES - 1) // step),
        **normalization.values,
        dtype="float32" if known.only_float32 else asked.dtype or "float32",
        posterior=asked.posterior or "sample",
        config_sha256=digest({key: value for key, value in found.settings.items() if key not in NOT_ARCHITECTURE}),
        weights_sha256=file_sha256(found.weights),
    )

    def build() -> VideoVAE:
        vae = DiffusersVAE(spec, known, found.settings, found.build()).to(DTYPES[spec.dtype])
        fill_weights(vae.module, read_weights(found.weights), str(found.weights))
        if empty := [name for name, tensor in chain(vae.named_parameters(), vae.named_buffers()) if tensor.is_meta]:
            raise ValueError(f"{found.weights}: no file of weights fills {', '.join(empty)} of {found.name}")
        return vae

    description = Description(spec, origins, build, step)
    check_geometry(DiffusersVAE(spec, known, found.settings, module), found.config)
    return description


def read_checkpoint(weights: Path) -> Checkpoint:
    """A file of weights with its config beside it; ValueError on a class or settings that we cannot honour."""
    read_weights(weights, only=())  # a pickle or half a file is refused before its checksum is taken
    config = weights.parent / "config.json"
    published = read_config(config)
    name = published.get("_class_name")
    if name not in CLASSES:
        hint = "; it encodes single frames: load it as sd or pixart" if name == "AutoencoderKL" else ""
        raise ValueError(f"{config}: the class is {name}, wanted one of {', '.join(CLASSES)}{hint}")
    known = CLASSES[name]
    given = {key: value for key, value in published.items() if not key.startswith("_") and key not in known.outdated}
    defaults = constructor_defaults(name)
    if unknown := sorted(given.keys() - defaults.keys()):
        raise ValueError(
            f"{config}: {name} of this diffusers has no setting {', '.join(unknown)}, and would ignore it; "
            f"update diffusers, or give the config as it was published"
        )
    settings = {**defaults, **given}
    for setting, reason in known.refused.items():
        value = settings[setting]
        if any(value) if isinstance(value, list | tuple) else value:
            raise ValueError(f"{config}: {setting} is {value}, but {reason}; give a checkpoint without it")
    return Checkpoint(name, config, weights, frozenset(given), settings)


def constructor_defaults(name: str) -> Settings:
    """A class of diffusers -> every setting it has, with its default."""
    import diffusers

    _, *parameters = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}


def read_normalization(found: Checkpoint, asked: Asked) -> Normalization:
    """Its pipelines' (raw - mean) * scaling_factor / std, as (raw * scaling_factor - shift) / scale."""
    factor, origin = 1.0, "none in this class"
    if "scaling_factor" in found.settings:
        factor, origin = found.settings["scaling_factor"], found.origin("scaling_factor")
        if not isinstance(factor, int | float):
            raise ValueError(f"{found.config}: scaling_factor is {factor!r}, wanted a number; give it as published")
    if found.known.statistics == "none":
        return asked.normalization(found.channels, scaling_factor=(factor, origin))
    mean, mean_origin = read_statistic(found, "latents_mean")
    std, std_origin = read_statistic(found, "latents_std")
    applied = factor if asked.scaling_factor is None else asked.scaling_factor
    return asked.normalization(
        found.channels,
        scaling_factor=(factor, origin),
        shift=([value * applied for value in mean], mean_origin),
        scale=(std, std_origin),
    )


def read_statistic(found: Checkpoint, name: str) -> tuple[list[float], str]:
    """`latents_mean` or `latents_std` of raw latents -> a number per channel, and where they come from."""
    if found.known.statistics == "weights":
        tensors, file = read_weights(found.weights, only=(name,)), found.weights
        values: Any = tensors[name].tolist() if name in tensors else None
        origin = f"{name} in the weights"
    else:
        values, file, origin = found.settings[name], found.config, f"{name}, {found.origin(name)}"
    numbers = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
    if not numbers or len(values) != found.channels:
        count = f"{len(values)} numbers" if numbers else repr(values)
        raise ValueError(
            f"{file}: {name} is {count} for {found.channels} channels ({found.known.channels}), wanted one number per "
            f"channel; give the folder as it was published"
        )
    return list(values), origin


def check_geometry(vae: DiffusersVAE, config: Path) -> None:
    """ValueError unless the layers, run without numbers on the meta device, keep to the spec's channels and stride."""
    spec = vae.spec
    frames, height, width = 1 + (vae.frame_step or 1), spec.stride[1], spec.stride[2]
    try:
        mean, _ = vae.raw_moments(torch.empty(1, 3, frames, height, width, device="meta"))
        decoded = vae.raw_decode(mean, frames)
    except Exception as error:  # whatever comes of layers that do not fit each other
        raise ValueError(f"{config}: {spec.vae} of it encodes and decodes nothing ({first_line(error)})") from error
    found = tuple(mean.shape[1:]), tuple(decoded.shape[1:])
    wanted = spec.latent_shape(frames, height, width), (3, frames, height, width)
    if found != wanted:
        raise ValueError(
            f"{config}: the layers of {spec.vae} make of pixels {wanted[1]} latents {found[0]}, and of those pixels "
            f"{found[1]}, where the settings promise latents {wanted[0]}; give the config as it was published"
        )


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: " + str(error).strip().partition("\n")[0]
