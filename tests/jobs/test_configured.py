"""What a configuration names is found, and refused where it cannot be."""

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.config import ConfigError
from jobs.configured import configured_recipe
from jobs.run_toml import load_config
from pipeline.cache import Cache
from pipeline.recipe import bind_recipe
from tests.checkpoints import publish


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a small VAE of the family sd."""
    knobs = publish("sd", tmp_path_factory.mktemp("sd"))
    return [*(f"{name}={value}" for name, value in knobs.items()), "train.timestep_transform=false"]


def test_what_the_run_says_of_normalization_goes_into_the_recipe(sd: list[str], tmp_path: Path) -> None:
    places = [*sd, f"data.cache={tmp_path}"]
    plain = configured_recipe(load_config(None, places)).latent
    assert (plain.vae, plain.scaling_factor, plain.posterior, plain.dtype) == ("sd", 0.18215, "sample", "float32")
    asked = [
        "recipe.scaling_factor=0.5",
        "recipe.shift=[1,2,3,4]",
        "recipe.scale=[4,3,2,1]",
        "recipe.posterior=moments",
    ]
    latent = configured_recipe(load_config(None, [*places, *asked])).latent
    assert (latent.scaling_factor, latent.shift, latent.scale) == (0.5, (1, 2, 3, 4), (4, 3, 2, 1))
    assert latent.posterior == "moments" and latent.weights_sha256 == plain.weights_sha256


def test_the_dtype_of_a_cache_is_that_of_its_plan(sd: list[str], tmp_path: Path) -> None:
    """Left open, it must not change with the machine that reads the configuration."""
    config = load_config(None, [*sd, f"data.cache={tmp_path}"])
    recipe = configured_recipe(config)
    bind_recipe(Cache(tmp_path), replace(recipe, latent=replace(recipe.latent, dtype="bfloat16")))
    assert configured_recipe(config).latent.dtype == "bfloat16"
    asked = load_config(None, [*sd, f"data.cache={tmp_path}", "recipe.vae_dtype=float32"])
    assert configured_recipe(asked) == recipe


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe.vae=sd"], "sd needs its weights; give a folder or a hub id"),
        (["recipe.vae=sd", "recipe.vae_path=./nothing"], "nothing: no such file or folder"),
        (["recipe.vae=diffusers"], "diffusers wants one folder or hub id"),
        (["recipe.shift=[1,2]"], "16 channels but 2 shifts"),
        (["recipe.scaling_factor=0"], r"recipe\.scaling_factor: found 0"),
        (["recipe.posterior=maximum"], r"recipe\.posterior: found 'maximum'"),
        (["recipe.vae_dtype=int8"], r"recipe\.vae_dtype: found 'int8'"),
    ],
)
def test_a_vae_that_cannot_be_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, words)


def test_the_timestep_transform_wants_chunks_of_five_latents(sd: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"those of sd have 17 and 17; set train\.timestep_transform=false"):
        load_config(None, sd[:-1])
