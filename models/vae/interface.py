"""The interface every VAE has: pixels in, normalized latents out, and back. Raw latents never leave a VAE's file."""

import torch
from torch import Tensor, nn

from models.latent_spec import LatentSpec


class VideoVAE(nn.Module):
    """A causal video VAE whose latents are always normalized.

    A subclass sets `spec` and writes `moments` and `decode`. Chunks of `spec.chunk_frames` frames are independent of
    each other, so the latents of a long clip are the latents of its chunks, concatenated in time.
    """

    spec: LatentSpec

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, T, H, W) in [-1, 1] -> posterior mean and std, both normalized, (B, c, t, h, w).

        Normalizing the std divides by scale only: shift touches the mean alone.
        """
        raise NotImplementedError

    def encode(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pixels (B, 3, T, H, W) in [-1, 1] -> normalized latents (B, c, t, h, w).

        A posterior sample with `generator`, the posterior mean without.
        """
        mean, std = self.moments(pixels)
        if generator is None:
            return mean
        noise = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=torch.float32)
        return mean + std * noise.to(mean)

    def decode(self, latents: Tensor, num_frames: int) -> Tensor:
        """Normalized latents (B, c, t, h, w) -> `num_frames` frames of pixels (B, 3, T, H, W), about [-1, 1]."""
        raise NotImplementedError
