"""`sample`: captions -> videos, with the trained model."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor

from jobs.config import RunConfig, SampleConfig
from jobs.configured import describe_configured_vae, load_configured_vae
from jobs.events import Events
from jobs.mp4 import write_mp4
from jobs.pictures import read_picture, sample_sheet
from jobs.progress import progress, say
from models.diffusion.conditioning import Reference, place_references
from models.diffusion.draws import generator
from models.diffusion.guidance import guided
from models.diffusion.rectified_flow import euler_timesteps, sample_euler, timestep_transform
from models.dit import load_dit
from models.latent_spec import LatentSpec
from models.text import describe_text_encoder, load_text_encoder
from models.text.interface import TextEncoder
from models.vae.interface import VideoVAE
from models.weights import file_sha256
from pipeline.encode import decode_to_frames
from pipeline.errors import Refused
from pipeline.index import open_index
from pipeline.recipe import Recipe, convertible_recipe
from pipeline.records import TextSample
from pipeline.storage import publish
from pipeline.text_column import TextOrigin


class Text(NamedTuple):
    """Encoded captions, or a single one without the first axis."""

    tokens: Tensor  # (B, L, dim)
    mask: Tensor  # (B, L), True = a token


def sample(config: RunConfig) -> int:
    """Write one mp4 per prompt and a sheet of all of them below `train.out`."""
    settings, out = config.sample, config.train.out
    folder = out / ("ema" if settings.weights == "ema" else "model")
    trained = _read_trained(folder)
    recipe = Recipe.from_dict(trained["recipe"])
    _check_vae(folder, recipe.latent, describe_configured_vae(config, recipe.latent).spec)
    height, width = settings.height or recipe.buckets[0][0], settings.width or recipe.buckets[0][1]
    _check_size(recipe, settings.num_frames, height, width)
    prompts = list(settings.prompts) or cached_captions(config, recipe, settings.num_prompts)
    images = [file_sha256(path) for path in (settings.first_frame, settings.last_frame) if path and path.exists()]
    wanted = {"model": trained, "sample": json.loads(settings.model_dump_json()), "prompts": prompts, "images": images}
    paths = [out / "samples" / f"{number:03d}.mp4" for number in range(len(prompts))]
    if _is_done(out / "samples.json", wanted, paths):
        say(f"sample: {len(prompts)} videos of this model are there already -> {out / 'samples'}")
        return 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_dit(folder).to(device).eval()
    vae = load_configured_vae(config, recipe.latent).to(device)
    encoder = load_sampling_encoder(config, trained).to(device)
    references = encode_references(vae, settings, height, width)
    videos = []
    with progress("sample", len(prompts), "videos") as bar:
        for first in range(0, len(prompts), settings.batch):
            some = range(first, min(first + settings.batch, len(prompts)))
            shape = recipe.latent.latent_shape(settings.num_frames, height, width)  # (c, t, h, w)
            noise = torch.stack([torch.randn(shape, generator=generator(settings.seed, 0, n)) for n in some])
            text = encode_prompts(encoder, [prompts[n] for n in some])
            null = choose_negative(model, encoder, settings, trained)
            latents = generate(model, config, trained, text, null, noise.to(device), references)
            for number, frames in zip(some, decode_to_frames(vae, latents, settings.num_frames)):
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
    text: Text,
    negative: Text | None,
    noise: Tensor,
    references: list[Reference],
) -> Tensor:
    """Encoded prompts and noise (B, c, t, h, w) -> normalized latents of the same shape.

    Without `negative` guidance is away from the model's own null caption, cut to the prompts' length.
    """
    settings, recipe = config.sample, Recipe.from_dict(trained["recipe"])
    _, down, across = recipe.latent.stride
    height, width = noise.shape[3] * down, noise.shape[4] * across
    tokens, mask = (one.to(noise.device) for one in text)
    null_text, null_mask = (model.null_text(tokens.shape[1]), None) if negative is None else negative
    velocity = partial(
        guided,
        model,
        text=tokens,
        text_mask=mask,
        null_text=null_text.to(noise.device),
        null_mask=null_mask if null_mask is None else null_mask.to(noise.device),
        scale=settings.guidance,
        **{
            name: repeat(torch.tensor(float(value), device=noise.device), "-> b", b=len(noise))
            for name, value in (("fps", recipe.fps), ("height", height), ("width", width))
        },
    )
    shift = partial(timestep_transform, height=height, width=width, num_frames=settings.num_frames)
    timesteps = euler_timesteps(settings.steps, shift if trained["timestep_transform"] else None)
    given = None
    if references:
        given = place_references([references] * len(noise), noise, align=recipe.latent.chunk_latents)
    return sample_euler(velocity, noise, timesteps, given)


def load_sampling_encoder(config: RunConfig, trained: dict[str, Any]) -> TextEncoder:
    """The text encoder that the model was trained with, its weights where [text] says or where they then were."""
    origin = TextOrigin(**trained["text"])
    path = config.text.path or origin.path
    clean = origin.clean if config.sample.clean is None else config.sample.clean
    try:
        found = describe_text_encoder(origin.name, path, origin.settings).fingerprint()
        if found != origin.fingerprint:
            raise ValueError(
                f"{path} is another {origin.name} ({found[:16]}) than the model was trained with "
                f"({origin.fingerprint[:16]}); give that one"
            )
        return load_text_encoder(origin.name, path, replace(origin.settings, clean=clean))
    except ValueError as error:
        raise Refused(f"text.path: {error}") from error


def encode_prompts(encoder: TextEncoder, prompts: list[str]) -> Text:
    """Prompts -> their tokens, padded with zeros to the longest, and which of them are tokens."""
    encoded = encoder.encode(prompts)
    length = max(1, *(len(tokens) for tokens in encoded))
    tokens = torch.zeros(len(prompts), length, encoder.dim)
    mask = torch.zeros(len(prompts), length, dtype=torch.bool)
    for place, found in enumerate(encoded):
        tokens[place, : len(found)] = torch.from_numpy(found)
        mask[place, : len(found)] = True
    return Text(tokens, mask)


def choose_negative(model: Any, encoder: TextEncoder, settings: SampleConfig, trained: dict[str, Any]) -> Text | None:
    """What guidance steers away from; None is the model's own null caption, cut to the prompt's length.

    Models were trained with that one before there was another.
    """
    if settings.negative_prompt or trained.get("null_caption", "model") == "cached":
        tokens, mask = encode_prompts(encoder, [settings.negative_prompt])  # no words are the cached null caption
        return Text(tokens[0], mask[0])
    if settings.full_null:
        null = model.null_text(model.config.max_text_tokens)  # (L, dim)
        return Text(null, torch.ones(len(null), dtype=torch.bool))
    return None


@torch.inference_mode()
def encode_references(vae: VideoVAE, settings: SampleConfig, height: int, width: int) -> list[Reference]:
    """The images that [sample] names, as latents with their places."""
    references = []
    for path, start in ((settings.first_frame, 0), (settings.last_frame, -1)):
        if path is not None:
            image = torch.tensor(read_picture(path, height, width)).to(vae.device)  # (H, W, 3) uint8
            pixels = rearrange(image, "h w c -> 1 c 1 h w").float() / 127.5 - 1
            references.append(Reference(vae.encode(pixels)[0], start))
    return references


@torch.inference_mode()
def cached_captions(config: RunConfig, recipe: Recipe, count: int) -> list[str]:
    """Distinct captions of the cache, evenly spread over them in alphabetical order."""
    stored = convertible_recipe(config.cache, recipe)  # captions have no normalization
    texts = open_index(config.cache.text_index(config.text.encoder), stored, TextSample, "text")
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
