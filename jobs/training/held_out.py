"""The loss on videos that are not trained on. Batches, noise and timesteps are fixed, so only the weights move it."""

from dataclasses import replace

import torch
import torch.distributed as dist

from jobs.config import RunConfig
from jobs.configured import configured_lengths, open_held_out
from jobs.training.engine import Engine
from jobs.training.losses import Null, compute_losses, draw_for
from models.diffusion.rectified_flow import timestep_quantiles
from pipeline.batch_reader import split_batch
from pipeline.loader import load_batches
from pipeline.schedule import Schedule
from pipeline.shard_cache import ShardCache
from pipeline.training_set import TrainingSet

QUANTILES = 4  # of the timesteps that training draws, at whose middles the loss is measured


class Evaluation:
    """Measures the loss on the clips that a training set leaves out; nothing where there are none."""

    def __init__(self, config: RunConfig, data: TrainingSet, null: Null, shard_cache: ShardCache | None) -> None:
        settings = config.train
        self.data = open_held_out(config, data) if settings.eval_every else None
        self.null, self.shard_cache, self.every, self.last = null, shard_cache, settings.eval_every, settings.steps
        self.settings = settings.model_copy(update={"caption_dropout": 0.0, "masks": {}})
        self.batches = range(0)
        if self.data:
            lengths = configured_lengths(config, self.data.recipe.latent)
            self.schedule = Schedule(self.data.schedule_rows(), lengths, settings.seed)
            self.batches = range(min(settings.eval_batches, self.schedule.num_steps(0)))

    def measure(self, engine: Engine, step: int) -> dict[str, float]:
        """After so many steps -> metrics of the weights and of their average, none where none are due; by every rank.

        Beside the mean the loss at each quantile of the timesteps, from the least noise (t1) on.
        """
        if not self.batches or not (step % self.every == 0 or step == self.last):
            return {}
        trained = self._losses(engine)
        with engine.averaged():
            averaged = self._losses(engine)
        return {**_named("held_out/loss", trained), **_named("held_out/ema_loss", averaged)}

    @torch.no_grad()
    def _losses(self, engine: Engine) -> list[float]:
        """The mean loss at each quantile, over the batches of all ranks; damaged samples count for nothing."""
        settings = self.settings
        total = torch.zeros(QUANTILES + 1, device=engine.device)  # of the losses, and of the weights of their samples
        ranks = dist.get_rank(), dist.get_world_size()
        assert self.data is not None
        loaded = load_batches(self.data, self.schedule, self.batches, *ranks, settings.loader_threads, self.shard_cache)
        for number, batch in enumerate(loaded):
            for part in split_batch(batch, settings.accumulate):
                drawn = draw_for(settings, part, step=-1 - number)  # which no step of training draws
                weights = part.weights.to(engine.device)  # (B,)
                total[-1] += weights.sum()
                for place, timestep in enumerate(timestep_quantiles(QUANTILES, settings.timesteps).tolist()):
                    fixed = replace(drawn, timesteps=torch.full_like(drawn.timesteps, timestep))
                    losses = compute_losses(engine, settings, part, fixed, self.null)  # (B,)
                    total[place] += (losses * weights).sum()
        dist.all_reduce(total)
        return (total[:-1] / total[-1]).tolist()


def _named(name: str, losses: list[float]) -> dict[str, float]:
    return {name: sum(losses) / len(losses), **{f"{name}_t{place}": loss for place, loss in enumerate(losses, 1)}}


def describe_held_out(config: RunConfig, data: TrainingSet) -> str:
    """What the loss is measured on beside training, for the user."""
    settings, clips = config.train, sum(part.view.num_held_out for part in data.parts)
    if not settings.eval_every:
        return "the loss is measured on no held-out videos: train.eval_every=0"
    if not clips:
        return f"the loss is measured on no held-out videos: train.held_out={settings.held_out:g} of them is none here"
    return f"every {settings.eval_every} steps the loss is measured on some of {clips:,} clips of held-out videos"
