"""The model that a run trains: what it begins as, and what is told of it to those who use it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jobs.config import RunConfig
from jobs.training.optimizer import parameter_groups
from models.dit import DIT_FILES, build_dit, load_dit
from models.dit.pixart import init_from_pixart
from models.dit.stdit3 import STDiT3
from models.hub import locate
from pipeline.errors import Refused
from pipeline.storage import publish
from pipeline.training_set import TrainingSet


def check_init(config: RunConfig) -> None:
    """Refuse `model.init` where there is nothing, before any worker starts."""
    if config.model.init is not None:
        try:
            locate(config.model.init, DIT_FILES)
        except ValueError as error:
            raise Refused(f"model.init: {error}") from error


def check_groups(config: RunConfig) -> None:
    """Refuse `train.lr_scales` that match nothing or leave nothing to train, before any worker starts."""
    with torch.device("meta"):
        parameter_groups(build_dit(config.model.name, **config.model.overrides), config.train)


def build_model(config: RunConfig, data: TrainingSet) -> STDiT3:
    """The DiT, the same on every rank, shaped for the cache's latents and text, with the weights it starts from."""
    torch.manual_seed(config.train.seed)
    model = build_dit(
        config.model.name,
        **{
            "in_channels": data.recipe.latent.channels,
            "caption_channels": data.text.dim,
            "max_text_tokens": data.text.max_tokens,
            **config.model.overrides,
        },
    )
    model.checkpoint_blocks = config.train.activation_checkpointing
    if config.model.init is None:
        return model
    if Path(config.model.init).is_file():
        report = init_from_pixart(model, config.model.init)
        if dist.get_rank() == 0:
            publish(config.train.out / "init.txt", f"{report}\n".encode())
        return model
    start = load_dit(config.model.init)
    before, now = asdict(start.config), asdict(model.config)
    if changed := [f"{name} is {before[name]}, not {now[name]}" for name in now if before[name] != now[name]]:
        raise Refused(f"model.init: {config.model.init} is another model: {'; '.join(changed)}; set model.overrides")
    start.checkpoint_blocks = model.checkpoint_blocks
    return start


def describe_run(config: RunConfig, data: TrainingSet) -> dict[str, Any]:
    """What whoever uses the weights must know beside the model's shape: recipe, text encoder, how it was trained."""
    return {
        "vae": config.recipe.vae,
        "text": asdict(data.text),
        "timestep_transform": config.train.timestep_transform,
        "null_caption": config.train.null_caption,
        "objective": config.train.objective,
        "recipe": data.recipe.to_dict(),
    }
