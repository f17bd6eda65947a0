"""What a configuration names: its VAE, its text encoder, its recipe."""

from collections.abc import Callable
from dataclasses import replace
from math import prod

import torch

from jobs.config import ConfigError, RunConfig
from models.dit import DITS
from models.latent_spec import Dtype, LatentSpec
from models.text import describe_text_encoder
from models.text.interface import TextDescription, TextSettings
from models.vae import describe_vae
from models.vae.description import Asked, Description
from models.vae.interface import VideoVAE
from pipeline.batch_tables import TABLES
from pipeline.bucket import resolve_buckets
from pipeline.cache import Cache
from pipeline.errors import Refused
from pipeline.lengths import Bucket, Lengths, lengths_of
from pipeline.location import place_of
from pipeline.recipe import Recipe, read_recipe
from pipeline.schedule import Schedule
from pipeline.split import Split
from pipeline.text_column import read_text_origin
from pipeline.training_set import Part, TrainingSet, open_training_set
from pipeline.view import open_view


def describe_configured_vae(config: RunConfig, latent: LatentSpec | None = None) -> Description:
    """The VAE that [recipe] names, its weights unread; ConfigError where it cannot be, or does not fit the buckets.

    `latent` is the spec that the run already has latents of, and by default that of its cache: where the run leaves the
    dtype open it is theirs, so that a recipe does not change with the machine that reads it.
    """
    if latent is None and config.cache.recipe.exists():
        latent = read_recipe(config.cache).latent
    return describe_asked_vae(config, latent.dtype if latent else None)


def describe_asked_vae(config: RunConfig, settled: Dtype | None = None) -> Description:
    """As `describe_configured_vae`, without a look at the cache. `settled` is the dtype that a run leaves open."""
    recipe = config.recipe
    found_here: Dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    try:
        asked = Asked(
            chunk_frames=recipe.chunk_frames,
            dtype=recipe.vae_dtype or settled or found_here,
            posterior=recipe.posterior,
            scaling_factor=recipe.scaling_factor,
            shift=recipe.shift,
            scale=recipe.scale,
        )
        description = describe_vae(recipe.vae, recipe.vae_path, asked)
    except ValueError as error:
        raise ConfigError(f"recipe: {error}") from error
    try:
        make_recipe(config, description.spec)
    except ValueError as error:
        raise ConfigError(f"recipe.buckets: {error}") from error
    return description


def load_configured_vae(config: RunConfig, latent: LatentSpec | None = None) -> VideoVAE:
    """The VAE that [recipe] names, ready to use; ConfigError where its weights do not fit."""
    try:
        return describe_configured_vae(config, latent).load()
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"recipe.vae_path: {error}") from error


def describe_configured_text(config: RunConfig) -> TextDescription:
    """The text encoder that [text] names, its weights unread; ConfigError where it cannot be."""
    text = config.text
    made_in: Dtype | None = None
    if config.cache.text_origin(text.encoder).exists():
        made_in = read_text_origin(config.cache, text.encoder).dtype
    try:
        settings = TextSettings(text.max_tokens, text.dtype or made_in, text.clean)
        return describe_text_encoder(text.encoder, text.path, settings)
    except ValueError as error:
        raise ConfigError(f"text: {error}") from error


def make_recipe(config: RunConfig, spec: LatentSpec) -> Recipe:
    """What the cache is made of, by [recipe] and the VAE's own spec."""
    asked = config.recipe
    return Recipe(
        latent=spec,
        fps=asked.fps,
        buckets=resolve_buckets(asked.buckets, spec.stride[1:]),
        max_chunks=asked.max_chunks,
        tail=asked.tail,
        min_chunks=asked.min_chunks,
        upscale=asked.upscale,
        scenes=asked.scenes,
        scene_threshold=asked.scene_threshold,
        filter=asked.filter,
    )


def configured_lengths(config: RunConfig, latent: LatentSpec) -> Callable[[Bucket], Lengths]:
    """How long clips are shown in training, and how many make a batch, by [train]."""
    settings, patch = config.train, DITS[config.model.name].patch_size
    asked = TABLES[settings.buckets] if isinstance(settings.buckets, str) else settings.buckets
    table = {
        size: {frames: entry._replace(batch=entry.batch * settings.batch_scale) for frames, entry in entries.items()}
        for size, entries in asked.items()
    }

    def batch_of(num_frames: int, height: int, width: int) -> int:
        if settings.tokens is None:
            return settings.batch
        return max(1, settings.tokens // count_tokens(latent, patch, num_frames, height, width))

    return lambda kind: lengths_of(kind, table, (latent.stride[1], latent.stride[2]), batch_of)


def count_tokens(latent: LatentSpec, patch: tuple[int, int, int], num_frames: int, height: int, width: int) -> int:
    """The tokens that a DiT of this patch size makes of a sample, padded to whole patches."""
    _, *shape = latent.latent_shape(num_frames, height, width)  # (t, h, w)
    return prod(-(-size // side) for size, side in zip(shape, patch, strict=True))


def configured_recipe(config: RunConfig) -> Recipe:
    """The recipe of a run."""
    return make_recipe(config, describe_configured_vae(config).spec)


def open_configured_set(config: RunConfig, recipe: Recipe, cache: Cache | None = None) -> TrainingSet:
    """What [train] trains on; Refused too where [text] asks for other text than the caches have. The encoder itself is
    not needed. `cache` is the run's own, where its indexes are of some of its shards."""
    settings, wanted = config.train, config.text
    mixed = {Cache(place_of(place)): times for place, times in settings.mix.items()}
    data = open_training_set(
        cache or config.cache,
        recipe,
        wanted.encoder,
        settings.filter,
        settings.renormalize,
        mixed,
        Split(settings.held_out),
    )
    for name in ("max_tokens", "clean", "dtype"):
        made, asked = getattr(data.text, name), getattr(wanted, name)
        if asked not in (made, None):
            raise Refused(
                f"{config.cache.text(data.text.name)}: made with text.{name} = {made}, the run wants {asked}; "
                f"run `text` again, or change it back"
            )
    return data


def configured_schedule(config: RunConfig, data: TrainingSet, begins: tuple[int, int] = (0, 0)) -> Schedule:
    """The order in which a set is trained on, from a step of training on, and the epoch it begins with there."""
    lengths = configured_lengths(config, data.recipe.latent)
    return Schedule(data.schedule_rows(), lengths, config.train.seed, begins=begins)


def open_held_out(config: RunConfig, data: TrainingSet) -> TrainingSet | None:
    """The clips that `data` leaves out to measure the loss on them, each once; None where there are none."""
    settings = config.train
    parts = [
        replace(
            part,
            view=open_view(
                part.cache, part.recipe, data.text.name, settings.filter, Split(settings.held_out, held_out=True)
            ),
            times=1.0,
        )
        for part in data.parts
        if part.view.num_held_out
    ]
    return replace(data, parts=tuple(parts)) if parts else None


def describe_part(part: Part) -> str:
    """What is trained on of one cache."""
    times = "" if part.times == 1 else f", each {part.times:g} times per epoch"
    return (
        f"{len(part.view.rows):,} clips of {part.cache.root}{times}; left out: {part.view.num_removed:,} of videos "
        f"that left the source, {part.view.num_filtered:,} that train.filter does not match, "
        f"{part.view.num_held_out:,} of held-out videos"
    )
