"""Videos while a model trains: the same prompts every time, from the average of the weights, by all ranks together."""

import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from jobs.config import RunConfig, SampleConfig
from jobs.configured import load_configured_vae
from jobs.events import Events
from jobs.generate import (
    Text,
    asked_size,
    check_steps,
    encode_negative,
    encode_prompts,
    encode_references,
    generate,
    image_sums,
    load_sampling_encoder,
    own_null,
)
from jobs.mp4 import write_mp4
from jobs.progress import say
from jobs.sample import cached_captions
from jobs.training.engine import Engine
from models.diffusion.conditioning import Reference
from pipeline.cache import Cache
from pipeline.encode import decode_to_frames
from pipeline.recipe import Recipe
from pipeline.storage import publish


def encode_asked(config: RunConfig, cache: Cache, trained: dict[str, Any]) -> None:
    """Encode what [sample] asks for, by default captions of `cache`, to samples/asked.safetensors.

    Once, before training and on the CPU, so that no GPU needs room for a text encoder. Refused where it cannot be
    sampled.
    """
    settings, path = config.sample, _path(config.train.out)
    recipe = Recipe.from_dict(trained["recipe"])
    size = asked_size(settings, recipe)
    check_steps(settings, trained["objective"])
    prompts = list(settings.prompts) or cached_captions(cache, config.text.encoder, recipe, settings.num_prompts)
    named = settings.model_dump(mode="json", include={"negative_prompt", "clean", "first_frame", "last_frame"})
    asked = {"prompts": prompts, "size": [*size], "images": image_sums(settings), **named}
    if path.exists() and read_asked(config.train.out) == asked:
        return
    say(f"train: encoding {len(prompts)} prompts, of which videos are sampled every {config.train.sample_every} steps")
    encoder = load_sampling_encoder(config, trained)
    tensors = encode_prompts(encoder, prompts)._asdict()
    if negative := encode_negative(encoder, settings, trained):
        tensors |= {f"negative_{name}": tensor for name, tensor in negative._asdict().items()}
    if settings.first_frame or settings.last_frame:
        references = encode_references(load_configured_vae(config, recipe.latent), settings, *size)
        tensors |= {f"reference_{one.start}": one.latents.contiguous() for one in references}
    publish(path, save(tensors, metadata={"asked": json.dumps(asked)}))


def read_asked(out: Path) -> dict[str, Any]:
    """What the videos of a run are of: their prompts, and what else [sample] said of them."""
    with safe_open(_path(out), framework="pt") as file:
        return json.loads(file.metadata()["asked"])


def write_samples(engine: Engine, config: RunConfig, trained: dict[str, Any], step: int) -> None:
    """A video of each prompt from the averaged weights, to samples/step-<step>; called by every rank.

    Prompts are dealt out over the ranks. The VAE is there only while a rank decodes what it sampled.
    """
    settings, recipe, out = config.sample, Recipe.from_dict(trained["recipe"]), config.train.out
    folder, begun_s = out / "samples" / f"step-{step:08d}", time.monotonic()
    events = Events(out / "events.jsonl", "train") if dist.get_rank() == 0 else None
    if events:
        events.write("sampling", step=step, message=f"sampling from the average after {step} steps -> {folder}")
    latents = sample_share(engine, settings, trained, out)
    if latents:
        vae = load_configured_vae(config, recipe.latent).to(engine.device)
        for number, one in latents.items():
            frames = decode_to_frames(vae, one[None], settings.num_frames)[0]  # (T, H, W, 3)
            write_mp4(folder / f"{number:03d}.mp4", frames, recipe.fps)
        del vae
        torch.cuda.empty_cache()  # the allocator would keep what training is short of
    if events:
        events.write("samples", step=step, took_s=round(time.monotonic() - begun_s, 3))


def sample_share(engine: Engine, settings: SampleConfig, trained: dict[str, Any], out: Path) -> dict[int, Tensor]:
    """The latents (c, t, h, w) of this rank's prompts, by their numbers.

    All ranks make as many forward passes, for under ZeRO-3 each needs the weights of all: a rank with none left
    samples the first one of all once more.
    """
    text, negative, references = _read_tensors(out, engine.device)
    rank, world = dist.get_rank(), dist.get_world_size()
    own, most = range(rank, len(text.tokens), world), -(-len(text.tokens) // world)
    null = negative or own_null(engine.model, settings, text.tokens.shape[1])
    latents = {}
    with engine.averaged():
        for first in range(0, most, settings.batch):
            some = own[first : first + settings.batch] or range(1)
            places = list(some)
            part = Text(text.tokens[places], text.mask[places])
            latents |= dict(zip(some, generate(engine, settings, trained, some, part, null, references)))
    return {number: latents[number] for number in own}


def _read_tensors(out: Path, device: torch.device) -> tuple[Text, Text | None, list[Reference]]:
    """The prompts, what guidance steers away from where that is a caption, and given images."""
    with safe_open(_path(out), framework="pt", device=str(device)) as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
    negative = Text(found["negative_tokens"], found["negative_mask"]) if "negative_tokens" in found else None
    references = [Reference(found[f"reference_{start}"], start) for start in (0, -1) if f"reference_{start}" in found]
    return Text(found["tokens"], found["mask"]), negative, references


def _path(out: Path) -> Path:
    return out / "samples" / "asked.safetensors"
