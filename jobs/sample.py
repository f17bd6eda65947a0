"""`sample`: captions -> videos, with the trained model."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor

from jobs.config import RunConfig, describe_configured_vae, load_configured_vae
from jobs.mp4 import write_mp4
from jobs.pictures import sample_sheet
from jobs.progress import Events, progress, say
from models.diffusion.draws import generator
from models.diffusion.guidance import guided
from models.diffusion.rectified_flow import euler_timesteps, sample_euler, timestep_transform
from models.dit import load_dit
from models.latent_spec import LatentSpec
from models.text import load_text_encoder
from models.vae.interface import VideoVAE
from pipeline.errors import Refused
from pipeline.index import open_index
from pipeline.recipe import Recipe
from pipeline.records import TextSample
from pipeline.storage import publish


def sample(config: RunConfig) -> int:
    """Write one mp4 per prompt and a sheet of all of them below `train.out`."""
    settings, out = config.sample, config.train.out
    trained = _read_trained(out / "model")
    recipe = Recipe.from_dict(trained["recipe"])
    _check_vae(out / "model", recipe.latent, describe_configured_vae(config, recipe.latent).spec)
    height, width = settings.height or recipe.buckets[0][0], settings.width or recipe.buckets[0][1]
    _check_size(recipe, settings.num_frames, height, width)
    prompts = list(settings.prompts) or cached_captions(config, recipe, settings.num_prompts)
    wanted = {"model": trained, "sample": json.loads(settings.model_dump_json()), "prompts": prompts}
    paths = [out / "samples" / f"{number:03d}.mp4" for number in range(len(prompts))]
    if _is_done(out / "samples.json", wanted, paths):
        say(f"sample: {len(prompts)} videos of this model are there already -> {out / 'samples'}")
        return 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_dit(out / "model").to(device).eval()
    vae = load_configured_vae(config, recipe.latent).to(device)
    videos = []
    with progress("sample", len(prompts), "videos") as bar:
        for first in range(0, len(prompts), settings.batch):
            some = range(first, min(first + settings.batch, len(prompts)))
            latents = generate(model, config, trained, [prompts[n] for n in some], list(some), height, width)
            for number, frames in zip(some, to_frames(vae, latents, settings.num_frames)):
                write_mp4(paths[number], frames, recipe.fps)
                videos.append(frames)
                bar.advance()
    sample_sheet(out / "samples.png", list(zip(prompts, videos)))
    publish(out / "samples.json", (json.dumps(wanted, indent=2) + "\n").encode())
    Events(out / "events.jsonl", "sample").write("done", videos=len(prompts), steps=trained["steps"])
    say(f"sample: {len(prompts)} videos -> {out / 'samples'}, {out / 'samples.png'}")
    return 0


@torch.inference_mode()
def generate(
    model: Any,
    config: RunConfig,
    trained: dict[str, Any],
    prompts: list[str],
    numbers: list[int],
    height: int,
    width: int,
) -> Tensor:
    """Prompts -> normalized latents (B, c, t, h, w). Each video's noise is drawn by (sample.seed, its number)."""
    settings, recipe = config.sample, Recipe.from_dict(trained["recipe"])
    device = next(model.parameters()).device
    shape = recipe.latent.latent_shape(settings.num_frames, height, width)  # (c, t, h, w)
    noise = torch.stack([torch.randn(shape, generator=generator(settings.seed, 0, number)) for number in numbers])
    encoded = load_text_encoder(trained["text_encoder"]).encode(prompts)
    length = max(1, *(len(tokens) for tokens in encoded))
    text = torch.zeros(len(prompts), length, encoded[0].shape[1])  # (B, L, dim)
    text_mask = torch.zeros(len(prompts), length, dtype=torch.bool)
    for place, tokens in enumerate(encoded):
        text[place, : len(tokens)] = torch.from_numpy(tokens)
        text_mask[place, : len(tokens)] = True
    velocity = partial(
        guided,
        model,
        text=text.to(device),
        text_mask=text_mask.to(device),
        null_text=model.null_text(length),
        scale=settings.guidance,
        **{
            name: repeat(torch.tensor(float(value), device=device), "-> b", b=len(prompts))
            for name, value in (("fps", recipe.fps), ("height", height), ("width", width))
        },
    )
    shift = partial(timestep_transform, height=height, width=width, num_frames=settings.num_frames)
    timesteps = euler_timesteps(settings.steps, shift if trained["timestep_transform"] else None)
    return sample_euler(velocity, noise.to(device), timesteps)


@torch.inference_mode()
def to_frames(vae: VideoVAE, latents: Tensor, num_frames: int) -> np.ndarray:
    """Normalized latents (B, c, t, h, w) -> frames (B, T, H, W, 3) uint8."""
    pixels = vae.decode(latents, num_frames)  # (B, 3, T, H, W)
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return rearrange(levels, "b c t h w -> b t h w c").cpu().numpy()


def cached_captions(config: RunConfig, recipe: Recipe, count: int) -> list[str]:
    """Distinct captions of the cache, evenly spread over them in alphabetical order."""
    texts = open_index(config.cache.text_index(config.text.encoder), recipe, TextSample, "text")
    distinct = sorted(set(texts["caption"].to_pylist()))
    places = np.linspace(0, len(distinct) - 1, min(count, len(distinct))).round().astype(int)
    return [distinct[place] for place in places]


def _check_vae(model: Path, trained: LatentSpec, found: LatentSpec) -> None:
    before, now = trained.to_dict(), found.to_dict()
    changed = "; ".join(f"{name}: {before[name]!r}, now {now[name]!r}" for name in before if before[name] != now[name])
    if changed:
        raise Refused(f"{model}: trained on latents of another VAE than [recipe] has: {changed}; change [recipe] back")


def _check_size(recipe: Recipe, num_frames: int, height: int, width: int) -> None:
    chunk_frames = recipe.latent.chunk_frames
    if num_frames % chunk_frames:
        whole = max(1, round(num_frames / chunk_frames)) * chunk_frames
        raise Refused(
            f"sample.num_frames: {num_frames} is not a whole number of {chunk_frames}-frame chunks "
            f"(17 = 1+4+4+4+4 frames become 5 = 1+4 latents); use {whole}"
        )
    try:
        recipe.latent.latent_shape(num_frames, height, width)
    except ValueError as error:
        raise Refused(f"sample: {error}") from error


def _read_trained(folder: Path) -> dict[str, Any]:
    path = folder / "trained.json"
    if not path.exists():
        raise Refused(f"{path}: not found, so there is no trained model; run `train` first, or set train.out")
    return json.loads(path.read_text())


def _is_done(path: Path, wanted: dict[str, Any], videos: list[Path]) -> bool:
    return path.exists() and json.loads(path.read_text()) == wanted and all(video.exists() for video in videos)
