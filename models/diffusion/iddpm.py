"""Denoising diffusion with learned variance (IDDPM), the objective and sampler of Open-Sora v1.0 and v1.1.

Steps count from 0, nearly data, to 999, nearly noise. The model's 2c channels are the noise it sees in x_t, and where
the variance of a step back lies between its two bounds, -1 to 1. Tables are float64, results float32. Nothing here
draws from a global generator. After Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from models.diffusion.masks import frame_mask, masked_mean
from models.diffusion.rectified_flow import Given

NUM_STEPS = 1000


@dataclass(frozen=True)
class Schedule:
    """The noise of each step: tables (n,), float64 but for the timesteps."""

    timesteps: Tensor  # int64: what the model is told, 0..999
    betas: Tensor  # variance that the step adds
    alphas_cumprod: Tensor  # share of the data's variance that is left after the step

    @property
    def alphas_cumprod_before(self) -> Tensor:
        return torch.cat([torch.ones_like(self.alphas_cumprod[:1]), self.alphas_cumprod[:-1]])

    @property
    def posterior_variance(self) -> Tensor:
        """Of the step back where the data is known. 0 at step 0, which leads to the data itself."""
        return self.betas * (1 - self.alphas_cumprod_before) / (1 - self.alphas_cumprod)


class LossTerms(NamedTuple):
    """Losses of each sample, (B,) float32."""

    mse: Tensor  # of the noise
    vb: Tensor  # variational bound in bits per latent; it trains the variance alone

    @property
    def loss(self) -> Tensor:
        return self.mse + self.vb


def linear_schedule() -> Schedule:
    """The schedule of training: betas rise evenly from 0.0001 to 0.02."""
    return _schedule(torch.arange(NUM_STEPS), torch.linspace(1e-4, 0.02, NUM_STEPS, dtype=torch.float64))


def respace(schedule: Schedule, steps: int) -> Schedule:
    """Evenly spaced `steps` of a schedule, its first and last among them, with the betas that lead over the gaps."""
    total = len(schedule.betas)
    if not 2 <= steps <= total:
        raise ValueError(f"{steps} sampling steps of {total}; take 2 to {total}")
    # Added up, not multiplied: with odd counts some places fall on halves, where the original's rounding decides.
    places = accumulate(((total - 1) / (steps - 1) for _ in range(steps - 1)), initial=0.0)
    kept = [round(place) for place in places]
    left = schedule.alphas_cumprod[kept]
    return _schedule(schedule.timesteps[kept], 1 - left / torch.cat([torch.ones_like(left[:1]), left[:-1]]))


def _schedule(timesteps: Tensor, betas: Tensor) -> Schedule:
    return Schedule(timesteps, betas, (1 - betas).cumprod(0))


def add_noise(schedule: Schedule, x0: Tensor, noise: Tensor, step: Tensor, mask: Tensor | None = None) -> Tensor:
    """Latents and noise (B, c, t, h, w) at steps (B,) int -> x_t of the same shape.

    Frames where `mask` (B, t) is False are noised as at step 0: nearly clean, not quite.
    """
    noisy = _mix(schedule, x0, noise, step)
    return (
        noisy
        if mask is None
        else torch.where(frame_mask(mask), noisy, _mix(schedule, x0, noise, torch.zeros_like(step)))
    )


def posterior(schedule: Schedule, x0: Tensor, x_t: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Where the step back from x_t leads if the data is x0 -> mean (B, c, t, h, w), log variance (B, 1, 1, 1, 1).

    Step 0 has no variance; it counts with that of step 1, whose logarithm is finite.
    """
    before, after, betas = schedule.alphas_cumprod_before, schedule.alphas_cumprod, schedule.betas
    of_data = betas * before.sqrt() / (1 - after)
    of_noisy = (1 - before) * (1 - betas).sqrt() / (1 - after)
    mean = _at(of_data, step) * x0 + _at(of_noisy, step) * x_t
    variance = schedule.posterior_variance
    return mean, _at(torch.cat([variance[1:2], variance[1:]]).log(), step)


def predict(schedule: Schedule, output: Tensor, x_t: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Where the step back from x_t leads by the model's output (B, 2c, t, h, w) -> mean, log variance like x_t.

    The variance lies between the posterior's and beta, by the output's second half from -1 to 1.
    """
    noise, place = _halves(output, x_t)
    share = 1 / schedule.alphas_cumprod
    x0 = _at(share.sqrt(), step) * x_t - _at((share - 1).sqrt(), step) * noise
    mean, smallest = posterior(schedule, x0, x_t, step)
    place = (place + 1) / 2
    return mean, place * _at(schedule.betas.log(), step) + (1 - place) * smallest


def loss_terms(
    schedule: Schedule,
    output: Tensor,
    x0: Tensor,
    noise: Tensor,
    x_t: Tensor,
    step: Tensor,
    mask: Tensor | None = None,
) -> LossTerms:
    """The model's output (B, 2c, t, h, w) for `x_t` -> losses of each sample; `.loss` is what to train on.

    Only frames where `mask` (B, t) is True count.
    """
    predicted_noise, place = _halves(output, x0)
    squares = (noise.float() - predicted_noise).square()
    frozen = torch.cat([predicted_noise.detach(), place], dim=1)
    mean, log_variance = predict(schedule, frozen, x_t, step)
    true_mean, true_log_variance = posterior(schedule, x0, x_t, step)
    bound = torch.where(
        rearrange(step == 0, "b -> b 1 1 1 1"),
        _surprise(x0, mean, log_variance),
        _divergence(true_mean, true_log_variance, mean, log_variance),
    )
    return LossTerms(masked_mean(squares, mask), masked_mean(bound / math.log(2), mask))


@torch.no_grad()
def sample_ancestral(
    model: Callable[..., Tensor],
    noise: Tensor,
    schedule: Schedule,
    generators: Sequence[torch.Generator],
    given: Given | None = None,
) -> Tensor:
    """Noise (B, c, t, h, w) -> latents, back through the schedule, by `model(latents, timestep (B,)) -> (B, 2c, ...)`.

    Every step but the last adds noise of its own; each sample has a generator for it. A guided model is
    `functools.partial(guided_with_variance, model, ...)`.

    With `given` frames, a frame that may change by m stays as it is until the first timestep below 1000 m. There it is
    noised with its own part of `noise`, and sampled from then on. `model` is called with `x_mask` (B, t) as well: False
    for the frames that are still as given.
    """
    if len(generators) != len(noise):
        raise ValueError(f"{len(generators)} generators for {len(noise)} samples; give each sample its own")
    if given is not None:
        return _sample_ancestral_given(model, noise, schedule, generators, given)
    latents = noise
    for step, timestep in _steps_back(schedule, noise):
        latents = _step_back(schedule, model(latents, timestep), latents, step, generators)
    return latents


def _sample_ancestral_given(
    model: Callable[..., Tensor],
    noise: Tensor,
    schedule: Schedule,
    generators: Sequence[torch.Generator],
    given: Given,
) -> Tensor:
    active = given.mask == 1  # these start as noise alone, with no trace of what is given
    latents = torch.where(frame_mask(active), noise, given.latents)
    for step, timestep in _steps_back(schedule, noise):
        before, active = active, given.mask * NUM_STEPS > rearrange(timestep, "b -> b 1")
        latents = torch.where(frame_mask(active & ~before), add_noise(schedule, given.latents, noise, step), latents)
        moved = _step_back(schedule, model(latents, timestep, x_mask=active), latents, step, generators)
        latents = torch.where(frame_mask(active), moved, latents)
    return latents


def _steps_back(schedule: Schedule, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The steps of a schedule from the last to the first, each (B,) int, and the timestep that the model is told."""
    timesteps = schedule.timesteps.to(like.device)
    for number in reversed(range(len(timesteps))):
        step = torch.full((len(like),), number, device=like.device)
        yield step, timesteps[step]


def _step_back(
    schedule: Schedule, output: Tensor, latents: Tensor, step: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    mean, log_variance = predict(schedule, output, latents, step)
    if step[0] == 0:
        return mean
    drawn = [torch.randn(latents.shape[1:], generator=one, device=one.device) for one in generators]
    return mean + (0.5 * log_variance).exp() * torch.stack(drawn).to(latents)


def _mix(schedule: Schedule, x0: Tensor, noise: Tensor, step: Tensor) -> Tensor:
    left = schedule.alphas_cumprod
    return _at(left.sqrt(), step) * x0 + _at((1 - left).sqrt(), step) * noise


def _at(table: Tensor, step: Tensor) -> Tensor:
    """Table (n,), steps (B,) int -> (B, 1, 1, 1, 1) float32."""
    return rearrange(table.to(step.device)[step].float(), "b -> b 1 1 1 1")


def _halves(output: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    """The model's output -> noise, and place of the variance between its bounds; each like the latents, float32."""
    found, wanted = output.shape[1], 2 * latents.shape[1]
    if found != wanted:
        raise ValueError(f"output of {found} channels; learned variance wants {wanted}: a model with pred_sigma")
    noise, place = output.float().chunk(2, dim=1)
    return noise, place


def _divergence(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of a normal distribution from another, in nats."""
    wider = log_variance - other_log_variance
    apart = (mean - other_mean).square() * (-other_log_variance).exp()
    return 0.5 * (wider.exp() + apart - 1 - wider)


def _surprise(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log of the probability of the data, in nats: as if it were 8-bit pixels in [-1, 1], a bin of 2/255 each.

    Latents are not, but this is the original's loss at step 0; so is tanh for the normal distribution's integral.
    """

    def below(edge: Tensor) -> Tensor:
        normal = (edge - mean) * (-0.5 * log_variance).exp()
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (normal + 0.044715 * normal**3)))

    lower, upper = below(x0 - 1 / 255), below(x0 + 1 / 255)
    # The outermost bins reach to infinity.
    probability = torch.where(x0 > 0.999, 1 - lower, torch.where(x0 < -0.999, upper, upper - lower))
    return -probability.clamp(min=1e-12).log()
