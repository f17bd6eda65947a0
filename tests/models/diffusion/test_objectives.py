"""The table of objectives: each entry noises, learns and samples as its own file says, under one signature."""

import functools
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from jobs.knobs import Objective as Name
from models.diffusion import iddpm, rectified_flow
from models.diffusion.objectives import OBJECTIVES, Objective
from models.diffusion.rectified_flow import Given

RECORDING = Path(__file__).resolve().parents[3] / "../shared/parity/open_sora_v1_2.pt"
T = torch.tensor([900.0, 3.0])


@pytest.fixture(params=OBJECTIVES.values(), ids=list(OBJECTIVES))
def objective(request: pytest.FixtureRequest) -> Objective:
    return request.param


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(shape, generator=generators(1)[0]), torch.randn(shape, generator=generators(2)[0])


def test_every_name_of_the_configuration_is_in_the_table() -> None:
    assert set(get_args(Name)) == set(OBJECTIVES)


def test_given_frames_are_all_but_clean_and_teach_nothing(objective: Objective) -> None:
    x0, noise = pair(2, 4, 3, 2, 2)
    mask = torch.tensor([[False, True, True], [True, True, False]])
    x_t = objective.add_noise(x0, noise, T, mask)
    assert torch.equal(x_t[0, :, 1:], objective.add_noise(x0, noise, T, None)[0, :, 1:])
    assert (x_t[0, :, 0] - x0[0, :, 0]).abs().max() < 0.05 < (x_t[0, :, 1] - x0[0, :, 1]).abs().max()
    output = torch.randn(2, 8, 3, 2, 2, requires_grad=True)
    objective.losses(output, x0, noise, x_t, T, mask).sum().backward()
    learned = output.grad.abs().sum((1, 3, 4)) > 0  # pyright: ignore
    assert torch.equal(learned, mask)


def the_truth(name: str, x0: Tensor, told: list[float]) -> Any:
    """A model of data that is one point, x0, which knows the way to it, and keeps what it was asked at."""

    def model(latents: Tensor, t: Tensor, text: Tensor, text_mask: Tensor, **how: Tensor) -> Tensor:
        told.append(t[0].item())
        place = repeat_to(x0, len(latents))
        if name == "iddpm":
            left = iddpm.linear_schedule().alphas_cumprod[t[0].long()].float()
            answer = (latents - left.sqrt() * place) / (1 - left).sqrt()
        else:
            answer = (place - latents) / (t[0] / 1000)
        return torch.cat([answer, torch.full_like(answer, -1.0)], dim=1)

    return model


def repeat_to(x0: Tensor, size: int) -> Tensor:
    return torch.cat([x0] * (size // len(x0)))


def asking(objective: Objective, model: Any, **how: Any) -> Any:
    """The model as guidance makes it, asked for two videos."""
    captions = {"text": torch.zeros(2, 1, 1), "text_mask": torch.ones(2, 1, dtype=torch.bool)}
    return functools.partial(objective.guided, model, **captions, null_text=torch.zeros(1, 1), scale=3.0, **how)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_sampling_comes_to_the_data_in_as_many_steps_as_asked(name: str) -> None:
    x0, noise = pair(2, 4, 5, 3, 3)
    told: list[float] = []
    objective = OBJECTIVES[name]
    found = objective.sample(asking(objective, the_truth(name, x0, told)), noise, 12, generators(3, 4), None, None)
    torch.testing.assert_close(found, x0, atol=2e-4, rtol=0)
    assert len(told) == 12 and told == sorted(told, reverse=True)
    assert (told[0], told[-1]) == ((999, 0) if name == "iddpm" else (1000, pytest.approx(1000 / 12)))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_given_frames_stay_and_the_others_are_sampled(name: str) -> None:
    x0, noise = pair(2, 4, 5, 3, 3)
    given = Given(torch.full_like(x0, 7.0), torch.ones(2, 5))
    given.mask[0, 0], given.mask[1, 4] = 0.0, 0.4
    objective, seen = OBJECTIVES[name], []

    def model(latents: Tensor, t: Tensor, *text: Tensor, x_mask: Tensor) -> Tensor:
        seen.append((t[0].item(), x_mask[:2]))
        assert torch.equal(x_mask[:2], x_mask[2:])  # with and without the caption
        assert (latents[:2, :, :][~frames(x_mask[:2], latents[:2])] == 7).all()
        return the_truth(name, x0, [])(latents, t, *text)

    found = objective.sample(asking(objective, model), noise, 20, generators(3, 4), None, given)
    assert (found[0, :, 0] == 7).all()
    torch.testing.assert_close(found[0, :, 1:], x0[0, :, 1:], atol=2e-4, rtol=0)
    torch.testing.assert_close(found[1], x0[1], atol=2e-4, rtol=0)
    for t, mask in seen:
        assert mask[0].tolist() == [False, True, True, True, True]
        assert mask[1].tolist() == [True] * 4 + [t <= 400]


def frames(mask: Tensor, like: Tensor) -> Tensor:
    return mask[:, None, :, None, None].expand_as(like)


def test_iddpm_has_no_shift() -> None:
    with pytest.raises(ValueError, match="its steps are discrete, so timesteps cannot be shifted"):
        OBJECTIVES["iddpm"].sample(None, torch.zeros(1, 4, 5, 2, 2), 5, generators(1), lambda t: t, None)


@pytest.fixture
def recording() -> dict[str, Any]:
    if not RECORDING.exists():
        pytest.skip("recordings not here")
    return torch.load(RECORDING, weights_only=True)["iddpm"]


@pytest.mark.parametrize("name", ["plain", "mask"])
def test_the_recorded_losses_of_iddpm_come_from_the_table(recording: dict[str, Any], name: str) -> None:
    recorded, x0, noise = recording[name], recording["x_start"], recording["noise"]
    t, mask = recorded["t_in"].float(), None  # as the model is told it
    if name == "mask":
        mask = torch.ones(3, 4, dtype=torch.bool)
        mask[1, 0] = False
    objective = OBJECTIVES["iddpm"]
    x_t = objective.add_noise(x0, noise, t, mask)
    torch.testing.assert_close(x_t, recorded["x_t"], atol=1e-5, rtol=0)
    losses = objective.losses(recording["model_out"], x0, noise, x_t, t, mask)
    torch.testing.assert_close(losses, recorded["loss"], atol=1e-5, rtol=0)


def test_rectified_flow_is_what_it_was() -> None:
    x0, noise = pair(2, 4, 5, 3, 3)
    objective, output = OBJECTIVES["rectified-flow"], torch.randn(2, 8, 5, 3, 3)
    assert torch.equal(objective.add_noise(x0, noise, T, None), rectified_flow.add_noise(x0, noise, T))
    found = objective.losses(output, x0, noise, noise, T, None)
    assert torch.equal(found, rectified_flow.loss_per_sample(output, x0, noise))
