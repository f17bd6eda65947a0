"""Every family of VAEs goes the whole way, with small random weights: encode, train, sample."""

import json
from pathlib import Path

import numpy as np
import pytest
from webdataset import WebDataset  # pyright: ignore[reportAttributeAccessIssue]

from jobs.configured import configured_recipe
from jobs.encode import encode
from jobs.mp4 import read_mp4
from jobs.sample import sample
from jobs.shapes import make_shapes
from tests.checkpoints import FAMILIES, publish
from tests.conftest import cache_config, digests, fill_cache, train_here
from tests.shards import local

# What differs from the defaults of the tests; a family that is not here takes them as they are.
KNOBS = {
    "sd": ["recipe.posterior=moments", "train.timestep_transform=false"],
    "open-sora-plan": ["recipe.posterior=mean"],
    "AutoencoderKLLTXVideo": ["train.timestep_transform=false"],
    "AutoencoderKLMochi": ["recipe.chunk_frames=19", "sample.num_frames=19", "train.timestep_transform=false"],
}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of three captioned clips."""
    folder = tmp_path_factory.mktemp("few")
    make_shapes(folder, num_clips=3)
    return folder / "captions.csv"


@pytest.mark.slow  # what differs between them is tested by itself, and tests/test_doors.py encodes with one of them
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_the_whole_way(local_ray: None, alone: None, few: Path, tmp_path: Path, family: str) -> None:
    knobs = [f"{name}={value}" for name, value in publish(family, tmp_path / "vae").items()]
    short = ["train.steps=2", "train.workers=1", "train.batch=2", "sample.num_prompts=1", "sample.steps=2"]
    gate = "encode.min_psnr=0"  # random weights bring nothing back
    config = cache_config(few, tmp_path, *knobs, *short, gate, *KNOBS.get(family, []))
    fill_cache(config)

    spec, tars = configured_recipe(config).latent, sorted(local(config.cache.latents).rglob("*.tar"))
    for found in WebDataset([str(tar) for tar in tars], shardshuffle=False).decode():
        _, *shape = spec.latent_shape(found["json"]["num_frames"], 64, 64)
        latents = found["latent.npy"]
        assert latents.shape == (spec.stored_channels, *shape) and np.isfinite(latents).all() and latents.std() > 0

    before = digests(config.cache.root)
    tars[0].unlink()
    encode(config)
    assert digests(config.cache.root) == before  # the noise of the posterior too is a function of recipe, clip, chunk

    train_here(config)
    assert json.loads((config.train.out / "model" / "trained.json").read_text())["steps"] == 2
    sample(config)
    (video,) = (config.train.out / "samples").glob("*.mp4")
    assert read_mp4(video).shape == (config.sample.num_frames, 64, 64, 3)
