"""What a model is trained to predict, and how videos are sampled from it: one table, one signature for all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.diffusion import iddpm, rectified_flow
from models.diffusion.guidance import guided, guided_with_variance
from models.diffusion.rectified_flow import Given


@dataclass(frozen=True)
class Objective:
    """The functions of one objective. Latents are (B, c, t, h, w), timesteps t (B,) in 0..1000, masks (B, t) bool."""

    add_noise: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # x0, noise, t, mask -> x_t
    losses: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor]
    """The model's output for x_t, x0, noise, x_t, t, mask -> (B,); frames where the mask is False do not count."""
    guided: Callable[..., Tensor]  # the model with captions and guidance -> what `sample` asks at each step
    sample: Callable[..., Tensor]  # `guided`, noise, steps, generators, shift, given -> latents


Generators = Sequence[torch.Generator]  # one per sample
Shift = Callable[[Tensor], Tensor]  # of timesteps, by the video's size


def _flow_losses(
    output: Tensor, x0: Tensor, noise: Tensor, x_t: Tensor, t: Tensor, mask: Tensor | None = None
) -> Tensor:
    return rectified_flow.loss_per_sample(output, x0, noise, mask)


def _sample_flow(
    velocity: Callable[..., Tensor],
    noise: Tensor,
    steps: int,
    generators: Generators,
    shift: Shift | None = None,
    given: Given | None = None,
) -> Tensor:
    """Draws nothing: all is decided by the noise that it starts from."""
    return rectified_flow.sample_euler(velocity, noise, rectified_flow.euler_timesteps(steps, shift), given)


def _add_noise(x0: Tensor, noise: Tensor, t: Tensor, mask: Tensor | None = None) -> Tensor:
    return iddpm.add_noise(iddpm.linear_schedule(), x0, noise, t.long(), mask)


def _iddpm_losses(
    output: Tensor, x0: Tensor, noise: Tensor, x_t: Tensor, t: Tensor, mask: Tensor | None = None
) -> Tensor:
    return iddpm.loss_terms(iddpm.linear_schedule(), output, x0, noise, x_t, t.long(), mask).loss


def _sample_iddpm(
    model: Callable[..., Tensor],
    noise: Tensor,
    steps: int,
    generators: Generators,
    shift: Shift | None = None,
    given: Given | None = None,
) -> Tensor:
    """ValueError with a shift: there is none between discrete steps."""
    if shift is not None:
        raise ValueError("iddpm: its steps are discrete, so timesteps cannot be shifted; leave the shift out")
    return iddpm.sample_ancestral(model, noise, iddpm.respace(iddpm.linear_schedule(), steps), generators, given)


OBJECTIVES = {
    "rectified-flow": Objective(rectified_flow.add_noise, _flow_losses, guided, _sample_flow),
    "iddpm": Objective(_add_noise, _iddpm_losses, guided_with_variance, _sample_iddpm),
}
