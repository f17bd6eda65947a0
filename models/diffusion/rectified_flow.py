"""Rectified flow: straight lines from data (t = 0) to noise (t = 1000), as Open-Sora v1.2 trains and samples.

Nothing here draws from a global generator: noise and generators come from the caller, who can so give every sample of
a batch its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from einops import rearrange, repeat
from torch import Tensor

from models.diffusion.masks import frame_mask, masked_mean

NUM_TIMESTEPS = 1000
CHUNK_FRAMES, CHUNK_LATENTS = 17, 5

TimestepMethod = Literal["discrete", "uniform", "logit-normal"]


def draw_timesteps(
    generator: torch.Generator,
    count: int = 1,
    *,
    method: TimestepMethod = "logit-normal",
    loc: float = 0.0,
    scale: float = 1.0,
) -> Tensor:
    """-> (count,) float32 timesteps in 0..1000, whole ones in 0..999 if discrete; `loc` and `scale` shape the
    logit-normal.

    Samples with generators of their own: `torch.cat([draw_timesteps(g) for g in generators])`.
    """
    source = {"generator": generator, "device": generator.device}
    if method == "discrete":
        return torch.randint(NUM_TIMESTEPS, (count,), **source).float()
    if method == "uniform":
        return torch.rand(count, **source, dtype=torch.float32) * NUM_TIMESTEPS
    if method == "logit-normal":
        return torch.sigmoid(loc + scale * torch.randn(count, **source, dtype=torch.float32)) * NUM_TIMESTEPS
    raise ValueError(f"no timesteps are drawn by {method!r}; known are {', '.join(get_args(TimestepMethod))}")


def timestep_quantiles(count: int, method: TimestepMethod = "logit-normal") -> Tensor:
    """-> (count,) float32: the middles of equal shares of the timesteps that `draw_timesteps` draws, rising."""
    share = (torch.arange(count) + 0.5) / count
    if method == "logit-normal":
        return torch.sigmoid(torch.special.ndtri(share)) * NUM_TIMESTEPS
    return (share * NUM_TIMESTEPS).floor() if method == "discrete" else share * NUM_TIMESTEPS


def timestep_transform(
    t: Tensor,
    height: Tensor | float,
    width: Tensor | float,
    num_frames: Tensor | int,
    *,
    base: float = 512**2,
    scale: float = 1.0,
) -> Tensor:
    """Timesteps (n,) -> (n,) float32, later for larger and longer videos, which need more noise to lose their content.

    u' = r u / (1 + (r - 1) u) with r = sqrt(height * width / base) * sqrt(latent frames) * scale, sizes in pixels.
    Raises ValueError unless `num_frames` is 1 or a multiple of 17: Open-Sora counts floor(frames / 17) * 5 latents,
    so that 2 to 16 frames counted none, every t became 0, and 1000 became NaN.
    """
    frames = torch.as_tensor(num_frames, device=t.device)
    refused = (frames != 1) & ((frames % CHUNK_FRAMES != 0) | (frames < 1))
    if refused.any():
        raise ValueError(
            f"num_frames {num_frames}: the timestep shift counts whole chunks of 17 = 1+4+4+4+4 frames, which become "
            f"5 latents, or a single image; use 1 or a multiple of 17"
        )
    latent_frames = torch.where(frames == 1, 1, frames // CHUNK_FRAMES * CHUNK_LATENTS).float()
    area = torch.as_tensor(height, device=t.device).float() * torch.as_tensor(width, device=t.device).float()
    ratio = (area / base).sqrt() * latent_frames.sqrt() * scale
    u = t.float() / NUM_TIMESTEPS
    return ratio * u / (1 + (ratio - 1) * u) * NUM_TIMESTEPS


def add_noise(x0: Tensor, noise: Tensor, t: Tensor, mask: Tensor | None = None) -> Tensor:
    """Latents and noise (B, c, t, h, w) at timesteps (B,) -> x_t of the same shape.

    Frames where `mask` (B, t) is False enter clean, exactly.
    """
    u = rearrange(t.float() / NUM_TIMESTEPS, "b -> b 1 1 1 1")
    noisy = (1 - u) * x0 + u * noise
    return noisy if mask is None else torch.where(frame_mask(mask), noisy, x0)


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """The way from noise to data, the same at every t: x0 - noise."""
    return x0 - noise


def loss_per_sample(prediction: Tensor, x0: Tensor, noise: Tensor, mask: Tensor | None = None) -> Tensor:
    """Prediction (B, c or 2c, t, h, w) -> (B,) float32 mean squared error of the velocity.

    Only the first c channels count, and only frames where `mask` (B, t) is True. A sample with no such frame has
    nothing to learn: its loss is 0.
    """
    velocity = prediction[:, : x0.shape[1]].float()
    return masked_mean((velocity - velocity_target(x0, noise).float()).square(), mask)


def euler_timesteps(steps: int, transform: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """-> (steps + 1,) float32 from 1000 down to 0, evenly spaced and then, but for the end, transformed.

    `transform` is `timestep_transform` of the video's size, with its scale left at 1, whatever it was in training.
    """
    if steps < 1:
        raise ValueError(f"{steps} sampling steps; take at least one")
    even = (1 - torch.arange(steps, dtype=torch.float64) / steps).float() * NUM_TIMESTEPS
    return torch.cat([even if transform is None else transform(even), torch.zeros(1)])


@dataclass(frozen=True)
class Given:
    """Frames that sampling starts from, and how far each may be changed."""

    latents: Tensor  # (B, c, t, h, w)
    mask: Tensor  # (B, t) in 0..1: 0 keeps the frame, 1 makes it anew, 0.4 keeps it until timestep 400


@torch.no_grad()
def sample_euler(
    velocity: Callable[..., Tensor], noise: Tensor, timesteps: Tensor, given: Given | None = None
) -> Tensor:
    """Noise (B, c, t, h, w) -> latents, by straight steps along `velocity(latents, t (B,)) -> (B, c, t, h, w)`.

    `timesteps` are `euler_timesteps`. A guided model is a velocity: `functools.partial(guided, model, ...)`; so is one
    that also moves a progress bar.

    With `given` frames, a frame that may change by m stays as it is until the first timestep at or below 1000 m. There
    it is noised, once, with its own part of `noise`, and sampled from then on. `velocity` is called with `x_mask`
    (B, t) as well: False for the frames that are still as given.
    """
    if given is not None:
        return _sample_euler_given(velocity, noise, timesteps, given)
    latents = noise
    for t, part in _steps(timesteps, noise):
        latents = latents + velocity(latents, t) * part
    return latents


def _sample_euler_given(velocity: Callable[..., Tensor], noise: Tensor, timesteps: Tensor, given: Given) -> Tensor:
    anew = given.mask == 1  # from the start: a transformed 1000 can be 1000.0001 in float32, more than 1 * 1000
    latents, active = torch.where(frame_mask(anew), noise, given.latents), anew
    for t, part in _steps(timesteps, noise):
        before, active = active, anew | (given.mask * NUM_TIMESTEPS >= rearrange(t, "b -> b 1"))
        latents = torch.where(frame_mask(active & ~before), add_noise(given.latents, noise, t), latents)
        moved = latents + velocity(latents, t, x_mask=active) * part
        latents = torch.where(frame_mask(active), moved, latents)
    return latents


def _steps(timesteps: Tensor, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Timesteps (n + 1,) -> n steps: where it starts, (B,), and how far it goes, as a part of the line."""
    for now, later in pairwise(timesteps.to(like.device)):
        yield repeat(now, "-> b", b=len(like)), (now - later) / NUM_TIMESTEPS
