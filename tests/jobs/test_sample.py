"""Sampling from a trained model: sizes, given frames, and what guidance steers away from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.config import RunConfig
from jobs.configured import configured_recipe, open_configured_set
from jobs.generate import encode_negative, load_sampling_encoder
from jobs.mp4 import read_mp4
from jobs.sample import sample
from pipeline.errors import Refused


def asking(config: RunConfig, out: Path, **settings: object) -> RunConfig:
    """That run below `out`, with other knobs of [sample]."""
    return config.model_copy(
        update={
            "train": config.train.model_copy(update={"out": out}),
            "sample": config.sample.model_copy(update=settings),
        }
    )


def test_the_trained_model_samples_videos_of_the_asked_size(trained: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(trained.train.out, tmp_path / "run")
    config = asking(trained, tmp_path / "run", prompts=("a red circle", ""), num_frames=34, steps=2)
    sample(config)
    assert [read_mp4(tmp_path / "run" / "samples" / f"00{n}.mp4").shape for n in range(2)] == [(34, 64, 64, 3)] * 2
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "samples").iterdir()}
    sample(config)
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize("num_frames", [16, 18])
def test_sampling_refuses_frames_that_are_not_whole_chunks(trained: RunConfig, num_frames: int) -> None:
    with pytest.raises(Refused, match=rf"sample\.num_frames: {num_frames} .*\(17 = 1\+4\+4\+4\+4 .* use 17"):
        sample(asking(trained, trained.train.out, num_frames=num_frames))


def sampled(config: RunConfig, out: Path, null_caption: str = "cached", **settings: object) -> np.ndarray:
    """The first video of two prompts, (T, H, W, 3), by the model that was trained with that null caption."""
    shutil.copytree(config.train.out / "ema", out / "ema")
    facts = json.loads((out / "ema" / "trained.json").read_text())
    (out / "ema" / "trained.json").write_text(json.dumps({**facts, "null_caption": null_caption}))
    asked = {"prompts": ("a red circle moving left", "a blue square"), "steps": 3, "guidance": 2.0, **settings}
    sample(asking(config, out, **asked))
    return read_mp4(out / "samples" / "000.mp4")


def test_a_given_first_frame_is_kept(trained: RunConfig, tmp_path: Path) -> None:
    image = np.zeros((80, 100, 3), np.uint8)
    image[:, 50:] = (250, 120, 20)  # right half; the crop to a square keeps the middle
    Image.fromarray(image).save(tmp_path / "given.png")
    frames = sampled(trained, tmp_path / "with", first_frame=tmp_path / "given.png").astype(float)
    wanted = np.zeros((64, 64, 3))
    wanted[:, 32:] = (250, 120, 20)
    assert np.abs(frames[0] - wanted).mean() < 12  # what the VAE and the mp4 lose
    assert np.abs(sampled(trained, tmp_path / "without")[0] - wanted).mean() > 40


def test_guidance_can_be_away_from_something_else(trained: RunConfig, tmp_path: Path) -> None:
    plain = sampled(trained, tmp_path / "plain").astype(int)
    other = sampled(trained, tmp_path / "other", negative_prompt="a green triangle")
    assert np.abs(other - plain).mean() > 0.5
    own = sampled(trained, tmp_path / "own", "model").astype(int)
    whole = sampled(trained, tmp_path / "whole", "model", full_null=True)
    assert np.abs(own - plain).mean() > 0.5 and np.abs(whole - own).mean() > 0.5


def test_guidance_is_away_from_the_null_caption_of_training(trained: RunConfig) -> None:
    facts = json.loads((trained.train.out / "ema" / "trained.json").read_text())
    encoder = load_sampling_encoder(trained, facts)
    null = open_configured_set(trained, configured_recipe(trained)).null_text()
    negative = encode_negative(encoder, trained.sample, facts)
    assert negative is not None and torch.equal(negative.tokens[negative.mask], torch.from_numpy(null).float())
    del facts["null_caption"]  # as before there was a choice
    assert encode_negative(encoder, trained.sample, facts) is None


def test_a_picture_that_is_none_is_refused(trained: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(Refused, match=r"text\.png: cannot be read as an image.*give a png or jpeg"):
        sampled(trained, tmp_path / "run", first_frame=tmp_path / "text.png")
