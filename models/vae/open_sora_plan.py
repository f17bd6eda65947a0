"""The VAEs of Open-Sora-Plan as they were published: a config.json beside a safetensors file or a .ckpt."""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.hub import locate
from models.latent_spec import LatentSpec
from models.vae.causal_vae import CausalVAE, CausalVAEConfig
from models.vae.description import DEFAULT_CHUNK_FRAMES, Asked, Description, Normalization, digest
from models.vae.interface import DTYPES, VideoVAE, std_of
from models.vae.wf_vae import WFVAE, WFVAEConfig
from models.weights import file_sha256, fill_weights, find_file, read_config, read_weights

SAVED_BY_DIFFUSERS = "diffusion_pytorch_model.safetensors"
WEIGHTS = (SAVED_BY_DIFFUSERS, "*.safetensors", "*.ckpt")
# On the hub the VAE is in a folder of its own, beside DiTs of tens of gigabytes that `*.safetensors` would fetch too.
ON_THE_HUB = ["vae/*", "config.json", SAVED_BY_DIFFUSERS, "*.ckpt"]
SCALING_FACTOR = 0.18215
FIXED = "fixed by the originals: Stable Diffusion's, not measured on this VAE"
# The networks of the training's loss, and the Haar filters, which WF-VAE's code has as constants, under two spellings.
LEFT_OUT = ("loss.", "encoder.wavelet_tran", "decoder.inverse_wavelet_tran")


class OpenSoraPlanVAE(VideoVAE):
    """Encodes and decodes chunks whole: the originals' tiles are lossy, since each is normalized by itself."""

    def __init__(self, spec: LatentSpec, network: CausalVAE | WFVAE, bytes_per_pixel: int) -> None:
        super().__init__()
        self.spec = spec
        self.network = network
        self.bytes_per_pixel = bytes_per_pixel

    def raw_moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.network.encode(pixels).chunk(2, dim=1)  # each (B, c, f, h, w)
        return mean, std_of(logvar)

    def raw_decode(self, latents: Tensor, num_frames: int) -> Tensor:
        return self.network.decode(latents)  # 1 + 4 (f - 1) frames, which is num_frames

    def modules_to_compile(self) -> list[nn.Module]:
        return [self.network.encoder, self.network.decoder]


def one_factor(asked: Asked, channels: int, document: Mapping[str, Any]) -> Normalization:
    """CausalVAE: raw * 0.18215, whatever its config says."""
    return asked.normalization(channels, scaling_factor=(SCALING_FACTOR, FIXED))


def per_channel(asked: Asked, channels: int, document: Mapping[str, Any]) -> Normalization:
    """WF-VAE: (raw - shift) * scale by the channel, theirs; ours divides by the scale."""
    scales = document.get("scale", [SCALING_FACTOR] * channels)
    if not all(scale > 0 for scale in scales):
        raise ValueError(f"scale is {scales}; latents are multiplied by it, so it has to be above 0")
    return asked.normalization(
        channels,
        scaling_factor=(1.0, "none: this family has a scale per channel"),
        shift=(
            document.get("shift", [0.0] * channels),
            "config.json" if "shift" in document else "none in config.json",
        ),
        scale=(
            [1 / scale for scale in scales],
            "1 / scale of config.json" if "scale" in document else f"1 / 0.18215, {FIXED}",
        ),
    )


class Layout(NamedTuple):
    """One class of VAE: what its config.json becomes, the network, and how its latents are normalized."""

    config: type[CausalVAEConfig] | type[WFVAEConfig]
    network: Callable[[Any], CausalVAE | WFVAE]
    normalization: Callable[[Asked, int, Mapping[str, Any]], Normalization]


LAYOUTS = {  # by `_class_name` in config.json
    "CausalVAEModel": Layout(CausalVAEConfig, CausalVAE, one_factor),
    "WFVAEModel": Layout(WFVAEConfig, WFVAE, per_channel),
}


def describe_open_sora_plan(argument: str | None, path: str | Path | None, asked: Asked) -> Description:
    """`open-sora-plan` and the folder, file or hub id of a release, whose config.json names the layout.

    ValueError on an argument, on no path, and on a config.json or weights that are not of these VAEs.
    """
    if argument is not None:
        raise ValueError(f"open-sora-plan:{argument}: leave out what follows the colon; config.json names the layout")
    if path is None:
        raise ValueError("open-sora-plan needs a path: the folder, the weights or the hub id of a release")
    weights = find_weights(locate(path, ON_THE_HUB))
    config_file = weights.parent / "config.json"
    document = read_config(config_file)
    name = document.get("_class_name")
    try:
        if name not in LAYOUTS:
            raise ValueError(f"_class_name is {name!r}, known are {', '.join(LAYOUTS)}")
        layout = LAYOUTS[name]
        config = layout.config(**known_fields(layout.config, document))
        normalization = layout.normalization(asked, config.channels, document)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{config_file}: {error}; give the config.json that was published with the weights") from error
    spec = LatentSpec(
        vae="open-sora-plan",
        channels=config.channels,
        stride=config.stride,
        chunk_frames=asked.chunk_frames or DEFAULT_CHUNK_FRAMES,
        **normalization.values,
        dtype=asked.dtype or "float32",
        posterior=asked.posterior or "sample",
        config_sha256=digest([name, asdict(config)]),
        weights_sha256=file_sha256(weights),
    )

    def load() -> VideoVAE:
        dtype = DTYPES[spec.dtype]
        with torch.device("meta"):
            network = layout.network(config).to(dtype)
        fill_weights(network, read_checkpoint(weights), str(weights))
        return OpenSoraPlanVAE(spec, network, config.channels_at_once * dtype.itemsize)

    return Description(spec, {**normalization.origins, "attention": f"{config.attention}, by config.json"}, load)


def known_fields(kind: type, document: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json -> the fields of `kind`, passing over others, which are of training; ValueError where one lacks."""
    known = fields(kind)
    missing = [field.name for field in known if field.default is MISSING and field.name not in document]
    if missing:
        raise ValueError(f"no {', '.join(missing)}, which the weights do not show, and a guess would load as cleanly")
    given = {field.name: document[field.name] for field in known if field.name in document}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def find_weights(place: Path) -> Path:
    """A release's folder, or its folder of the VAE, or a file of weights -> that file; safetensors go before a .ckpt.

    ValueError where there is none, and where there are several to choose from.
    """
    if (place / "vae" / "config.json").is_file():
        place = place / "vae"
    found = find_file(place, WEIGHTS)
    rivals = sorted(path.name for path in place.glob(f"*{found.suffix}"))
    if len(rivals) > 1 and found.name != SAVED_BY_DIFFUSERS:
        raise ValueError(f"{place} has {', '.join(rivals)}; nothing says which is meant: give the file itself")
    return found


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """A safetensors file or .ckpt -> the VAE's tensors: the averaged ones (EMA) where it has them, else the last.

    Names lose the `module.` of distributed training.
    """
    found = read_weights(path) if path.suffix == ".safetensors" else _read_pickled(path)
    tensors = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(LEFT_OUT)}


def _read_pickled(path: Path) -> dict[str, Tensor]:
    """A .ckpt -> the tensors it is for, without running any code: ValueError where that would be needed."""
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("not a whole zip file")
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds other objects than tensors, and reading those can run any code; where you trust it, save "
            f"its state_dict with safetensors.torch.save_file and give that"
        ) from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} is not a checkpoint of torch.save, or was cut off ({error}); fetch it again"
        ) from error
    for inner in ("ema_state_dict", "state_dict", "gen_model"):  # the last lies within the second
        if isinstance(held, dict) and held.get(inner):
            held = held[inner]
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise ValueError(f"{path}: found no state dict, of tensors by name; give the VAE's weights")
    return held
