"""Videos while a model trains: what they are of, and that training does not notice."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.config import ConfigError, RunConfig
from jobs.configured import configured_recipe, open_configured_set
from jobs.events import read_events
from jobs.export import export_checkpoint
from jobs.mp4 import read_mp4
from jobs.sample import sample
from jobs.training.checkpoint import list_committed
from jobs.training.initial_model import describe_run
from jobs.training.metrics import read_metrics
from jobs.training.samples import encode_asked, read_asked
from models.weights import read_weights
from pipeline.errors import Refused
from tests.conftest import train_here
from tests.ranks import train_on

PROMPTS = ("a red circle moving left", "a blue square", "")
ASKED = {"prompts": PROMPTS, "steps": 3, "guidance": 2.0, "batch": 1}


def sampling(config: RunConfig, out: Path, every: int = 2, asked: dict[str, Any] = ASKED, **training: Any) -> RunConfig:
    """Four steps of that run below `out`, with samples; what `train` does before the ranks start is done."""
    updates = {"out": out, "steps": 4, "workers": 1, "sample_every": every, "checkpoint_every": 2, **training}
    config = config.model_copy(
        update={
            "train": config.train.model_copy(update=updates),
            "sample": config.sample.model_copy(update=asked),
        }
    )
    prepare(config)
    return config


def prepare(config: RunConfig) -> None:
    data = open_configured_set(config, configured_recipe(config))
    encode_asked(config, data.parts[0].cache, describe_run(config, data))


def videos(config: RunConfig, step: int) -> list[np.ndarray]:
    return [read_mp4(path) for path in sorted((config.train.out / "samples" / f"step-{step:08d}").glob("*.mp4"))]


def trace(config: RunConfig) -> list[tuple[float, float]]:
    return [(line["loss"], line["grad_norm"]) for line in read_metrics(config.train.out / "metrics.jsonl")]


def assert_alike(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> None:
    """But for what the last digits of other batches become in an mp4; other weights are further apart than 1."""
    assert [one.shape for one in found] == [one.shape for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert np.abs(one.astype(int) - other).mean() < 0.3


def verb_samples(config: RunConfig, step: int, out: Path) -> list[np.ndarray]:
    """What `sample` makes of the checkpoint of that step."""
    checkpoint = config.train.out / "checkpoints" / f"step-{step:08d}"
    assert checkpoint in list_committed(config.train.out / "checkpoints")
    export_checkpoint(checkpoint, out)
    settings = {"train": config.train.model_copy(update={"out": out})}
    sample(config.model_copy(update={**settings, "sample": config.sample.model_copy(update={"batch": 16})}))
    return [read_mp4(out / "samples" / f"{number:03d}.mp4") for number in range(len(config.sample.prompts))]


def test_training_is_the_same_to_the_last_bit_with_samples_and_without(
    alone: None, cached: RunConfig, tmp_path: Path
) -> None:
    with_samples, without = (sampling(cached, tmp_path / str(every), every) for every in (2, 0))
    for config in (with_samples, without):
        train_here(config)
    assert trace(with_samples) == trace(without)
    for name in ("model", "ema"):
        found, wanted = (read_weights(one.train.out / name / "model.safetensors") for one in (with_samples, without))
        assert all(torch.equal(found[weight], wanted[weight]) for weight in wanted)
    assert [len(videos(with_samples, step)) for step in (2, 4)] == [3, 3] and not videos(without, 2)
    told = [event for event in read_events(with_samples.train.out / "events.jsonl") if event["event"] == "samples"]
    assert [event["step"] for event in told] == [2, 4]


def test_samples_of_a_step_are_those_of_its_averaged_weights(alone: None, cached: RunConfig, tmp_path: Path) -> None:
    config = sampling(cached, tmp_path / "run")
    train_here(config)
    for step in (2, 4):
        assert_alike(videos(config, step), verb_samples(config, step, tmp_path / str(step)))
    first, last = videos(config, 2), videos(config, 4)
    assert all(np.abs(one.astype(int) - other).mean() > 1 for one, other in zip(first, last))


def test_ranks_share_the_prompts_and_sample_as_one_does(cached: RunConfig, alone: None, tmp_path: Path) -> None:
    """Three prompts on two ranks, of which every forward pass needs both."""
    together, without = (
        sampling(cached, tmp_path / f"two {every}", every, zero="zero3", workers=2) for every in (2, 0)
    )
    single = sampling(cached, tmp_path / "one")
    train_on(2, together, without)
    train_here(single)
    assert trace(together) == trace(without) == [pytest.approx(pair, rel=1e-4) for pair in trace(single)]
    for step in (2, 4):
        assert_alike(videos(together, step), videos(single, step))


def test_prompts_are_encoded_once_and_again_when_others_are_asked_for(cached: RunConfig, tmp_path: Path) -> None:
    config = sampling(cached, tmp_path)
    path = tmp_path / "samples" / "asked.safetensors"
    before = path.stat().st_mtime_ns
    assert read_asked(tmp_path)["prompts"] == list(PROMPTS)
    prepare(config)
    assert path.stat().st_mtime_ns == before
    sampling(cached, tmp_path, asked={**ASKED, "prompts": (), "num_prompts": 2})
    assert len(read_asked(tmp_path)["prompts"]) == 2 and path.stat().st_mtime_ns != before


IDDPM = {"objective": "iddpm", "timesteps": "discrete", "timestep_transform": False}


@pytest.mark.parametrize("training", [{}, IDDPM], ids=["flow", "iddpm"])
def test_given_images_and_a_negative_prompt_are_sampled_too(
    alone: None, cached: RunConfig, tmp_path: Path, training: dict[str, Any]
) -> None:
    Image.new("RGB", (64, 64), (250, 120, 20)).save(tmp_path / "given.png")
    asked = {**ASKED, "first_frame": tmp_path / "given.png", "negative_prompt": "a green triangle"}
    config = sampling(cached, tmp_path / "run", asked=asked, **training)
    train_here(config)
    for one in videos(config, 4):
        assert np.abs(one[0].astype(int) - (250, 120, 20)).mean() < 12  # what the VAE and the mp4 lose
    assert_alike(videos(config, 4), verb_samples(config, 4, tmp_path / "verb"))


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"num_frames": 18}, r"sample\.num_frames: 18 is not a whole"), ({"width": 63}, "sample: ")],
)
def test_what_cannot_be_sampled_is_refused_before_training(
    cached: RunConfig, tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(Refused, match=message):
        sampling(cached, tmp_path, asked={**ASKED, **asked})


def test_a_model_trained_by_iddpm_samples_by_it(alone: None, cached: RunConfig, tmp_path: Path) -> None:
    config = sampling(cached, tmp_path / "run", **IDDPM)
    train_here(config)
    losses = [loss for loss, _ in trace(config)]
    assert 0.5 < losses[0] < 3 and losses[-1] < losses[0]  # of the noise, which the first outputs do not know
    assert_alike(videos(config, 4), verb_samples(config, 4, tmp_path / "verb"))
    with pytest.raises(ConfigError, match=r"sample\.steps: 1; the sampler of iddpm takes 2 to 1000"):
        sampling(cached, tmp_path / "short", asked={**ASKED, "steps": 1}, **IDDPM)
