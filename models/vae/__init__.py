"""The VAEs, by name."""

from collections.abc import Callable
from pathlib import Path

from models.latent_spec import Dtype, Posterior
from models.vae.dct import describe_dct
from models.vae.description import NOTHING_ASKED, Asked, Description
from models.vae.diffusers_vae import describe_diffusers
from models.vae.interface import VideoVAE
from models.vae.kl import describe_pixart, describe_sd
from models.vae.open_sora import describe_open_sora
from models.vae.open_sora_plan import describe_open_sora_plan

# Family -> description from (what follows the colon or None, path or hub id of the weights or None, what is asked).
VAES: dict[str, Callable[[str | None, str | Path | None, Asked], Description]] = {
    "dct": describe_dct,
    "sd": describe_sd,
    "pixart": describe_pixart,
    "open-sora-v1.2": describe_open_sora,
    "open-sora-plan": describe_open_sora_plan,
    "diffusers": describe_diffusers,
}


def describe_vae(name: str, path: str | Path | None = None, asked: Asked = NOTHING_ASKED) -> Description:
    """A VAE's latents without its weights: config and checksums are read, tensors are not.

    `dct:32` is the family `dct` with the argument `32`. ValueError on an unknown family, and on an argument, path, file
    or wish that does not fit the family.
    """
    family, colon, argument = name.partition(":")
    if family not in VAES:
        raise ValueError(f"no VAE is called {name!r}; the run may name one of: {', '.join(sorted(VAES))}")
    return VAES[family](argument if colon else None, path, asked)


def load_vae(
    name: str,
    path: str | Path | None = None,
    *,
    dtype: Dtype | None = None,
    chunk_frames: int | None = None,
    posterior: Posterior | None = None,
) -> VideoVAE:
    """A VAE ready to use: eval mode, no gradients, on the CPU. ValueError as `describe_vae`, and on wrong weights."""
    asked = Asked(chunk_frames=chunk_frames, dtype=dtype, posterior=posterior)
    return describe_vae(name, path, asked).load()
