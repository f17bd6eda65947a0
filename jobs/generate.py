"""Prompts -> latents: what a model is asked for, encoded, and the sampling itself."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor

from jobs.config import ConfigError, RunConfig, SampleConfig
from jobs.pictures import read_picture
from models.diffusion.conditioning import Reference, place_references
from models.diffusion.draws import Null, generator
from models.diffusion.iddpm import NUM_STEPS
from models.diffusion.objectives import OBJECTIVES
from models.diffusion.rectified_flow import timestep_transform
from models.text import describe_text_encoder, load_text_encoder
from models.text.interface import TextEncoder
from models.vae.interface import VideoVAE
from models.weights import file_sha256
from pipeline.errors import Refused
from pipeline.recipe import Recipe
from pipeline.text_column import TextOrigin


class Text(NamedTuple):
    """Encoded captions, or a single one without the first axis."""

    tokens: Tensor  # (B, L, dim)
    mask: Tensor  # (B, L), True = a token


def asked_size(settings: SampleConfig, recipe: Recipe) -> tuple[int, int]:
    """(height, width) of the videos; Refused where [sample] asks for what cannot be sampled."""
    height, width = settings.height or recipe.buckets[0][0], settings.width or recipe.buckets[0][1]
    chunk_frames = recipe.latent.chunk_frames
    if settings.num_frames % chunk_frames:
        whole = max(1, round(settings.num_frames / chunk_frames)) * chunk_frames
        raise Refused(
            f"sample.num_frames: {settings.num_frames} is not a whole number of {chunk_frames}-frame chunks "
            f"(17 = 1+4+4+4+4 frames become 5 = 1+4 latents); use {whole}"
        )
    try:
        recipe.latent.latent_shape(settings.num_frames, height, width)
    except ValueError as error:
        raise Refused(f"sample: {error}") from error
    return height, width


def check_steps(settings: SampleConfig, objective: str) -> None:
    """Refuse a number of steps that the objective's sampler has not."""
    if objective == "iddpm" and not 2 <= settings.steps <= NUM_STEPS:
        raise ConfigError(f"sample.steps: {settings.steps}; the sampler of iddpm takes 2 to {NUM_STEPS}")


@torch.no_grad()
def generate(
    model: Callable[..., Tensor],
    settings: SampleConfig,
    trained: dict[str, Any],
    numbers: Sequence[int],
    text: Text,
    null: Null,
    references: Sequence[Reference] = (),
) -> Tensor:
    """Encoded prompts (B, L, dim) -> normalized latents (B, c, t, h, w), where the text is.

    Each starts from noise of its own, drawn by (seed, its number), whatever stands beside it. `trained` is what the
    run tells of its model: its recipe, and how it was trained.
    """
    recipe, objective = Recipe.from_dict(trained["recipe"]), OBJECTIVES[trained["objective"]]
    (height, width), device = asked_size(settings, recipe), text.tokens.device
    shape = recipe.latent.latent_shape(settings.num_frames, height, width)  # (c, t, h, w)
    generators = [generator(settings.seed, 0, number) for number in numbers]
    noise = torch.stack([torch.randn(shape, generator=one) for one in generators]).to(device)
    denoise = partial(
        objective.guided,
        model,
        text=text.tokens,
        text_mask=text.mask,
        null_text=null[0].to(device),
        null_mask=None if null[1] is None else null[1].to(device),
        scale=settings.guidance,
        **{
            name: repeat(torch.tensor(float(value), device=device), "-> b", b=len(noise))
            for name, value in (("fps", recipe.fps), ("height", height), ("width", width))
        },
    )
    shift = given = None
    if trained["timestep_transform"]:
        shift = partial(timestep_transform, height=height, width=width, num_frames=settings.num_frames)
    if references:
        given = place_references([references] * len(noise), noise, align=recipe.latent.chunk_latents)
    return objective.sample(denoise, noise, settings.steps, generators, shift, given)


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


def encode_prompts(encoder: TextEncoder, prompts: Sequence[str]) -> Text:
    """Prompts -> their tokens, padded with zeros to the longest, and which of them are tokens."""
    encoded = encoder.encode(prompts)
    length = max(1, *(len(tokens) for tokens in encoded))
    tokens = torch.zeros(len(prompts), length, encoder.dim)
    mask = torch.zeros(len(prompts), length, dtype=torch.bool)
    for place, found in enumerate(encoded):
        tokens[place, : len(found)] = torch.from_numpy(found)
        mask[place, : len(found)] = True
    return Text(tokens, mask)


def encode_negative(encoder: TextEncoder, settings: SampleConfig, trained: dict[str, Any]) -> Text | None:
    """What guidance steers away from, where that is a caption: None is the model's own null caption.

    Models were trained with that one before there was another.
    """
    if settings.negative_prompt or trained.get("null_caption", "model") == "cached":
        tokens, mask = encode_prompts(encoder, [settings.negative_prompt])  # no words are the cached null caption
        return Text(tokens[0], mask[0])
    return None


def own_null(model: Any, settings: SampleConfig, num_tokens: int) -> Null:
    """A model's own null caption: as in training, so many tokens under the prompt's mask, or the whole of it."""
    if not settings.full_null:
        return model.null_text(num_tokens), None
    null = model.null_text(model.config.max_text_tokens)  # (L, dim)
    return null, torch.ones(len(null), dtype=torch.bool)


def image_sums(settings: SampleConfig) -> list[str]:
    """SHA-256 of the images that [sample] names; one that is missing is refused where it is read."""
    return [file_sha256(path) for path in (settings.first_frame, settings.last_frame) if path and path.exists()]


@torch.no_grad()
def encode_references(vae: VideoVAE, settings: SampleConfig, height: int, width: int) -> list[Reference]:
    """The images that [sample] names, as latents with their places."""
    references = []
    for path, start in ((settings.first_frame, 0), (settings.last_frame, -1)):
        if path is not None:
            image = torch.tensor(read_picture(path, height, width)).to(vae.device)  # (H, W, 3) uint8
            pixels = rearrange(image, "h w c -> 1 c 1 h w").float() / 127.5 - 1
            references.append(Reference(vae.encode(pixels)[0], start))
    return references
