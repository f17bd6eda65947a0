"""Rectified flow: the line between data and noise, its loss and its sampler."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

from models.diffusion.guidance import guided
from models.diffusion.rectified_flow import (
    add_noise,
    draw_timesteps,
    euler_timesteps,
    loss_per_sample,
    sample_euler,
    timestep_transform,
    velocity_target,
)
from models.dit.stdit3 import STDiT3, STDiT3Config

RECORDING = Path(__file__).resolve().parents[3] / "../shared/parity/open_sora_v1_2.pt"
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 0.0}


@pytest.fixture(scope="module")
def recording() -> dict[str, Any]:
    if not RECORDING.exists():
        pytest.skip("recordings not here")
    return torch.load(RECORDING, weights_only=True)


def draws(*seeds: int, **options: Any) -> Tensor:
    return torch.cat([draw_timesteps(torch.Generator().manual_seed(seed), **options) for seed in seeds])


def test_a_sample_keeps_its_timestep_in_any_batch() -> None:
    alone, together = draws(7), draws(3, 7, 5)
    assert alone[0] == together[1] and together.unique().numel() == 3


def test_draws_have_their_distribution() -> None:
    many = torch.Generator().manual_seed(0)
    uniform = draw_timesteps(many, 20000, method="uniform")
    assert uniform.min() >= 0 and uniform.max() < 1000
    assert uniform.mean().item() == pytest.approx(500, abs=10)
    logit = torch.logit(draw_timesteps(many, 20000, loc=0.5, scale=2.0).double() / 1000)
    assert logit.mean().item() == pytest.approx(0.5, abs=0.07) and logit.std().item() == pytest.approx(2, abs=0.05)
    with pytest.raises(ValueError, match=r"'cosine'.*uniform, logit-normal"):
        draw_timesteps(many, method="cosine")  # pyright: ignore


@pytest.mark.parametrize("frames", [0, 2, 16, 18, 20, 33, -17])
def test_sixteen_frames_do_not_fit(frames: int) -> None:
    for given in (frames, torch.tensor([17, frames])):
        with pytest.raises(ValueError, match=r"17 = 1\+4\+4\+4\+4 frames.*use 1 or a multiple of 17"):
            timestep_transform(torch.tensor([500.0, 500.0]), 240, 426, given)


def test_the_transform_is_the_formula() -> None:
    t = torch.tensor([0.0, 250.0, 500.0, 1000.0])
    ratio = (720 * 1280 / 512**2) ** 0.5 * 15**0.5 * 0.7
    want = [1000 * ratio * u / (1 + (ratio - 1) * u) for u in (0.0, 0.25, 0.5, 1.0)]
    shifted = timestep_transform(t, 720, 1280, 51, scale=0.7)
    assert shifted.dtype == torch.float32 and shifted.tolist() == pytest.approx(want, rel=1e-5)
    assert torch.equal(timestep_transform(t, 512, 512, 1), t)
    per_sample = timestep_transform(t[1:3], torch.tensor([512.0, 720.0]), torch.tensor([512.0, 1280.0]), 17)
    alone = [timestep_transform(t[1:2], 512, 512, 17), timestep_transform(t[2:3], 720, 1280, 17)]
    torch.testing.assert_close(per_sample, torch.cat(alone))


def test_the_ends_of_the_line_are_data_and_noise() -> None:
    x0, noise = torch.randn(3, 4, 2, 3, 3), torch.randn(3, 4, 2, 3, 3)
    noisy = add_noise(x0, noise, torch.tensor([0.0, 1000.0, 250.0]))
    assert torch.equal(noisy[0], x0[0]) and torch.equal(noisy[1], noise[1])
    torch.testing.assert_close(noisy[2], 0.75 * x0[2] + 0.25 * noise[2])
    # Walking the whole velocity from anywhere on the line ends at the data.
    torch.testing.assert_close(noisy[2] + 0.25 * velocity_target(x0, noise)[2], x0[2])


def test_given_frames_enter_clean_and_do_not_count() -> None:
    x0, noise = torch.randn(2, 4, 3, 2, 2), torch.randn(2, 4, 3, 2, 2)
    mask = torch.tensor([[False, True, True], [True, False, False]])
    noisy = add_noise(x0, noise, torch.tensor([700.0, 300.0]), mask)
    assert torch.equal(noisy[0, :, 0], x0[0, :, 0]) and not torch.equal(noisy[0, :, 1], x0[0, :, 1])

    prediction = torch.randn(2, 8, 3, 2, 2)
    loss = loss_per_sample(prediction, x0, noise, mask)
    prediction[0, :, 0] = 1e20  # squared, more than float32 holds
    prediction[1, :, 1:] = float("nan")
    assert torch.equal(loss_per_sample(prediction, x0, noise, mask), loss)
    only = [loss_per_sample(prediction[:1, :, 1:], x0[:1, :, 1:], noise[:1, :, 1:])]
    only.append(loss_per_sample(prediction[1:, :, :1], x0[1:, :, :1], noise[1:, :, :1]))
    torch.testing.assert_close(loss, torch.cat(only))


def test_a_sample_without_a_frame_to_denoise_has_no_loss() -> None:
    x0, noise = torch.randn(2, 4, 3, 2, 2), torch.randn(2, 4, 3, 2, 2)
    mask = torch.tensor([[False] * 3, [True] * 3])
    loss = loss_per_sample(torch.zeros(2, 4, 3, 2, 2), x0, noise, mask)
    assert loss[0] == 0 and loss[1] > 0


def test_the_loss_reads_the_first_channels_of_a_right_answer() -> None:
    x0, noise = torch.randn(2, 4, 3, 2, 2), torch.randn(2, 4, 3, 2, 2)
    right = torch.cat([velocity_target(x0, noise), torch.full_like(x0, 50.0)], dim=1)
    assert loss_per_sample(right, x0, noise).eq(0).all()
    assert loss_per_sample(right.bfloat16(), x0, noise).dtype == torch.float32


@pytest.mark.parametrize("steps", [1, 3, 30])
def test_straight_lines_are_followed_exactly(steps: int) -> None:
    """With the true velocity, any number of steps and any schedule ends at the data."""
    x0, noise = torch.randn(2, 4, 2, 3, 3), torch.randn(2, 4, 2, 3, 3)
    times: list[float] = []

    def velocity(latents: Tensor, t: Tensor) -> Tensor:
        torch.testing.assert_close(latents, add_noise(x0, noise, t), atol=1e-5, rtol=0)
        times.append(t[0].item())
        return velocity_target(x0, noise)

    transform = partial(timestep_transform, height=720, width=1280, num_frames=51)
    schedule = euler_timesteps(steps, transform)
    assert schedule[0] == 1000 and schedule[-1] == 0 and schedule.diff().lt(0).all()
    torch.testing.assert_close(sample_euler(velocity, noise, schedule), x0, atol=1e-5, rtol=0)
    assert times == schedule[:-1].tolist()


def test_even_timesteps() -> None:
    assert euler_timesteps(4).tolist() == [1000, 750, 500, 250, 0]
    with pytest.raises(ValueError, match="at least one"):
        euler_timesteps(0)


def test_the_recorded_grid_of_shifts(recording: dict[str, Any]) -> None:
    exact = [row for row in recording["rflow"]["transform"] if row["dtype"] == "torch.float32"]
    assert len(exact) == 80
    for row in exact:
        size = (row["height"], row["width"], row["num_frames"])
        if row["num_frames"] == 20:  # Open-Sora counts them as 17
            with pytest.raises(ValueError, match="multiple of 17"):
                timestep_transform(row["t"], *size, scale=row["scale"])
            continue
        shifted = timestep_transform(row["t"], *size, scale=row["scale"])
        torch.testing.assert_close(shifted, row["out"], atol=1e-4, rtol=0)  # of 1000: the last bit is 6e-5


@pytest.mark.parametrize(
    ("name", "method", "shift"),
    [
        ("uniform", "uniform", None),
        ("logit_normal", "logit-normal", None),
        ("logit_normal_mask", "logit-normal", None),
        ("logit_normal_transform", "logit-normal", 1.0),
        ("uniform_transform_mask", "uniform", 0.7),
    ],
)
def test_recorded_draws_and_noisy_latents(
    recording: dict[str, Any], name: str, method: Any, shift: float | None
) -> None:
    recorded = recording["rflow"]["drawn"][name]
    generator = torch.Generator().manual_seed(recorded["seed"])
    t = draw_timesteps(generator, 4, method=method)
    if shift is not None:
        t = timestep_transform(t, **recorded["kwargs"], scale=shift)
    torch.testing.assert_close(t, recorded["t"], atol=1e-4, rtol=0)  # of 1000: the last bit is 6e-5
    noise = torch.randn(recorded["x_start"].shape, generator=generator)
    mask = recorded["mask"] if "mask" in name else None
    torch.testing.assert_close(add_noise(recorded["x_start"], noise, t, mask), recorded["x_t"], **CLOSE)


def test_recorded_noise(recording: dict[str, Any]) -> None:
    recorded = recording["rflow"]["add_noise"]
    torch.testing.assert_close(add_noise(recorded["x"], recorded["noise"], recorded["t"]), recorded["out"], **CLOSE)


@pytest.mark.parametrize("name", ["plain", "transform"])
def test_recorded_samples(recording: dict[str, Any], name: str) -> None:
    model = STDiT3(STDiT3Config(64, 2, 4, caption_channels=48, max_text_tokens=10))
    model.load_state_dict(recording["stdit3"]["state_dict"])
    recorded = recording["rflow"]["sample"]
    case, inputs = recorded[name], recorded["inputs"]
    extra = dict(case["extra"])
    num_frames = int(extra.pop("num_frames")[0])
    size = {"height": extra["height"][0], "width": extra["width"][0], "num_frames": num_frames}
    velocity = partial(
        guided,
        model,
        text=rearrange(inputs["y"], "b 1 l dim -> b l dim"),
        text_mask=inputs["mask"].bool(),
        null_text=model.null_text(10),
        scale=case["options"]["cfg_scale"],
        **extra,
    )
    steps = euler_timesteps(
        case["options"]["num_sampling_steps"], partial(timestep_transform, **size) if name == "transform" else None
    )
    torch.testing.assert_close(sample_euler(velocity, recorded["z"], steps), case["out"], **CLOSE)
