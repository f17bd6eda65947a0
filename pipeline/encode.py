"""Frames -> latents: the one place where pixels meet the VAE."""

from itertools import chain

import numpy as np
import torch
from einops import rearrange

from models.vae.interface import VideoVAE


@torch.inference_mode()
def encode_chunks(vae: VideoVAE, frames: np.ndarray) -> np.ndarray:
    """Chunks of frames (B, T, H, W, 3) uint8 -> normalized latents (B, c, t, h, w) float16.

    FloatingPointError where a latent is not finite: such a chunk must not reach a cache.
    """
    device = next(chain(vae.parameters(), vae.buffers())).device
    pixels = rearrange(torch.from_numpy(frames).to(device), "b t h w c -> b c t h w").float() / 127.5 - 1
    latents = vae.encode(pixels).to(torch.float16).cpu().numpy()  # (B, c, t, h, w)
    if not np.isfinite(latents).all():
        raise FloatingPointError(f"the VAE {vae.spec.vae} gave latents that are not finite or overflow float16")
    return latents
