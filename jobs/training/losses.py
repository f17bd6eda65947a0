"""The loss of a rank's share of a step: all that is random in it is drawn ahead, by (seed, step, position)."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from jobs.config import RunConfig, TrainConfig
from jobs.training.engine import Engine
from models.diffusion.draws import Draws, Null, draw, drop_captions, posterior_sample
from models.diffusion.masks import leave_padding_out
from models.diffusion.objectives import OBJECTIVES
from models.diffusion.rectified_flow import timestep_transform
from pipeline.batch_reader import Batch, split_batch
from pipeline.loader import read_ahead
from pipeline.training_set import TrainingSet


class Part(NamedTuple):
    """Samples that go through the model together, and what is drawn for them."""

    batch: Batch
    drawn: Draws


class Share(NamedTuple):
    """What one rank computes in a step."""

    batch: Batch
    parts: list[Part]  # of the batch, by train.accumulate


def draw_ahead(settings: TrainConfig, steps: Iterable[int], batches: Iterator[Batch]) -> Iterator[Share]:
    """The batches of `steps`, parted and with their draws: a step ahead in a thread of its own, unless nothing is read
    ahead. Drawing is on the CPU, so that every device sees the same noise."""
    shares = (
        Share(batch, [Part(part, draw_for(settings, part, step)) for part in split_batch(batch, settings.accumulate)])
        for step, batch in zip(steps, batches)
    )
    return read_ahead(shares, 1) if settings.loader_threads else shares


def draw_for(settings: TrainConfig, batch: Batch, step: int) -> Draws:
    """What `step` draws for the samples of a batch."""
    return draw(
        settings.seed,
        step,
        batch.positions.tolist(),
        tuple(batch.latents.shape[1:]),
        settings.caption_dropout,
        posterior=batch.std is not None,
        masks=settings.masks,
        timesteps=settings.timesteps,
    )


def compute_losses(engine: Engine, settings: TrainConfig, batch: Batch, drawn: Draws, null: Null) -> Tensor:
    """The loss of each sample by the run's objective: (B,)."""
    objective = OBJECTIVES[settings.objective]
    mean, std = batch.latents.to(engine.device), None if batch.std is None else batch.std.to(engine.device)
    latents = posterior_sample(mean, std, drawn.posterior_noise)  # (B, c, t, h, w), another one at each step
    noise, timesteps = drawn.noise.to(engine.device), drawn.timesteps.to(engine.device)
    fps, height, width = batch.fps.to(engine.device), batch.height.to(engine.device), batch.width.to(engine.device)
    if settings.timestep_transform:
        timesteps = timestep_transform(timesteps, height, width, batch.num_frames)
    text, text_mask, dropped = (one.to(engine.device) for one in (batch.text, batch.text_mask, drawn.drop_caption))
    text, text_mask = drop_captions(text, text_mask, dropped, *null)  # (B, L, dim), (B, L)
    masks = leave_padding_out(drawn.mask, batch.filled)  # (B, t) each: denoised, not given at t = 0; counts in the loss
    mask, counted = (None if one is None else one.to(engine.device) for one in masks)
    noisy = objective.add_noise(latents, noise, timesteps, mask)
    conditions = {"fps": fps, "height": height, "width": width, **({} if mask is None else {"x_mask": mask})}
    prediction = engine(noisy, timesteps, text, text_mask, **conditions)  # (B, 2c, t, h, w)
    return objective.losses(prediction, latents, noise, noisy, timesteps, counted)


def null_caption(config: RunConfig, data: TrainingSet, engine: Engine) -> Null:
    """The null caption (N, dim) and its mask (N,); None where it keeps the mask of the caption that it stands for."""
    if config.train.null_caption == "model":
        return engine.model.null_text(engine.model.config.max_text_tokens), None
    null = torch.from_numpy(data.null_text()).to(engine.device)
    return null, torch.ones(len(null), dtype=torch.bool, device=engine.device)
