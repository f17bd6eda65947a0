"""The random numbers of training: a function of (seed, step, position in the global batch), never of rank or worker."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from models.diffusion.masks import draw_mask
from models.diffusion.rectified_flow import TimestepMethod, draw_timesteps

Null = tuple[Tensor, Tensor | None]  # a null caption (N, dim) and its mask (N,), as `drop_captions` reads them


@dataclass(frozen=True)
class Draws:
    """What one training step draws for its samples."""

    noise: Tensor  # (B, c, t, h, w) float32, normal
    timesteps: Tensor  # (B,) float32 in 0..1000, before any transform
    drop_caption: Tensor  # (B,) bool
    posterior_noise: Tensor | None  # as noise, for a fresh posterior sample; None unless asked for
    mask: Tensor | None  # (B, t) bool, False = a given frame; None where every frame is denoised


def draw(
    seed: int,
    step: int,
    positions: list[int],
    latent_shape: tuple[int, ...],
    caption_dropout: float,
    posterior: bool = False,
    masks: Mapping[str, float] | None = None,
    timesteps: TimestepMethod = "logit-normal",
) -> Draws:
    """Draw for the samples at `positions` of global batch `step`; on the CPU, so that every device sees the same.

    With `posterior`, noise for a fresh posterior sample too; with `masks`, a mixture of them, which frames are given.
    These are drawn last, so the others do not change with them.
    """
    generators = [generator(seed, step, position) for position in positions]
    return Draws(
        drop_caption=torch.cat([torch.rand(1, generator=one) for one in generators]) < caption_dropout,
        timesteps=torch.cat([draw_timesteps(one, method=timesteps) for one in generators]),
        noise=torch.stack([torch.randn(latent_shape, generator=one) for one in generators]),
        posterior_noise=(
            torch.stack([torch.randn(latent_shape, generator=one) for one in generators]) if posterior else None
        ),
        mask=torch.stack([draw_mask(one, latent_shape[1], masks) for one in generators]) if masks else None,
    )


def posterior_sample(mean: Tensor, std: Tensor | None, noise: Tensor | None) -> Tensor:
    """Cached mean and std (B, c, t, h, w) -> latents, float32: a fresh sample, or the mean where there is no std."""
    if std is None or noise is None:
        return mean.float()
    return mean.float() + std.float() * noise.to(mean.device)


def drop_captions(
    text: Tensor, text_mask: Tensor, dropped: Tensor, null: Tensor, null_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Captions (B, L, dim) and their mask (B, L) -> the same, with the null caption for those `dropped`, (B,) bool.

    `null` (N, dim) has its own mask (N,), and captions are padded where it is longer. Without `null_mask` it is cut to
    L and keeps the mask of the caption that it stands for, as in Open-Sora; ValueError where it is too short for that.
    """
    length = text.shape[1]
    if null_mask is None:
        if len(null) < length:
            raise ValueError(
                f"the null caption has {len(null)} tokens, captions {length}: raise max_text_tokens, or give its mask"
            )
        null, null_mask = null[:length], text_mask
    most = max(length, len(null))
    text, null = (F.pad(one, (0, 0, 0, most - one.shape[-2])) for one in (text, null.to(text)))  # with zeros
    text_mask, null_mask = (F.pad(one, (0, most - one.shape[-1])) for one in (text_mask, null_mask))  # with False
    return (
        torch.where(rearrange(dropped, "b -> b 1 1"), null, text),
        torch.where(rearrange(dropped, "b -> b 1"), null_mask, text_mask),
    )


def generator(seed: int, step: int, position: int) -> torch.Generator:
    """The random numbers of one sample of one step."""
    digest = hashlib.blake2b(f"{seed}/{step}/{position}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
