"""Which family a folder belongs to, and what is known of a family before any file of it is here."""

from typing import Any

from models.hub import locate
from models.latent_spec import LatentSpec
from models.vae import VAES, describe_vae
from models.vae.description import DEFAULT_CHUNK_FRAMES, Description
from models.vae.interface import VideoVAE
from models.vae.kl import SCALING_FACTORS
from models.vae.open_sora import BETWEEN, HUB_ID
from models.vae.open_sora_plan import FIXED, SCALING_FACTOR
from models.weights import read_config

# Mean and standard deviation, by channel, of the latents of Open-Sora's own training videos (its issue #554).
OPEN_SORA_SHIFT = (-0.10, 0.34, 0.27, 0.98)
OPEN_SORA_SCALE = (3.85, 2.32, 2.33, 3.06)

FAMILIES = {  # class in a config.json -> family; any other class is for diffusers to know
    "VideoAutoencoderPipeline": "open-sora-v1.2",
    "CausalVAEModel": "open-sora-plan",
    "WFVAEModel": "open-sora-plan",
}


def explain_vae(name_or_path: str) -> Description:
    """A family's name, or a folder or hub id with a VAE in it -> its description.

    Of a family that has weights the name alone gives the published numbers; such a description loads nothing.
    ValueError where there is no such family, folder or hub id.
    """
    family, colon, _ = name_or_path.partition(":")
    if family not in VAES:
        return describe_vae(*recognize(name_or_path))
    if colon or family not in PUBLISHED:
        return describe_vae(name_or_path)
    return PUBLISHED[family]


def recognize(path: str) -> tuple[str, str]:
    """A folder or hub id -> (family, path) as `describe_vae` takes them."""
    folder = locate(path, ["config.json", "vae/config.json"])
    places = [folder / "config.json", folder / "vae" / "config.json", folder.parent / "config.json"]
    found = next((place for place in places if place.is_file()), None)
    config = read_config(found) if found else {}
    kind = config.get("_class_name") or config.get("model_type")
    if kind == "AutoencoderKL":
        return ("pixart" if config.get("scaling_factor") == SCALING_FACTORS["pixart"] else "sd"), path
    if kind is None:  # Open-Sora's own file needs no config
        return "open-sora-v1.2", path
    return FAMILIES.get(kind, "diffusers"), path


def _published(
    family: str, stride: tuple[int, int, int], frame_step: int | None, **numbers: tuple[Any, str]
) -> Description:
    """Four channels, and each number with its origin."""
    values = {name: value for name, (value, _) in numbers.items() if value is not None}
    spec = LatentSpec(
        vae=family,
        channels=4,
        stride=stride,
        chunk_frames=DEFAULT_CHUNK_FRAMES,
        **{"shift": (0.0,) * 4, "scale": (1.0,) * 4, **values},
        dtype="float32",
        posterior="sample",
        config_sha256="",
        weights_sha256="",
    )

    def build() -> VideoVAE:
        raise ValueError(f"{family}: these are the published numbers; give a folder or hub id to load the VAE itself")

    return Description(spec, {name: origin for name, (_, origin) in numbers.items()}, build, frame_step)


PUBLISHED = {
    "open-sora-v1.2": _published(
        "open-sora-v1.2",
        (4, 8, 8),
        frame_step=1,
        scaling_factor=(1.0, f"none of its own; {BETWEEN} between its parts, as trained"),
        shift=(OPEN_SORA_SHIFT, f"model.safetensors of {HUB_ID}: means over its training videos"),
        scale=(OPEN_SORA_SCALE, f"model.safetensors of {HUB_ID}: standard deviations over them"),
    ),
    "open-sora-plan": _published("open-sora-plan", (4, 8, 8), frame_step=None, scaling_factor=(SCALING_FACTOR, FIXED)),
    **{
        family: _published(
            family, (1, 8, 8), frame_step=1, scaling_factor=(factor, "as published; a config.json that differs wins")
        )
        for family, factor in SCALING_FACTORS.items()
    },
}
