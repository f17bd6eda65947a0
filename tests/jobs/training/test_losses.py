"""What a step's loss is of: objective, padding, draws made ahead."""

from dataclasses import replace

import pytest
import torch
from einops import rearrange, reduce

from jobs.config import TrainConfig
from jobs.training.losses import Share, compute_losses, draw_ahead, draw_for
from models.diffusion.iddpm import add_noise, linear_schedule, loss_terms
from models.diffusion.rectified_flow import timestep_transform
from pipeline.batch_reader import Batch

NULL = (torch.zeros(3, 8), None)  # the model's own
FLOW = TrainConfig()
IDDPM = TrainConfig(objective="iddpm", timesteps="discrete", timestep_transform=False)


class Answers:
    """Stands for the engine: its model gives the same answer whatever it is asked, so that only the loss is seen."""

    device = torch.device("cpu")

    def __init__(self, *shape: int) -> None:
        self.model = self
        self.answer = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()  # (B, c, t, h, w)
        self.asked: dict[str, torch.Tensor] = {}

    def __call__(self, noisy: torch.Tensor, timesteps: torch.Tensor, *_: torch.Tensor, **how: torch.Tensor):
        self.asked = {"noisy": noisy, "timesteps": timesteps, **how}
        return self.answer


def make_batch(latents: torch.Tensor, num_frames: int, num_filled: list[int]) -> Batch:
    """A batch of 64x64 clips, of whose latents (B, c, t, h, w) so many are filled."""
    size = len(latents)
    return Batch(
        num_frames=num_frames,
        latents=latents,
        std=None,
        filled=torch.arange(latents.shape[2]) < torch.tensor(num_filled)[:, None],
        text=torch.zeros(size, 3, 8),
        text_mask=torch.ones(size, 3, dtype=torch.bool),
        fps=torch.full((size,), 24.0),
        height=torch.full((size,), 64.0),
        width=torch.full((size,), 64.0),
        weights=torch.ones(size),
        positions=torch.arange(size),
        keys=tuple(map(str, range(size))),
    )


def losses_of(engine: Answers, settings: TrainConfig, batch: Batch, step: int) -> torch.Tensor:
    return compute_losses(engine, settings, batch, draw_for(settings, batch, step), NULL)  # pyright: ignore


@pytest.mark.parametrize("masks", [{}, {"random": 0.5, "image_head": 0.5}], ids=["whole", "masked"])
@pytest.mark.parametrize("settings", [FLOW, IDDPM], ids=["flow", "iddpm"])
def test_neither_loss_nor_gradient_depends_on_what_stands_in_padding(
    settings: TrainConfig, masks: dict[str, float]
) -> None:
    settings = settings.model_copy(update={"masks": masks})
    latents = torch.randn(8, 4, 10, 2, 2)
    batch = make_batch(latents, 34, [10, 6, 7, 1, 10, 6, 7, 1])
    other = torch.where(rearrange(batch.filled, "b t -> b 1 t 1 1"), latents, 1e4 * torch.randn_like(latents))
    engine, disturbed = Answers(8, 8, 10, 2, 2), Answers(8, 8, 10, 2, 2)
    losses = losses_of(engine, settings, batch, 3)
    assert torch.equal(losses, losses_of(disturbed, settings, replace(batch, latents=other), 3))
    assert (losses > 0.1).all()  # none has nothing to learn
    losses.sum().backward()
    learned = reduce(engine.answer.grad.abs(), "b c t h w -> b t", "sum") > 0  # pyright: ignore
    assert torch.equal(learned, batch.filled & engine.asked.get("x_mask", torch.ones_like(batch.filled)))


def test_padding_leaves_the_loss_of_what_is_filled_as_it_is() -> None:
    latents = torch.randn(2, 4, 5, 2, 2)
    answers, padded = Answers(*latents.shape), make_batch(latents, 17, [2, 5])
    found, whole = (losses_of(answers, FLOW, batch, 0) for batch in (padded, make_batch(latents, 17, [5, 5])))
    torch.testing.assert_close(found[1], whole[1])
    noise = draw_for(FLOW, padded, 0).noise
    torch.testing.assert_close(found[0], (answers.answer - latents + noise)[0, :, :2].square().mean())


def test_an_images_timesteps_are_those_of_one_latent() -> None:
    asked = []
    for num_frames, latents in ((1, torch.randn(2, 4, 1, 2, 2)), (17, torch.randn(2, 4, 5, 2, 2))):
        engine, batch = Answers(*latents.shape), make_batch(latents, num_frames, [latents.shape[2]] * 2)
        losses_of(engine, FLOW, batch, 0)
        asked.append(engine.asked["timesteps"])
        drawn = draw_for(FLOW, batch, 0).timesteps
        torch.testing.assert_close(asked[-1], timestep_transform(drawn, 64, 64, num_frames))
    assert (asked[0] < asked[1]).all()


def test_iddpm_asks_at_whole_steps_and_learns_noise_and_variance() -> None:
    settings = IDDPM.model_copy(update={"masks": {"image_head": 1.0}})
    latents = torch.randn(6, 4, 5, 2, 2)
    batch, engine = make_batch(latents, 17, [5] * 6), Answers(6, 8, 5, 2, 2)
    losses = losses_of(engine, settings, batch, 7)
    noisy, timesteps, mask = (engine.asked[name] for name in ("noisy", "timesteps", "x_mask"))
    step, noise = timesteps.long(), draw_for(settings, batch, 7).noise
    assert torch.equal(step, timesteps) and step.min() >= 0 and step.max() <= 999
    assert not mask[:, 0].any() and mask[:, 1:].all()
    schedule = linear_schedule()
    assert torch.equal(noisy, add_noise(schedule, latents, noise, step, mask))
    assert torch.equal(losses, loss_terms(schedule, engine.answer, latents, noise, noisy, step, mask).loss)


@pytest.mark.parametrize("loader_threads", [0, 2])
def test_draws_made_ahead_are_those_of_each_step_in_any_parts(loader_threads: int) -> None:
    batches = [make_batch(torch.randn(5, 4, 5, 2, 2), 17, [5] * 5) for _ in range(4)]
    whole = FLOW.model_copy(update={"masks": {"random": 0.5}, "loader_threads": loader_threads})
    steps = range(10, 14)
    for accumulate, sizes in ((1, [5]), (2, [2, 3])):
        settings = whole.model_copy(update={"accumulate": accumulate})
        shares: list[Share] = list(draw_ahead(settings, steps, iter(batches)))
        assert [share.batch for share in shares] == batches
        for step, share in zip(steps, shares, strict=True):
            assert [len(part.keys) for part, _ in share.parts] == sizes
            wanted = draw_for(whole, share.batch, step)
            for name in ("noise", "timesteps", "drop_caption", "mask"):
                parts = torch.cat([getattr(drawn, name) for _, drawn in share.parts])
                assert torch.equal(parts, getattr(wanted, name))
