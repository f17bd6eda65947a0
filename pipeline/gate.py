"""The gate before the cache: values that no latents have, and chunks that do not come back as they were."""

from collections.abc import Sequence
from statistics import median

import numpy as np
import torch

from models.vae.interface import VideoVAE
from pipeline.encode import decode_to_frames, psnr
from pipeline.errors import Refused
from pipeline.stats import ChannelStats

GREATEST = 1000.0  # of a normalized value, whose standard deviation is about 1
FARTHEST_MEAN, LEAST_STD, GREATEST_STD = 3.0, 0.1, 5.0  # of a channel over a shard; normalization makes it 0 and 1


def value_problem(latents: np.ndarray) -> str:
    """Why cached values (C, t, h, w) cannot be latents; empty where they can."""
    if not np.isfinite(latents).all():
        bad = int(latents.size - np.isfinite(latents).sum())
        return f"{bad} of {latents.size} latents are not finite in float16"
    greatest = float(np.abs(latents).max())
    return f"a normalized latent of {greatest:g}, wanted at most {GREATEST:g}" if greatest > GREATEST else ""


class RoundTrips:
    """Decodes some chunks of a shard again, to compare them with their frames."""

    def __init__(self, num_chunks: int, count: int, min_psnr: float) -> None:
        self.min_psnr = min_psnr
        self.found: list[float] = []  # dB
        self._numbers = set(np.linspace(0, num_chunks, min(count, num_chunks), endpoint=False).astype(int).tolist())

    def wants(self, number: int) -> bool:
        """Whether a chunk is one of those that are checked: evenly spread over the shard, the first among them."""
        return number in self._numbers

    def check(self, vae: VideoVAE, frames: np.ndarray, latents: np.ndarray) -> float:
        """Frames (T, H, W, 3) uint8 and what is cached of them (C, t, h, w) -> PSNR in dB of the decoded frames.

        Refused where it is low and another reading of the frames would make it better: then it is not the video.
        """
        mean = torch.from_numpy(latents[None, : vae.spec.channels]).to(vae.device).float()  # (1, c, t, h, w)
        self.found.append(psnr(frames, decode_to_frames(vae, mean, len(frames))[0]))
        return self.found[-1]

    def finish(self) -> None:
        """Refused where the median is too low."""
        if self.found and median(self.found) < self.min_psnr:
            raise Refused(
                f"chunks come back from the VAE with {median(self.found):.1f} dB, wanted encode.min_psnr="
                f"{self.min_psnr:g} or more"
            )


def drift(stats: ChannelStats) -> Sequence[str]:
    """The channels of a shard that the recipe's normalization does not make 0 and 1, even roughly, a line each."""
    return [
        f"channel {number}: mean {mean:.3g}, std {std:.3g}"
        for number, (mean, std) in enumerate(zip(stats.mean, stats.std))
        if abs(mean) > FARTHEST_MEAN or not LEAST_STD < std < GREATEST_STD
    ]
