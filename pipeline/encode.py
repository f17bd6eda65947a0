"""Frames -> latents: the one place where pixels meet the VAE."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange

from models.vae.interface import VideoVAE


@torch.inference_mode()
def encode_chunks(vae: VideoVAE, frames: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    """Chunks of frames (B, T, H, W, 3) uint8 -> what is cached of them, normalized, (B, C, t, h, w) float16.

    That is the posterior's mean, one sample of it, or its mean and standard deviation one after the other (C = 2c), as
    `vae.spec.posterior` says. A sample is drawn with the seed of its chunk, on the CPU: the same on every device and in
    every batch. FloatingPointError where a value is not finite: such a chunk must not reach a cache.
    """
    pixels = rearrange(torch.from_numpy(frames).to(vae.device), "b t h w c -> b c t h w").float() / 127.5 - 1
    if vae.spec.posterior == "moments":
        latents = torch.cat(vae.moments(pixels), dim=1)  # (B, 2c, t, h, w)
    elif vae.spec.posterior == "sample":
        latents = vae.encode(pixels, [torch.Generator().manual_seed(seed) for seed in seeds])
    else:
        latents = vae.encode(pixels)
    cached = latents.to(torch.float16).cpu().numpy()
    if not np.isfinite(cached).all():
        raise FloatingPointError(f"the VAE {vae.spec.vae} gave latents that are not finite or overflow float16")
    return cached


def chunk_seed(recipe: str, key: str, number: int) -> int:
    """The seed of chunk `number` of a clip, under the recipe of that fingerprint."""
    digest = hashlib.blake2b(f"{recipe}/{key}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
