"""Videos from given frames: references become what `sample_euler` is given."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.diffusion.rectified_flow import CHUNK_LATENTS, Given


@dataclass(frozen=True)
class Reference:
    """Given frames of one video, and where they go: the first by default, -1 for the last, or any other."""

    latents: Tensor  # (c, n, h, w) normalized: an image has n = 1, a chunk n = 5
    start: int = 0  # latent frame; below 0 counts from the end
    change: float = 0.0  # 0 keeps them; 0.4 lets them change from timestep 400 on; 1 makes them anew


def place_references(references: Sequence[Sequence[Reference]], noise: Tensor, *, align: int = CHUNK_LATENTS) -> Given:
    """References of each video, noise (B, c, t, h, w) -> latents like the noise, and a mask of 1 where none is given.

    A reference starts at the nearest multiple of `align`, in the last whole chunk at most, as in Open-Sora: chunks are
    encoded on their own, so a chunk's first latent is one frame and the others are four each, and an image, one frame,
    only fits there. The last place for an image is hence the first latent of the last chunk. `align=1` places latents
    exactly as asked. Where references overlap, the later one counts.
    """
    latents = torch.zeros_like(noise)
    mask = torch.ones(noise.shape[0], noise.shape[2], device=noise.device)
    if len(references) != len(noise):
        raise ValueError(f"references of {len(references)} videos, noise of {len(noise)}; give each video a list")
    for video, placed in enumerate(references):
        for reference in placed:
            start = _start(reference, latents[video], align)
            span = slice(start, start + reference.latents.shape[1])
            latents[video, :, span] = reference.latents.to(noise)
            mask[video, span] = reference.change
    return Given(latents, mask)


def _start(reference: Reference, video: Tensor, align: int) -> int:
    """The latent frame of `video` (c, t, h, w) where a reference starts."""
    c, frames, h, w = video.shape
    length = reference.latents.shape[1]
    if reference.latents.shape != (c, length, h, w):
        raise ValueError(f"reference {tuple(reference.latents.shape)}: the video wants ({c}, n, {h}, {w})")
    if not -frames <= reference.start < frames:
        raise ValueError(
            f"reference at latent {reference.start}: the video has {frames}; use {-frames} to {frames - 1}"
        )
    if not 0 <= reference.change <= 1:
        raise ValueError(f"reference with change {reference.change}: it must lie in 0 (keep) to 1 (make anew)")
    asked = reference.start % frames
    nearest = (asked + (align - 1) // 2) // align  # a half goes down
    start = min(nearest, max(asked // align, frames // align - 1)) * align
    if start + length > frames:
        raise ValueError(f"reference of {length} latents at {start}: the video has {frames}; shorten it or the video")
    return start
