"""Which latent frames a model denoises (True) and which it is given (False).

Trained on some of each, one model continues videos, fills gaps between frames and animates images.
"""

from collections.abc import Mapping
from itertools import accumulate

import torch
from einops import rearrange, reduce
from torch import Tensor

NAMES = (
    "identity",
    "random",
    "interpolate",
    *(f"{extent}_{place}" for extent in ("quarter", "image") for place in ("random", "head", "tail", "head_tail")),
)

# Shares of the training samples of Open-Sora v1.2; the rest denoises every frame.
OPEN_SORA_V1_2_STAGES_1_AND_2 = {
    "random": 0.05,
    "interpolate": 0.005,
    "quarter_random": 0.005,
    "quarter_head": 0.005,
    "quarter_tail": 0.005,
    "quarter_head_tail": 0.005,
    "image_random": 0.025,
    "image_head": 0.05,
    "image_tail": 0.025,
    "image_head_tail": 0.025,
}
OPEN_SORA_V1_2_STAGE_3 = {
    "random": 0.01,
    "interpolate": 0.002,
    "quarter_random": 0.002,
    "quarter_head": 0.002,
    "quarter_tail": 0.002,
    "quarter_head_tail": 0.002,
    "image_random": 0.0,
    "image_head": 0.22,
    "image_tail": 0.005,
    "image_head_tail": 0.005,
}


def draw_mask(generator: torch.Generator, num_latents: int, mixture: Mapping[str, float]) -> Tensor:
    """-> (t,) bool: a mask of `mixture`, {name: share of the samples}; what is left of 1 denoises every frame.

    A sample draws the same numbers whatever its mask, so that another mixture moves no later draw.
    """
    check_mixture(mixture)
    which, size, place = torch.rand(3, generator=generator, device=generator.device).tolist()
    per_frame = torch.rand(num_latents, generator=generator, device=generator.device)
    return mask_from(choose(mixture, which), size, place, per_frame)


def check_mixture(mixture: Mapping[str, float]) -> None:
    """Refuse unknown masks, and shares that are none."""
    unknown = sorted(set(mixture) - set(NAMES))
    if unknown:
        raise ValueError(f"masks {', '.join(unknown)}: not known; known are {', '.join(NAMES)}")
    if min(mixture.values(), default=0) < 0 or sum(mixture.values()) > 1 + 1e-6:
        raise ValueError(f"mask shares {dict(mixture)}: each must be at least 0 and their sum at most 1")


def choose(mixture: Mapping[str, float], number: float) -> str:
    """A number uniform in 0..1 -> the name of a mask, each as often as its share."""
    for name, until in zip(mixture, accumulate(mixture.values()), strict=True):
        if number < until:
            return name
    return "identity"


def mask_from(name: str, size: float, place: float, per_frame: Tensor) -> Tensor:
    """Numbers uniform in 0..1, `per_frame` (t,) among them -> the mask `name` for t latent frames, (t,) bool.

    `random` gives each frame with one probability in 0.1..0.9, `interpolate` every other frame, `quarter_*` 1 to t/4
    frames in a row, `image_*` one frame. In fewer than 4 frames a quarter is one frame. At least one frame is
    denoised: the last, where the mask would give them all, as it would an image's only one.
    """
    check_mixture({name: 1.0})
    frames = len(per_frame)
    number = torch.arange(frames, device=per_frame.device)
    if name == "identity":
        given = torch.zeros_like(number, dtype=torch.bool)
    elif name == "random":
        given = per_frame <= 0.1 + 0.8 * size
    elif name == "interpolate":
        given = number % 2 == int(2 * place)
    else:
        extent, where = name.split("_", 1)
        count = 1 if extent == "image" else 1 + int(size * max(1, frames // 4))
        start = int(place * (frames - count + 1))
        head, tail = number < count, number >= frames - count
        within = (number >= start) & (number < start + count)
        given = {"head": head, "tail": tail, "head_tail": head | tail, "random": within}[where]
    return ~given | ((number == frames - 1) & given.all())


def leave_padding_out(mask: Tensor | None, filled: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """A mask, and which latent frames are not all padding, (B, t) bool -> which to denoise, which count in the loss.

    None is all of them. Padding is noised and denoised like any frame, only not learned. A sample whose mask gives
    every frame that is filled would learn nothing: it denoises all of them instead.
    """
    if filled.all():
        return mask, mask
    if mask is None:
        return None, filled
    mask = mask | ~(mask & filled).any(dim=1, keepdim=True)
    return mask, mask & filled


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Values (B, c, t, h, w) -> (B,): the mean of each sample over the frames where `mask` (B, t) is True.

    A sample with no such frame has nothing to learn: its mean is 0.
    """
    per_frame = reduce(values, "b c t h w -> b t", "mean")
    if mask is None:
        return reduce(per_frame, "b t -> b", "mean")
    kept = per_frame.masked_fill(~mask, 0.0)  # filled, not multiplied: 0 * inf is NaN
    return reduce(kept, "b t -> b", "sum") / reduce(mask.float(), "b t -> b", "sum").clamp(min=1)


def frame_mask(mask: Tensor) -> Tensor:
    """(B, t) -> (B, 1, t, 1, 1), to choose whole frames of latents."""
    return rearrange(mask, "b t -> b 1 t 1 1")
