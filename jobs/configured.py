"""What a configuration names: its VAE, its text encoder, its recipe."""

import torch

from jobs.config import ConfigError, RunConfig
from models.latent_spec import Dtype, LatentSpec
from models.text import describe_text_encoder
from models.text.interface import TextDescription, TextSettings
from models.vae import describe_vae
from models.vae.description import Asked, Description
from models.vae.interface import VideoVAE
from pipeline.bucket import resolve_buckets
from pipeline.recipe import Recipe, read_recipe
from pipeline.text_column import read_text_origin


def describe_configured_vae(config: RunConfig, latent: LatentSpec | None = None) -> Description:
    """The VAE that [recipe] names, its weights unread; ConfigError where it cannot be, or does not fit the buckets.

    `latent` is the spec that the run already has latents of, and by default that of its cache: where the run leaves the
    dtype open it is theirs, so that a recipe does not change with the machine that reads it.
    """
    recipe = config.recipe
    if latent is None and config.cache.recipe.exists():
        latent = read_recipe(config.cache).latent
    settled: Dtype | None = latent.dtype if latent else None
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


def configured_recipe(config: RunConfig) -> Recipe:
    """The recipe of a run."""
    return make_recipe(config, describe_configured_vae(config).spec)
