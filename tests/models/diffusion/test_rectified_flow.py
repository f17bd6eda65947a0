"""Rectified flow: the line between data and noise, its loss and its sampler."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

from models.diffusion.guidance import guided
from models.diffusion.rectified_flow import (
    Given,
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
    discrete = draw_timesteps(many, 20000, method="discrete")
    assert discrete.dtype == torch.float32
    assert discrete.unique().tolist() == list(range(1000))  # all of them, 1000 not among them
    with pytest.raises(ValueError, match=r"'cosine'.*discrete, uniform, logit-normal"):
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


def towards(x0: Tensor, noise: Tensor, x_masks: list[list[list[bool]]]) -> Callable[..., Tensor]:
    """The true velocity; nonsense for frames that are kept, which must not be read."""

    def velocity(latents: Tensor, t: Tensor, x_mask: Tensor) -> Tensor:
        x_masks.append(x_mask.tolist())
        return velocity_target(x0, noise).masked_fill(~rearrange(x_mask, "b t -> b 1 t 1 1"), torch.nan)

    return velocity


def test_given_frames_are_kept_and_join_when_they_may() -> None:
    x0, noise, given = (torch.randn(2, 4, 3, 2, 2) for _ in range(3))
    mask = torch.tensor([[0.0, 1.0, 0.6], [1.0, 0.25, 0.2]])
    x_masks: list[list[list[bool]]] = []
    out = sample_euler(towards(x0, noise, x_masks), noise, euler_timesteps(4), Given(given, mask))
    assert [x_mask[0] for x_mask in x_masks] == [[False, True, t <= 600] for t in (1000, 750, 500, 250)]
    assert [x_mask[1] for x_mask in x_masks] == [[True, t <= 250, False] for t in (1000, 750, 500, 250)]
    assert torch.equal(out[0, :, 0], given[0, :, 0])
    assert torch.equal(out[1, :, 2], given[1, :, 2])  # 0.2 is below the last timestep
    torch.testing.assert_close(out[0, :, 1], x0[0, :, 1])
    # From (1 - u) given + u noise, the velocity x0 - noise leads to (1 - u) given + u x0.
    torch.testing.assert_close(out[0, :, 2], 0.5 * given[0, :, 2] + 0.5 * x0[0, :, 2])
    torch.testing.assert_close(out[1, :, 1], 0.75 * given[1, :, 1] + 0.25 * x0[1, :, 1])


def test_nothing_given_is_plain_sampling() -> None:
    noise, given = torch.randn(2, 4, 3, 2, 2), Given(torch.full((2, 4, 3, 2, 2), torch.nan), torch.ones(2, 3))
    out = sample_euler(lambda latents, t, x_mask: latents.sin(), noise, euler_timesteps(3), given)
    assert torch.equal(out, sample_euler(lambda latents, t: latents.sin(), noise, euler_timesteps(3)))


def test_frames_made_anew_take_part_from_the_start_however_1000_is_rounded() -> None:
    shifted = euler_timesteps(3, partial(timestep_transform, height=64, width=64, num_frames=17))
    assert shifted[0] > 1000
    noise, x_masks = torch.randn(1, 4, 2, 2, 2), []
    sample_euler(towards(noise, noise, x_masks), noise, shifted, Given(torch.zeros_like(noise), torch.tensor([[1, 0]])))
    assert x_masks == [[[True, False]]] * 3


@torch.no_grad()
def test_a_guided_model_sees_kept_frames_at_timestep_zero() -> None:
    torch.manual_seed(0)
    model = STDiT3(STDiT3Config(hidden_size=32, depth=1, num_heads=2, caption_channels=12, max_text_tokens=7)).eval()
    noise, video = torch.randn(1, 4, 3, 4, 6), torch.randn(1, 4, 3, 4, 6)
    caption = {"text": torch.randn(1, 5, 12), "text_mask": torch.ones(1, 5, dtype=torch.bool)}
    size = {"fps": torch.tensor([24.0]), "height": torch.tensor([32.0]), "width": torch.tensor([48.0])}
    mask = torch.tensor([[False, True, True]])
    mixed = torch.where(rearrange(mask, "b t -> b 1 t 1 1"), noise, video)
    wanted = mixed + model(mixed, torch.tensor([1000.0]), **caption, **size, x_mask=mask)[:, :4]
    velocity = partial(guided, model, **caption, null_text=model.null_text(7), scale=1.0, **size)
    out = sample_euler(velocity, noise, euler_timesteps(1), Given(video, mask.float()))
    assert torch.equal(out[:, :, 0], video[:, :, 0])
    torch.testing.assert_close(out[:, :, 1:], wanted[:, :, 1:])


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


@pytest.mark.parametrize("with_mask", ["", "_mask"])
@pytest.mark.parametrize(
    ("name", "options", "shift"),
    [
        ("discrete", {"method": "discrete"}, None),
        ("uniform", {"method": "uniform"}, None),
        ("uniform_transform", {"method": "uniform"}, 0.7),
        ("logit_normal", {}, None),
        ("logit_normal_loc_scale", {"loc": 0.5, "scale": 1.5}, None),
        ("logit_normal_transform", {}, 1.0),
    ],
)
def test_recorded_draws_noisy_latents_and_losses(
    recording: dict[str, Any], name: str, options: dict[str, Any], shift: float | None, with_mask: str
) -> None:
    recorded = recording["rflow"]["drawn"][name + with_mask]
    generator = torch.Generator().manual_seed(recorded["seed"])
    t = draw_timesteps(generator, 4, **options)
    if shift is not None:
        t = timestep_transform(t, **recorded["kwargs"], scale=shift)
    torch.testing.assert_close(t, recorded["t"].float(), atol=1e-4, rtol=0)  # of 1000: the last bit is 6e-5
    x0, noise = recorded["x_start"], torch.randn(recorded["x_start"].shape, generator=generator)
    mask = recorded["mask"] if with_mask else None
    noisy = add_noise(x0, noise, t, mask)
    torch.testing.assert_close(noisy, recorded["x_t"], **CLOSE)
    loss = loss_per_sample(torch.cat([noisy, x0], dim=1), x0, noise, mask)  # their model returned its input
    torch.testing.assert_close(loss, recorded["loss"], **CLOSE)


def test_recorded_noise(recording: dict[str, Any]) -> None:
    recorded = recording["rflow"]["add_noise"]
    torch.testing.assert_close(add_noise(recorded["x"], recorded["noise"], recorded["t"]), recorded["out"], **CLOSE)


@pytest.mark.parametrize("name", ["plain", "plain_mask", "transform", "transform_mask"])
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
    shift = partial(timestep_transform, **size) if name.startswith("transform") else None
    steps = euler_timesteps(case["options"]["num_sampling_steps"], shift)
    noise, given = recorded["z"], None
    if name.endswith("mask"):
        # Theirs draws new noise for all frames at every step; the frame that may change by half uses that of the
        # first step at or below 500. What it is given stands in the place of its noise.
        given = Given(recorded["z"], case["mask"])
        step = int((steps > 500).sum())
        half = rearrange(case["mask"] == 0.5, "b t -> b 1 t 1 1")
        noise = torch.where(half, case["noise"][step], recorded["z"])
    torch.testing.assert_close(sample_euler(velocity, noise, steps, given), case["out"], **CLOSE)
