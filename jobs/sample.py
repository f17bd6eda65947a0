"""`sample`: captions -> videos, with the trained model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.config import RunConfig
from jobs.configured import describe_configured_vae, load_configured_vae
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
from jobs.pictures import sample_sheet
from jobs.progress import progress, say
from models.dit import load_dit
from models.latent_spec import LatentSpec
from pipeline.cache import Cache
from pipeline.encode import decode_to_frames
from pipeline.errors import Refused
from pipeline.index import open_index
from pipeline.recipe import Recipe, convertible_recipe
from pipeline.records import TextSample
from pipeline.storage import publish


def sample(config: RunConfig) -> int:
    """Write one mp4 per prompt and a sheet of all of them below `train.out`."""
    settings, out = config.sample, config.train.out
    folder = out / ("ema" if settings.weights == "ema" else "model")
    trained = _read_trained(folder)
    recipe = Recipe.from_dict(trained["recipe"])
    _check_vae(folder, recipe.latent, describe_configured_vae(config, recipe.latent).spec)
    height, width = asked_size(settings, recipe)
    check_steps(settings, trained["objective"])
    prompts = list(settings.prompts) or cached_captions(config.cache, config.text.encoder, recipe, settings.num_prompts)
    asked = {"sample": json.loads(settings.model_dump_json()), "prompts": prompts, "images": image_sums(settings)}
    wanted = {"model": trained, **asked}
    paths = [out / "samples" / f"{number:03d}.mp4" for number in range(len(prompts))]
    if _is_done(out / "samples.json", wanted, paths):
        say(f"sample: {len(prompts)} videos of this model are there already -> {out / 'samples'}")
        return 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_dit(folder).to(device).eval()
    vae = load_configured_vae(config, recipe.latent).to(device)
    encoder = load_sampling_encoder(config, trained).to(device)
    references = encode_references(vae, settings, height, width)
    negative = encode_negative(encoder, settings, trained)
    videos = []
    with progress("sample", len(prompts), "videos", config) as bar:
        for first in range(0, len(prompts), settings.batch):
            some = range(len(prompts))[first : first + settings.batch]
            text = Text(*(one.to(device) for one in encode_prompts(encoder, [prompts[n] for n in some])))
            null = negative or own_null(model, settings, text.tokens.shape[1])
            latents = generate(model, settings, trained, some, text, null, references)
            for number, frames in zip(some, decode_to_frames(vae, latents, settings.num_frames)):
                write_mp4(paths[number], frames, recipe.fps)
                videos.append(frames)
                bar.advance()
    sample_sheet(out / "samples.png", list(zip(prompts, videos)))
    publish(out / "samples.json", (json.dumps(wanted, indent=2) + "\n").encode())
    Events(out / "events.jsonl", "sample").write("done", videos=len(prompts), steps=trained["steps"])
    say(f"sample: {len(prompts)} videos -> {out / 'samples'}, {out / 'samples.png'}")
    return 0


def cached_captions(cache: Cache, encoder: str, recipe: Recipe, count: int) -> list[str]:
    """Distinct captions of a cache, evenly spread over them in alphabetical order."""
    stored = convertible_recipe(cache, recipe)  # captions have no normalization
    texts = open_index(cache.text_index(encoder), stored, TextSample, "text")
    distinct = sorted(set(texts["caption"].to_pylist()))
    places = np.linspace(0, len(distinct) - 1, min(count, len(distinct))).round().astype(int)
    return [distinct[place] for place in places]


def _check_vae(model: Path, trained: LatentSpec, found: LatentSpec) -> None:
    before, now = trained.to_dict(), found.to_dict()
    changed = "; ".join(f"{name}: {before[name]!r}, now {now[name]!r}" for name in before if before[name] != now[name])
    if changed:
        raise Refused(f"{model}: trained on latents of another VAE than [recipe] has: {changed}; change [recipe] back")


def _read_trained(folder: Path) -> dict[str, Any]:
    path = folder / "trained.json"
    if not path.exists():
        raise Refused(f"{path}: not found, so there is no trained model; run `train` first, or set train.out")
    return {"objective": "rectified-flow", **json.loads(path.read_text())}  # once the only one


def _is_done(path: Path, wanted: dict[str, Any], videos: list[Path]) -> bool:
    return path.exists() and json.loads(path.read_text()) == wanted and all(video.exists() for video in videos)
