"""The gate before the cache: values that no latents have, and chunks that do not come back as they were."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from models.vae.interface import VideoVAE
from pipeline.encode import psnr, to_frames
from pipeline.errors import Refused
from pipeline.stats import ChannelStats

GREATEST = 1000.0  # of a normalized value, whose standard deviation is about 1
FARTHEST_MEAN, GREATEST_STD, LEAST_STD = 3.0, 5.0, 0.2  # over a shard; normalization makes mean and std about 0 and 1
CLEARLY = 6.0  # dB: half the error
SUSPECT = 25.0  # dB, below which a chunk that comes back as something else counts as evidence: 14 grey levels off


def value_problem(latents: np.ndarray) -> str:
    """Why cached values (C, t, h, w) cannot be latents; empty where they can."""
    if not np.isfinite(latents).all():
        bad = int(latents.size - np.isfinite(latents).sum())
        return f"{bad} of {latents.size} latents are not finite in float16"
    greatest = float(np.abs(latents).max())
    return f"a normalized latent of {greatest:g}, wanted at most {GREATEST:g}" if greatest > GREATEST else ""


def drift(stats: ChannelStats, channels: int) -> Sequence[str]:
    """Where the recipe's normalization does not make a shard's latents 0 and 1, even roughly, a line each.

    A single channel may well have a small std, as colours have in black and white; most of them may not.
    """
    means, stds = stats.latents(channels)
    lines = [
        f"channel {number}: mean {mean:.3g}, std {std:.3g}"
        for number, (mean, std) in enumerate(zip(means, stds))
        if abs(mean) > FARTHEST_MEAN or std > GREATEST_STD
    ]
    middle = float(np.median(stds))
    return lines + [f"std {middle:.3g} in the median channel"] * (middle < LEAST_STD)


@dataclass(frozen=True)
class Reading:
    """What a VAE may be given, or may give back, in place of RGB pixels (B, 3, T, H, W) in [-1, 1]."""

    name: str
    give: Callable[[Tensor], Tensor]  # such pixels -> this
    back: Callable[[Tensor], Tensor]  # the inverse


def _swap_sides(pixels: Tensor) -> Tensor:
    return rearrange(pixels, "b c t h w -> b c t w h")


WANTED = Reading("RGB pixels in [-1, 1]", lambda pixels: pixels, lambda pixels: pixels)
OTHERS = (
    Reading("pixels in [0, 1]", lambda pixels: (pixels + 1) / 2, lambda pixels: pixels * 2 - 1),
    Reading("pixels in [0, 255]", lambda pixels: (pixels + 1) * 127.5, lambda pixels: pixels / 127.5 - 1),
    Reading("BGR pixels", lambda pixels: pixels.flip(1), lambda pixels: pixels.flip(1)),
    Reading("pixels with height and width swapped", _swap_sides, _swap_sides),
    Reading("frames from last to first", lambda pixels: pixels.flip(2), lambda pixels: pixels.flip(2)),
)
NOTHING = 0.0  # dB, of what is no picture of these frames at all: as white beside black
THEN = "Mend that, or go on all the same with encode.min_psnr=0"
SO = "that is how the frames reach the VAE, or leave it"
Found = tuple[float, str]  # PSNR in dB, and the name of a reading


class RoundTrips:
    """Decodes some chunks of a shard again, to compare them with their frames.

    Which ones is decided by the plan: what is found of a clip stands in its row, and must not depend on what failed.
    """

    def __init__(self, num_chunks: int, count: int, min_psnr: float) -> None:
        self.count = count
        self.min_psnr = min_psnr  # dB; with 0 nothing is refused
        self.found: list[float] = []  # dB
        self._mistaken: Counter[str] = Counter()  # chunks that come back as another reading, by its name
        self._numbers = set(np.linspace(0, num_chunks, min(count, num_chunks), endpoint=False).astype(int).tolist())

    def wants(self, number: int) -> bool:
        """Whether a chunk is one of those that are checked: evenly spread over the shard, the first among them."""
        return number in self._numbers

    @torch.inference_mode()
    def check(self, vae: VideoVAE, frames: np.ndarray, latents: np.ndarray) -> float:
        """Frames (T, H, W, 3) uint8 and what is cached of them (C, t, h, w) -> PSNR in dB of the decoded frames.

        Refused where it is too low and another reading of the frames makes it clearly better: it is not the video then.
        """
        returned = _decode(vae, latents, len(frames))
        found = _psnr(returned, frames)
        self.found.append(found)
        if found < max(SUSPECT, self.min_psnr):
            best, name = _taken_back(returned, frames)
            self._mistaken[name] += best >= found + CLEARLY
        if found < self.min_psnr and (cause := self._cause(vae, frames, returned, found)):
            raise Refused(self._low(found, cause))
        return found

    @torch.inference_mode()
    def check_bad(self, vae: VideoVAE, frames: np.ndarray, latents: np.ndarray, problem: str) -> None:
        """As `check`, of a chunk with values that no latents have: Refused where it is not the video's fault."""
        returned = _decode(vae, latents, len(frames))
        if self.min_psnr > 0 and (cause := self._cause(vae, frames, returned, _psnr(returned, frames))):
            raise Refused(f"{problem}; {cause}. {THEN}")

    def finish(self) -> None:
        """Refused where most chunks come back as something else, or the median of all that were asked for is too low.

        A shard that has fewer may be of a single odd picture.
        """
        if not self.found or self.min_psnr <= 0:
            return
        middle, total = median(self.found), len(self.found)
        for name, count in self._mistaken.most_common(1):
            if 2 * count > total:
                raise Refused(self._low(middle, f"{count} of {total} are clearly better as {name}: {SO}"))
        if middle < self.min_psnr and total == self.count:
            raise Refused(self._low(middle, "no other range or order of pixels does better, so look at its weights"))

    def _cause(self, vae: VideoVAE, frames: np.ndarray, returned: Tensor, found: float) -> str:
        """Why a chunk comes back badly, if taking or giving its frames otherwise tells; else empty."""
        enough = max(found + CLEARLY, self.min_psnr)
        best, name = _taken_back(returned, frames)
        if best >= enough:
            return f"taken as {name} they have {best:.1f} dB: {SO}"
        best, name = _given_again(vae, frames, [WANTED])
        if best >= enough:
            return f"given alone, as {name}, they come back with {best:.1f} dB: `encode` gives the VAE something else"
        best, name = _given_again(vae, frames, OTHERS)
        return f"given {name} they come back with {best:.1f} dB: this VAE wants those" if best >= enough else ""

    def _low(self, found: float, cause: str) -> str:
        return (
            f"chunks come back from the VAE with {found:.1f} dB as {WANTED.name}, encode.min_psnr={self.min_psnr:g}; "
            f"{cause}. {THEN}"
        )


def _decode(vae: VideoVAE, latents: np.ndarray, num_frames: int) -> Tensor:
    """What is cached of a chunk (C, t, h, w) -> what the VAE makes of it (1, 3, T, H, W)."""
    mean = torch.from_numpy(latents[None, : vae.spec.channels]).to(vae.device).float()  # (1, c, t, h, w)
    return vae.decode(mean, num_frames)


def _taken_back(returned: Tensor, frames: np.ndarray) -> Found:
    """The other reading of what the VAE returned (1, 3, T, H, W) that is nearest to the frames (T, H, W, 3)."""
    return max((_psnr(reading.back(returned), frames), reading.name) for reading in OTHERS)


def _given_again(vae: VideoVAE, frames: np.ndarray, readings: Sequence[Reading]) -> Found:
    """The reading of the frames (T, H, W, 3) that comes back best from the VAE when it is given that.

    Pixels are made here, not by `to_pixels`: that is among what is in doubt.
    """
    pixels = rearrange(torch.from_numpy(frames).to(vae.device).float() / 127.5 - 1, "t h w c -> 1 c t h w")
    noise = [torch.Generator().manual_seed(0)] if vae.spec.posterior == "sample" else None

    def comes_back(reading: Reading) -> float:
        [latents] = vae.encode(reading.give(pixels), noise).to(torch.float16).cpu().numpy()  # (c, t, h, w)
        return _psnr(reading.back(_decode(vae, latents, len(frames))), frames)

    return max((comes_back(reading), reading.name) for reading in readings)


def _psnr(pixels: Tensor, frames: np.ndarray) -> float:
    """Of pixels (1, 3, T, H, W) in [-1, 1] beside frames (T, H, W, 3) uint8, in dB."""
    if not pixels.isfinite().all():
        return NOTHING
    [others] = to_frames(pixels)
    return psnr(frames, others) if others.shape == frames.shape else NOTHING
