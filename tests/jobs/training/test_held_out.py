"""The loss on held-out videos: of clips that are not trained on, alike on any number of ranks, unseen by training."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.config import RunConfig
from jobs.configured import configured_recipe, describe_part, open_configured_set, open_held_out
from jobs.training.checkpoint import list_committed
from jobs.training.held_out import QUANTILES, Evaluation, describe_held_out
from jobs.training.losses import null_caption
from jobs.training.metrics import read_metrics
from models.diffusion.rectified_flow import draw_timesteps, timestep_quantiles
from models.dit import load_dit
from pipeline.view import View
from tests.conftest import train_here
from tests.ranks import train_on

SHARE = 0.35  # of the ten videos


def watching(config: RunConfig, out: Path, **updates: Any) -> RunConfig:
    """Four steps, and the loss on what is held out after the second and the last."""
    asked = {"out": out, "steps": 4, "workers": 1, "held_out": SHARE, "eval_every": 2, **updates}
    return config.model_copy(update={"train": config.train.model_copy(update=asked)})


def measured(config: RunConfig) -> dict[int, dict[str, float]]:
    """What was measured, by step."""
    lines = read_metrics(config.train.out / "metrics.jsonl")
    told = {line["step"]: {name: line[name] for name in line if name.startswith("held_out/")} for line in lines}
    return {step: values for step, values in told.items() if values}


def trace(config: RunConfig) -> list[tuple[float, float]]:
    return [(line["loss"], line["grad_norm"]) for line in read_metrics(config.train.out / "metrics.jsonl")]


@pytest.fixture(scope="module")
def watched(alone: None, cached: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = watching(cached, tmp_path_factory.mktemp("watched"))
    train_here(config)
    return config


def test_clips_are_trained_on_or_held_out_by_their_videos(cached: RunConfig, tmp_path: Path) -> None:
    config = watching(cached, tmp_path)
    recipe = configured_recipe(config)
    everything, data = (open_configured_set(one, recipe) for one in (watching(config, tmp_path, held_out=0.0), config))
    held_out = open_held_out(config, data)
    assert held_out is not None and 0 < held_out.num_clips < everything.num_clips
    keys = [one.keys(np.arange(one.num_clips)) for one in (data, held_out)]
    assert sorted([*keys[0], *keys[1]]) == sorted(everything.keys(np.arange(everything.num_clips)))
    videos = [{key.rsplit("-", 1)[0] for key in some} for some in keys]
    assert not videos[0] & videos[1]
    assert f"{held_out.num_clips} of held-out videos" in describe_part(data.parts[0])
    assert f"{held_out.num_clips} clips of held-out videos" in describe_held_out(config, data)
    assert open_held_out(config, everything) is None


def test_it_is_measured_when_it_is_due_for_both_weights(watched: RunConfig) -> None:
    names = {
        *(f"held_out/{name}" for name in ("loss", "ema_loss")),
        *(f"held_out/{name}_t{place}" for name in ("loss", "ema_loss") for place in range(1, QUANTILES + 1)),
    }
    told = measured(watched)
    assert list(told) == [2, 4] and all(set(values) == names for values in told.values())
    for values in told.values():
        for name in ("held_out/loss", "held_out/ema_loss"):
            assert values[name] == pytest.approx(np.mean([values[f"{name}_t{place}"] for place in range(1, 5)]))
    assert told[2]["held_out/loss"] != told[4]["held_out/loss"] != told[4]["held_out/ema_loss"]


class Plain:
    """A model as the loss wants an engine, without DeepSpeed."""

    device = torch.device("cpu")

    def __init__(self, folder: Path) -> None:
        self.model = load_dit(folder)

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.model(*args, **kwargs)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        yield


def test_it_is_the_loss_of_the_weights_that_the_run_leaves(watched: RunConfig) -> None:
    last = measured(watched)[4]
    data = open_configured_set(watched, configured_recipe(watched))
    for folder, name in (("model", "held_out/loss"), ("ema", "held_out/ema_loss")):
        engine: Any = Plain(watched.train.out / folder)
        evaluation = Evaluation(watched, data, null_caption(watched, data, engine), None)
        again = evaluation.measure(engine, 4)
        assert again["held_out/loss"] == pytest.approx(last[name], rel=1e-5)
        assert again["held_out/loss_t3"] == pytest.approx(last[f"{name}_t3"], rel=1e-5)


def test_any_number_of_ranks_measures_the_same_and_training_does_not_notice(watched: RunConfig, tmp_path: Path) -> None:
    blind = watching(watched, tmp_path / "blind", eval_every=0)
    train_here(blind)
    assert trace(blind) == trace(watched) and not measured(blind)
    pairs = [
        [
            watching(watched, tmp_path / f"{zero}-{every}", zero=zero, eval_every=every, loader_threads=2, accumulate=2)
            for every in (2, 0)
        ]
        for zero in ("zero2", "zero3")
    ]
    train_on(2, *(config for pair in pairs for config in pair))
    for seeing, unseeing in pairs:
        assert trace(seeing) == trace(unseeing)
        for step, values in measured(watched).items():
            assert measured(seeing)[step] == pytest.approx(values, rel=1e-4)


def test_a_resumed_run_measures_what_the_uninterrupted_one_does(
    alone: None, watched: RunConfig, tmp_path: Path
) -> None:
    for steps in (3, 4):
        train_here(watching(watched, tmp_path, steps=steps))
    assert list_committed(tmp_path / "checkpoints")
    told, whole = measured(watching(watched, tmp_path)), measured(watched)
    assert told[4] == whole[4] and told[2] == whole[2] and list(told) == [2, 3, 4]


@pytest.mark.parametrize("updates", [{"held_out": 1e-9}, {"eval_every": 0}])
def test_nothing_is_measured_where_nothing_is_held_out(
    cached: RunConfig, tmp_path: Path, updates: dict[str, Any]
) -> None:
    config = watching(cached, tmp_path, **updates)
    data = open_configured_set(config, configured_recipe(config))
    engine: Any = None
    assert Evaluation(config, data, (torch.zeros(1, 1), None), None).measure(engine, 4) == {}
    assert f"train.{next(iter(updates))}=" in describe_held_out(config, data)


@pytest.mark.parametrize("method", ["logit-normal", "uniform", "discrete"])
def test_quantiles_part_the_drawn_timesteps_evenly(method: Any) -> None:
    drawn = draw_timesteps(torch.Generator().manual_seed(0), 100_000, method=method)
    below = [float((drawn < timestep).float().mean()) for timestep in timestep_quantiles(4, method).tolist()]
    assert below == pytest.approx([0.125, 0.375, 0.625, 0.875], abs=0.01)


def test_a_view_of_either_side_survives_being_sent(cached: RunConfig, tmp_path: Path) -> None:
    config = watching(cached, tmp_path)
    view = open_configured_set(config, configured_recipe(config)).parts[0].view
    make, (folder,) = view.__reduce__()
    sent: View = make(folder)
    assert sent.num_held_out == view.num_held_out > 0 and np.array_equal(sent.rows, view.rows)
