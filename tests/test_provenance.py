"""What decides the values of latents is in the recipe: where one thing is another, `encode` and `train` both stop."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from jobs.config import RunConfig
from jobs.encode import encode
from jobs.plan import plan
from jobs.train import train
from pipeline.errors import Refused
from pipeline.recipe import read_recipe
from tests.checkpoints import publish
from tests.conftest import cache_config, digests

ASKED = {  # what a run may ask for -> the field that differs
    "recipe.fps=12": "recipe.fps: found 8.0, wanted 12.0",
    "recipe.tail=pad": "recipe.tail: found 'drop', wanted 'pad'",
    "recipe.posterior=sample": "recipe.latent.posterior: found 'mean', wanted 'sample'",
    f"recipe.shift={[0.5] * 16}": "recipe.latent.shift: found [",
    "recipe.vae=dct:8": "recipe.latent.channels: found 16, wanted 8",
    "recipe.buckets=[[64, 96]]": "recipe.buckets: found [[64, 64]], wanted [[64, 96]]",
}
CONSTANT = {  # what this version always does, and another one did otherwise
    "pixels": "RGB in [0, 1]",
    "resize": "cover, bilinear, centre crop",
    "dtype": "bfloat16",
    "frames": "every third frame",
}


def refused_by_both(config: RunConfig, message: str) -> None:
    """`encode` and `train` name the field, and nothing is written."""
    before = digests(config.cache.root)
    for verb in (encode, train):
        with pytest.raises(Refused, match=f"was made by another recipe: .*{re.escape(message)}"):
            verb(config)
    assert digests(config.cache.root) == before
    assert not config.train.out.exists()


@pytest.mark.parametrize("word", ASKED)
def test_another_request_is_refused(cached: RunConfig, word: str) -> None:
    config = cache_config(Path(cached.data.source), Path(cached.data.cache).parent, word)
    refused_by_both(config, ASKED[word])


@pytest.mark.parametrize("field", CONSTANT)
def test_another_versions_cache_is_refused(cached: RunConfig, tmp_path: Path, field: str) -> None:
    shutil.copytree(cached.data.cache, tmp_path / "cache")
    config = cache_config(Path(cached.data.source), tmp_path)
    other = replace(read_recipe(config.cache), **{field: CONSTANT[field]})
    document = {"fingerprint": other.fingerprint(), "recipe": other.to_dict()}
    (tmp_path / "cache" / "recipe.json").write_text(json.dumps(document))
    now = getattr(read_recipe(cached.cache), field)
    refused_by_both(config, f"recipe.{field}: found {CONSTANT[field]!r}, wanted {now!r}")


def test_the_dtype_of_a_vae_and_each_of_its_weights_count(cached: RunConfig, tmp_path: Path) -> None:
    knobs = publish("sd", tmp_path / "vae")
    shutil.copytree(Path(cached.data.cache) / "manifest", tmp_path / "cache" / "manifest")
    words = [f"{name}={value}" for name, value in knobs.items()]
    words += ["encode.forecast=false", "train.timestep_transform=false"]
    config = cache_config(Path(cached.data.source), tmp_path, *words)
    assert plan(config) == 0
    half = cache_config(Path(cached.data.source), tmp_path, *words, "recipe.vae_dtype=bfloat16")
    refused_by_both(half, "recipe.latent.dtype: found 'float32', wanted 'bfloat16'")
    [path] = (tmp_path / "vae").glob("*.safetensors")
    weights = load_file(path)
    weights["encoder.conv_in.bias"][0] += 1e-3
    save_file(weights, path)
    refused_by_both(config, "recipe.latent.weights_sha256: found ")


def test_the_same_request_is_taken(cached: RunConfig) -> None:
    before = digests(cached.cache.root)
    assert encode(cache_config(Path(cached.data.source), Path(cached.data.cache).parent)) == 0
    assert digests(cached.cache.root) == before
