"""The VAEs, by name."""

from collections.abc import Callable
from pathlib import Path

import torch

from models.vae.dct import load_dct
from models.vae.interface import VideoVAE

# Family -> loader of (what follows the colon or None, path of the weights or None, dtype, frames per chunk).
VAES: dict[str, Callable[[str | None, str | Path | None, torch.dtype, int], VideoVAE]] = {"dct": load_dct}


def load_vae(
    name: str, path: str | Path | None = None, dtype: torch.dtype = torch.float32, chunk_frames: int = 17
) -> VideoVAE:
    """A VAE ready to use (eval mode, no gradients); `dct:32` is the family `dct` with the argument `32`.

    ValueError on an unknown family, and on an argument, path or chunk_frames that does not fit the family.
    """
    family, colon, argument = name.partition(":")
    if family not in VAES:
        raise ValueError(f"no VAE is called {name!r}; the run may name one of: {', '.join(sorted(VAES))}")
    vae = VAES[family](argument if colon else None, path, dtype, chunk_frames)
    return vae.eval().requires_grad_(False)
