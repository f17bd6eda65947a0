"""IDDPM: its schedule, its loss with learned variance, and its sampler."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from models.diffusion.guidance import guided_with_variance
from models.diffusion.iddpm import (
    Schedule,
    add_noise,
    linear_schedule,
    loss_terms,
    posterior,
    predict,
    respace,
    sample_ancestral,
)

RECORDING = Path(__file__).resolve().parents[3] / "../shared/parity/open_sora_v1_2.pt"
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 0.0}


@pytest.fixture(scope="module")
def recording() -> dict[str, Any]:
    if not RECORDING.exists():
        pytest.skip("recordings not here")
    return torch.load(RECORDING, weights_only=True)["iddpm"]


@pytest.fixture(scope="module")
def schedule() -> Schedule:
    return linear_schedule()


def sample_like(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Data, noise and a model's output."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    return x0, noise, torch.randn(shape[0], 2 * shape[1], *shape[2:], generator=generator).clamp(-1, 1)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_the_schedule_goes_from_data_to_noise(schedule: Schedule) -> None:
    assert schedule.betas.dtype == schedule.alphas_cumprod.dtype == torch.float64
    assert schedule.timesteps.tolist() == list(range(1000))
    assert schedule.betas[[0, -1]].tolist() == pytest.approx([1e-4, 0.02], rel=1e-12)
    assert schedule.alphas_cumprod[0] == 1 - 1e-4 and schedule.alphas_cumprod[-1] < 1e-4
    x0, noise, _ = sample_like(2, 4, 3, 2, 2)
    noisy = add_noise(schedule, x0, noise, torch.tensor([0, 999]))
    torch.testing.assert_close(noisy[0], math.sqrt(1 - 1e-4) * x0[0] + 0.01 * noise[0])
    assert (noisy[1] - noise[1]).abs().max() < 0.05


def test_a_step_leads_from_one_noise_level_to_the_next(schedule: Schedule) -> None:
    """Noise at t, then a step back through the posterior, is noise at t - 1: mean and variance agree."""
    for spaced in (schedule, respace(schedule, 10)):
        left = spaced.alphas_cumprod
        for step in (1, 5, len(left) - 1):
            one, zero, at = torch.ones(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1), torch.tensor([step])
            of_data = posterior(spaced, one, zero, at)[0].item()
            of_noisy, log_variance = (value.item() for value in posterior(spaced, zero, one, at))
            assert of_data + of_noisy * left[step].sqrt() == pytest.approx(left[step - 1].sqrt().item(), abs=1e-6)
            variance = of_noisy**2 * (1 - left[step]) + math.exp(log_variance)
            assert variance == pytest.approx((1 - left[step - 1]).item(), abs=1e-6)


def test_the_variance_lies_between_its_bounds(schedule: Schedule) -> None:
    x0, noise, output = sample_like(3, 4, 3, 2, 2)
    step = torch.tensor([1, 500, 999])
    for place, bound in ((-1.0, schedule.posterior_variance), (1.0, schedule.betas)):
        output[:, 4:] = place
        log_variance = predict(schedule, output, x0, step)[1]
        wanted = rearrange(bound[step].log().float(), "b -> b 1 1 1 1").expand_as(x0)
        torch.testing.assert_close(log_variance, wanted, **CLOSE)
    # Knowing the noise is knowing the data.
    x_t = add_noise(schedule, x0, noise, step)
    output[:, :4] = noise
    torch.testing.assert_close(
        predict(schedule, output, x_t, step)[0], posterior(schedule, x0, x_t, step)[0], atol=1e-4, rtol=0
    )


def test_the_bound_is_the_divergence_in_bits(schedule: Schedule) -> None:
    x0, noise, output = sample_like(3, 4, 3, 2, 2)
    step = torch.tensor([1, 300, 999])
    x_t = add_noise(schedule, x0, noise, step)
    terms = loss_terms(schedule, output, x0, noise, x_t, step)
    (true_mean, true_log), (mean, log) = posterior(schedule, x0, x_t, step), predict(schedule, output, x_t, step)
    wanted = kl_divergence(Normal(true_mean, (true_log / 2).exp()), Normal(mean, (log / 2).exp())).mean((1, 2, 3, 4))
    torch.testing.assert_close(terms.vb, wanted / math.log(2), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(terms.mse, (output[:, :4] - noise).square().mean((1, 2, 3, 4)))
    assert torch.equal(terms.loss, terms.mse + terms.vb)
    right = torch.cat([noise, torch.full_like(noise, -1.0)], dim=1)
    assert loss_terms(schedule, right, x0, noise, x_t, step).loss.abs().max() < 1e-5


def test_at_step_zero_the_bound_is_the_surprise_at_the_data(schedule: Schedule) -> None:
    x0 = torch.linspace(-1.2, 1.2, 48).clone()
    x0 = rearrange(x0, "(c t h w) -> 1 c t h w", c=4, t=3, h=2)
    _, noise, output = sample_like(1, 4, 3, 2, 2)
    step = torch.tensor([0])
    x_t = add_noise(schedule, x0, noise, step)
    mean, log_variance = (value.double() for value in predict(schedule, output, x_t, step))
    normal, data = Normal(mean, (log_variance / 2).exp()), x0.double()
    lower, upper = normal.cdf(data - 1 / 255), normal.cdf(data + 1 / 255)
    lower, upper = torch.where(data < -0.999, 0, lower), torch.where(data > 0.999, 1, upper)
    wanted = -(upper - lower).clamp(min=1e-12).log2().mean()
    found = loss_terms(schedule, output, x0, noise, x_t, step).vb.item()
    assert found == pytest.approx(wanted.item(), rel=0.02)  # tanh is not quite the normal distribution


def test_data_that_cannot_be_is_a_finite_surprise(schedule: Schedule) -> None:
    x0, noise, output = sample_like(1, 4, 3, 2, 2)
    x0, step = x0.clamp(-0.9, 0.9), torch.tensor([0])
    output[:, :4] = 1e5
    vb = loss_terms(schedule, output, x0, noise, add_noise(schedule, x0, noise, step), step).vb
    assert vb.item() == pytest.approx(12 * math.log2(10), rel=1e-4)


def test_the_bound_trains_the_variance_and_the_squares_the_noise(schedule: Schedule) -> None:
    x0, noise, output = sample_like(2, 4, 3, 2, 2)
    output.requires_grad_()
    step = torch.tensor([0, 400])
    terms = loss_terms(schedule, output, x0, noise, add_noise(schedule, x0, noise, step), step)
    (of_vb,) = torch.autograd.grad(terms.vb.sum(), output, retain_graph=True)
    (of_mse,) = torch.autograd.grad(terms.mse.sum(), output)
    assert of_vb[:, :4].eq(0).all() and of_vb[:, 4:].ne(0).any()
    assert of_mse[:, :4].ne(0).all() and of_mse[:, 4:].eq(0).all()


def test_given_frames_are_nearly_clean_and_do_not_count(schedule: Schedule) -> None:
    x0, noise, output = sample_like(2, 4, 3, 2, 2)
    step, mask = torch.tensor([700, 0]), torch.tensor([[False, True, True], [True, False, False]])
    x_t = add_noise(schedule, x0, noise, step, mask)
    assert torch.equal(x_t[0, :, 0], add_noise(schedule, x0, noise, torch.tensor([0, 0]))[0, :, 0])
    assert torch.equal(x_t[0, :, 1:], add_noise(schedule, x0, noise, step)[0, :, 1:])
    terms = loss_terms(schedule, output, x0, noise, x_t, step, mask)
    output[0, :, 0], output[1, :, 1:] = torch.nan, torch.nan
    again = loss_terms(schedule, output, x0, noise, x_t, step, mask)
    assert torch.equal(again.mse, terms.mse) and torch.equal(again.vb, terms.vb)
    output, x0, noise, x_t = (one[:1, :, 1:] for one in (output, x0, noise, x_t))
    alone = loss_terms(schedule, output, x0, noise, x_t, step[:1])
    torch.testing.assert_close(terms.loss[:1], alone.loss)


def test_respaced_steps_keep_their_noise_levels(schedule: Schedule) -> None:
    for steps in (2, 10, 100, 1000):
        spaced = respace(schedule, steps)
        assert spaced.timesteps.shape == (steps,) and spaced.timesteps[[0, -1]].tolist() == [0, 999]
        torch.testing.assert_close(spaced.alphas_cumprod, schedule.alphas_cumprod[spaced.timesteps])
    torch.testing.assert_close(respace(schedule, 1000).betas, schedule.betas)
    assert respace(schedule, 21).timesteps[10] == 499  # 499.5, added up in float64, is a little less
    for steps in (1, 0, 1001):
        with pytest.raises(ValueError, match=f"{steps} sampling steps of 1000; take 2 to 1000"):
            respace(schedule, steps)


def test_sampling_with_the_true_noise_follows_the_schedule_to_the_data(schedule: Schedule) -> None:
    """For data that is one point, the model is known; at every step the latents have that step's mean and variance."""
    spaced = respace(schedule, 10)
    x0 = torch.full((2, 4, 5, 16, 16), 0.7)
    told: list[list[int]] = []

    def model(latents: Tensor, timestep: Tensor) -> Tensor:
        told.append(timestep.tolist())
        left = schedule.alphas_cumprod[timestep[0]].float()
        assert latents.mean().item() == pytest.approx(0.7 * left.sqrt().item(), abs=0.05)
        assert latents.std().item() == pytest.approx((1 - left).sqrt().item(), rel=0.05)
        noise = (latents - left.sqrt() * x0) / (1 - left).sqrt()
        return torch.cat([noise, torch.full_like(noise, -1.0)], dim=1)

    start = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    out = sample_ancestral(model, start, spaced, generators(1, 2))
    torch.testing.assert_close(out, x0, atol=1e-4, rtol=0)
    assert told == [[t, t] for t in (999, 888, 777, 666, 555, 444, 333, 222, 111, 0)]


def test_a_sample_is_the_same_in_any_batch(schedule: Schedule) -> None:
    start = torch.randn(3, 4, 2, 2, 2)
    spaced = respace(schedule, 5)

    def model(latents: Tensor, timestep: Tensor) -> Tensor:
        return torch.cat([latents.sin(), latents.cos()], dim=1)

    torch.manual_seed(0)
    state = torch.get_rng_state()
    together = sample_ancestral(model, start, spaced, generators(7, 8, 9))
    alone = sample_ancestral(model, start[1:2], spaced, generators(8))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(together[1:2], alone)
    assert not torch.allclose(sample_ancestral(model, start[1:2], spaced, generators(9)), alone)
    with pytest.raises(ValueError, match="1 generators for 3 samples"):
        sample_ancestral(model, start, spaced, generators(7))


def test_a_model_without_variance_is_refused(schedule: Schedule) -> None:
    x0, noise, _ = sample_like(1, 4, 3, 2, 2)
    with pytest.raises(ValueError, match="output of 4 channels; learned variance wants 8: a model with pred_sigma"):
        loss_terms(schedule, x0, x0, noise, x0, torch.tensor([5]))


def test_recorded_tables(recording: dict[str, Any], schedule: Schedule) -> None:
    """Theirs were multiplied up in float32, and are off by 2e-7."""
    torch.testing.assert_close(schedule.betas.float(), recording["betas"], atol=1e-8, rtol=0)
    torch.testing.assert_close(schedule.alphas_cumprod.float(), recording["alphas_cumprod"], atol=1e-6, rtol=0)
    spaced, recorded = respace(schedule, 10), recording["respaced_10"]
    assert spaced.timesteps.tolist() == recorded["timestep_map"]
    torch.testing.assert_close(spaced.betas.float(), recorded["betas"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["plain", "mask"])
def test_recorded_losses(recording: dict[str, Any], schedule: Schedule, name: str) -> None:
    recorded, x0, noise = recording[name], recording["x_start"], recording["noise"]
    step, mask = recorded["t_in"], None
    if name == "mask":  # read off the recorded x_t: one frame is given
        mask = torch.ones(3, 4, dtype=torch.bool)
        mask[1, 0] = False
    x_t = add_noise(schedule, x0, noise, step, mask)
    torch.testing.assert_close(x_t, recorded["x_t"], **CLOSE)
    terms = loss_terms(schedule, recording["model_out"], x0, noise, x_t, step, mask)
    for term in ("mse", "vb", "loss"):
        torch.testing.assert_close(getattr(terms, term), recorded[term], **CLOSE)


@pytest.mark.parametrize(("name", "channels"), [("all_channels", None), ("three_channels", 3)])
def test_recorded_guidance(recording: dict[str, Any], name: str, channels: int | None) -> None:
    """Their batch is [caption, null caption], their captions are numbers, and so is their model."""
    recorded = recording["cfg"]

    def model(latents: Tensor, timestep: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        return torch.cat([0.5 * latents + rearrange(text, "b 1 1 -> b 1 1 1 1"), 0.1 * latents], dim=1)

    out = guided_with_variance(
        model,
        recorded["x"][:2],
        torch.zeros(2),
        text=rearrange(recorded["y"][:2], "b 1 1 1 1 -> b 1 1"),
        text_mask=torch.ones(2, 1, dtype=torch.bool),
        null_text=torch.zeros(1, 1),
        scale=7.0,
        guided_channels=channels,
    )
    torch.testing.assert_close(out, recorded[name][:2], **CLOSE)
