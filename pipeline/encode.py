"""Frames -> latents: the one place where pixels meet the VAE."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from models.vae.interface import VideoVAE

FLOAT_BYTES = 4
# Of pixels in one call of the VAE, by device. A CPU's allocator keeps pieces below 32 MiB and gives larger ones back:
# all their pages are zeroed anew each time, which took the dct VAE 18 ms a chunk instead of 8 (LOG.md).
BATCH_BYTES = {"cpu": 28 * 2**20, "cuda": 128 * 2**20}


@torch.inference_mode()
def encode_chunks(vae: VideoVAE, frames: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    """Chunks of frames (B, T, H, W, 3) uint8 -> what is cached of them, normalized, (B, C, t, h, w) float16.

    That is the posterior's mean, one sample of it, or its mean and standard deviation one after the other (C = 2c), as
    `vae.spec.posterior` says. A sample is drawn with the seed of its chunk, on the CPU: the same on every device and in
    every batch. What must not reach a cache, such as values that are not finite, is for `pipeline.gate` to find.
    """
    pixels = to_pixels(torch.from_numpy(frames).to(vae.device))
    if vae.spec.posterior == "moments":
        latents = torch.cat(vae.moments(pixels), dim=1)  # (B, 2c, t, h, w)
    elif vae.spec.posterior == "sample":
        latents = vae.encode(pixels, [torch.Generator().manual_seed(seed) for seed in seeds])
    else:
        latents = vae.encode(pixels)
    return latents.to(torch.float16).cpu().numpy()


def to_pixels(frames: Tensor) -> Tensor:
    """Frames (B, T, H, W, 3) uint8 -> pixels (B, 3, T, H, W) in [-1, 1], what every VAE takes."""
    return rearrange(frames, "b t h w c -> b c t h w").float().div_(127.5).sub_(1)  # in place: fewer page faults


@torch.inference_mode()
def decode_to_frames(vae: VideoVAE, latents: Tensor, num_frames: int) -> np.ndarray:
    """Normalized latents (B, c, t, h, w) -> frames (B, T, H, W, 3) uint8."""
    return to_frames(vae.decode(latents, num_frames))


def to_frames(pixels: Tensor) -> np.ndarray:
    """Pixels (B, 3, T, H, W), about [-1, 1] -> frames (B, T, H, W, 3) uint8."""
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return rearrange(levels, "b c t h w -> b t h w c").cpu().numpy()


Size = tuple[int, int, int]  # (frames, height, width) of a chunk


def chunks_at_once(size: Size, batch_bytes: int | None, device: str) -> int:
    """How many chunks' pixels, in float32, `batch_bytes` hold, or what suits the device; one at the least."""
    num_frames, height, width = size
    return max(1, (batch_bytes or BATCH_BYTES[device]) // (num_frames * height * width * 3 * FLOAT_BYTES))


def batch_size(num_chunks: int, most: int) -> int:
    """Chunks per call of the VAE where a shard has `num_chunks` and at most `most` go together: even, for few fillers.

    A function of the plan alone: every call for a shard has the same size, because the bits of a latent may depend on
    it.
    """
    return -(-num_chunks // max(1, -(-num_chunks // most)))


def psnr(frames: np.ndarray, others: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 arrays of one shape, in dB."""
    error = np.mean(np.square(frames.astype(np.float32) - others))
    return float(10 * np.log10(255**2 / max(float(error), 1e-9)))


def chunk_seed(recipe: str, key: str, number: int) -> int:
    """The seed of chunk `number` of a clip, under the recipe of that fingerprint."""
    digest = hashlib.blake2b(f"{recipe}/{key}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
