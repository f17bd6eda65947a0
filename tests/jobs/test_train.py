"""Training through Ray Train and DeepSpeed ZeRO-2 on two real processes."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from jobs.config import RunConfig
from jobs.configured import configured_lengths, configured_recipe, open_configured_set
from jobs.events import read_events
from jobs.mp4 import read_mp4
from jobs.run import run
from jobs.sample import cached_captions, sample
from jobs.shapes import make_shapes
from jobs.train import train
from jobs.training.metrics import read_metrics
from models.dit import load_dit
from pipeline.cache import tar_path
from pipeline.errors import Refused
from pipeline.lengths import Entry
from pipeline.recipe import read_recipe
from pipeline.schedule import Schedule
from pipeline.tables import read_metadata
from pipeline.training_set import open_training_set
from tests.conftest import cache_config, fill_cache, train_here
from tests.shards import local


def changed(config: RunConfig, **updates: object) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=updates)})


def losses(config: RunConfig) -> list[float]:
    return [line["loss"] for line in read_metrics(config.train.out / "metrics.jsonl")]


def test_training_lowers_the_loss_and_logs_every_step(trained: RunConfig) -> None:
    lines = read_metrics(trained.train.out / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert sum(losses(trained)[-3:]) < sum(losses(trained)[:3])
    assert list((trained.train.out / "tensorboard").glob("events.*"))


@pytest.mark.slow
def test_a_resumed_run_repeats_the_uninterrupted_one(trained: RunConfig, tmp_path: Path) -> None:
    resumed = changed(trained, out=tmp_path / "run")
    shutil.copytree(trained.train.out, resumed.train.out)
    for lost in ("model", "ema", "checkpoints/step-00000008"):  # as if it had died before
        shutil.rmtree(resumed.train.out / lost)
    train(resumed)
    assert losses(resumed) == losses(trained)
    ours, theirs = (load_file(config.train.out / "model" / "model.safetensors") for config in (resumed, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_bf16_zero_1_and_reading_ahead_give_about_the_same_losses(trained: RunConfig, tmp_path: Path) -> None:
    config = changed(trained, out=tmp_path, steps=3, precision="bf16", zero="zero1", loader_threads=2)
    train(config)
    assert losses(config) == pytest.approx(losses(trained)[:3], rel=0.02)


def test_checkpoints_are_committed_with_the_shards_of_every_rank(trained: RunConfig) -> None:
    folder = trained.train.out / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000004", "step-00000008"]
    mark = json.loads((folder / "step-00000008" / "COMMITTED.json").read_text())
    assert (mark["step"], mark["ranks"]) == (8, 2)
    names = {file["name"] for file in mark["files"]} | {"COMMITTED.json"}
    assert names == {path.name for path in (folder / "step-00000008").iterdir()}


def test_a_finished_run_is_left_alone(trained: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained.train.out / "metrics.jsonl").read_bytes()
    train(trained)
    assert "trained for 8 steps already" in capsys.readouterr().out
    assert (trained.train.out / "metrics.jsonl").read_bytes() == before


def test_training_needs_text_for_every_clip(cached: RunConfig, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    shutil.copytree(cached.data.cache, root)
    shutil.rmtree(root / "text")
    data = cached.data.model_copy(update={"cache": str(root)})
    with pytest.raises(Refused, match="run `text` first"):
        train(cached.model_copy(update={"data": data}))


def test_the_saved_model_loads_without_deepspeed(trained: RunConfig) -> None:
    model = load_dit(trained.train.out / "model")
    assert model.config.in_channels == 16 and model.config.caption_channels == 256


def test_a_cache_under_another_normalization_is_converted_where_the_run_says_so(
    alone: None, cached: RunConfig, tmp_path: Path
) -> None:
    recipe = cached.recipe.model_copy(update={"scaling_factor": 2.0})
    other = changed(cached.model_copy(update={"recipe": recipe}), out=tmp_path, steps=1, workers=1)
    with pytest.raises(
        Refused, match=r"recipe\.latent\.scaling_factor: found 1\.0, wanted 2\.0.*train\.renormalize=true"
    ):
        train(other)
    train_here(changed(other, renormalize=True))
    trained = json.loads((tmp_path / "model" / "trained.json").read_text())
    assert trained["recipe"]["latent"]["scaling_factor"] == 2.0  # what the model's samples are to be decoded with
    assert losses(other)[0] > 0
    captions = [
        cached_captions(one.cache, "bytes", recipe, 3)
        for one, recipe in ((other, configured_recipe(other)), (cached, read_recipe(cached.cache)))
    ]
    assert captions[0] == captions[1]


@pytest.fixture(scope="module")
def mixed(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A cache of two images and four clips whose tails are padded."""
    root = tmp_path_factory.mktemp("mixed")
    make_shapes(root / "videos", num_clips=4)
    (root / "videos" / "captions.csv").unlink()
    for number in range(2):
        Image.new("RGB", (80, 70), (90 * number, 200, 40)).save(root / "videos" / f"{number}.png")
    config = cache_config(root / "videos", root, "recipe.tail=pad", "train.workers=1", "train.steps=4")
    fill_cache(config)
    return config


def test_images_and_padded_clips_are_trained_and_sampled(alone: None, mixed: RunConfig) -> None:
    rows = open_training_set(mixed.cache, read_recipe(mixed.cache), "bytes").parts[0].view.rows
    images, padded = rows[rows["num_frames"] == 1], rows[rows["valid_frames"] < rows["num_frames"]]
    assert len(images) == 2 and len(padded) and len(images) + len(padded) < len(rows)
    assert (images["fps"] == 120).all()
    wanted = "num_frames == 1 or valid_frames < num_frames"
    config = changed(mixed, masks={"random": 0.5, "image_head": 0.5}, filter=wanted)
    train_here(config)
    assert len(losses(config)) == 4 and all(0 < loss < 100 for loss in losses(config))
    settings = config.sample.model_copy(update={"steps": 1, "num_prompts": 1})
    sample(config.model_copy(update={"sample": settings}))
    assert read_mp4(config.train.out / "samples" / "000.mp4").shape == (17, 64, 64, 3)
    with pytest.raises(Refused, match="none is left to train on"):
        train(changed(config, filter="fps > 1000"))


@dataclass(frozen=True)
class Blend:
    """A run on images and clips of two caches by a table of lengths, in which one clip is damaged."""

    config: RunConfig
    damaged_key: str
    damaged_at: list[int]  # the steps that show it, counted from 1
    second_epoch: int  # the steps before it


@pytest.fixture(scope="module")
def blend(mixed: RunConfig, cached: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Blend:
    root = tmp_path_factory.mktemp("blend")
    shutil.copytree(mixed.data.cache, root / "cache")
    table = {"*": {1: Entry(1.0, 1.0, 2), 17: Entry(1.0, 1.0, 3), 34: Entry(1.0, 0.5, 2)}}
    config = changed(
        mixed.model_copy(update={"data": mixed.data.model_copy(update={"cache": str(root / "cache")})}),
        out=root / "run",
        steps=20,
        buckets=table,
        mix={cached.data.cache: 0.5},
    )
    recipe = configured_recipe(config)
    data = open_configured_set(config, recipe)
    schedule = Schedule(data.schedule_rows(), configured_lengths(config, recipe.latent), config.train.seed)
    view, clip = data.parts[0].view, 1
    tar = tar_path(local(config.cache.latents), view.shards[view.rows["shard"][clip]])
    flip_byte(local(tar), int(view.rows["latent_offset"][clip]) + 200)
    batches = [schedule.batch(*schedule.locate(step)) for step in range(config.train.steps)]
    shown = [number for number, batch in enumerate(batches, 1) if clip in batch.rows[batch.weights > 0]]
    assert len(shown) > 2 and len({len(batch.rows) for batch in batches}) > 1
    return Blend(config, data.keys(np.array([clip]))[0], shown, schedule.num_steps(0))


def flip_byte(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        (found,) = file.read(1)
        file.seek(offset)
        file.write(bytes([found ^ 0xFF]))


@pytest.fixture(scope="module")
def blended(alone: None, blend: Blend) -> RunConfig:
    """That run, without an interruption."""
    train_here(blend.config)
    return blend.config


def test_lengths_batches_and_mixtures_are_trained_and_damage_is_counted(blend: Blend, blended: RunConfig) -> None:
    assert len(losses(blended)) == 20 and all(0 < loss < 100 for loss in losses(blended))
    found = [event for event in read_events(blended.train.out / "events.jsonl") if event["event"] == "damaged"]
    assert [(event["step"], event["key"]) for event in found] == [
        (step, blend.damaged_key) for step in blend.damaged_at
    ]
    assert all("verify --repair" in event["message"] for event in found)
    counts = [line["damaged"] for line in read_metrics(blended.train.out / "metrics.jsonl")]
    assert counts == [sum(step <= at for step in blend.damaged_at) for at in range(1, 21)]


def test_a_run_resumed_within_an_epoch_repeats_the_uninterrupted_one(
    blend: Blend, blended: RunConfig, tmp_path: Path
) -> None:
    within = blend.damaged_at[1]
    assert blend.second_epoch < within < blended.train.steps
    for steps in (within, blended.train.steps):
        train_here(changed(blended, out=tmp_path, steps=steps))
    kept = ("step", "loss", "grad_norm", "damaged")
    resumed, whole = (read_metrics(out / "metrics.jsonl") for out in (tmp_path, blended.train.out))
    assert [[line[name] for name in kept] for line in resumed] == [[line[name] for name in kept] for line in whole]


def test_two_ranks_train_as_one_and_stop_together_where_one_finds_too_much_damage(
    blend: Blend, blended: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = changed(blended, out=tmp_path, workers=2, max_damaged=1)
    with pytest.raises(Refused, match=r"2 damaged samples, train\.max_damaged allows 1; run `verify --repair`"):
        train(config)
    assert len(losses(config)) == blend.damaged_at[1]
    assert losses(config) == pytest.approx(losses(blended)[: blend.damaged_at[1]], rel=1e-4)
    assert not (tmp_path / "model").exists()
    assert blend.damaged_key in (tmp_path / "report.html").read_text()
    told = capsys.readouterr().out
    assert all(f"clips of {place}" in told for place in (config.cache.root, *config.train.mix))


def test_a_removed_video_is_trained_on_no_more_and_breaks_nothing(mixed: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(mixed.data.cache, tmp_path / "cache")
    shutil.copytree(mixed.data.source, tmp_path / "videos")
    (tmp_path / "videos" / "0.png").unlink()
    places = {"cache": str(tmp_path / "cache"), "source": str(tmp_path / "videos")}
    config = mixed.model_copy(update={"data": mixed.data.model_copy(update=places)})
    before = open_training_set(config.cache, read_recipe(config.cache), "bytes")
    fill_cache(config)
    after = open_training_set(config.cache, read_recipe(config.cache), "bytes")
    assert (after.num_clips, after.parts[0].view.num_removed) == (before.num_clips - 1, 1)
    assert read_metadata(config.cache.index) == read_metadata(mixed.cache.index)  # the shards are as they were


def started_from(config: RunConfig, path: Path, out: Path) -> dict[str, torch.Tensor]:
    """The weights after a step too small to see, from those at `path`."""
    model = config.model.model_copy(update={"init": str(path)})
    train_here(changed(config.model_copy(update={"model": model}), out=out, steps=1, lr=1e-20))
    return load_file(out / "model" / "model.safetensors")


def test_training_starts_from_the_weights_of_another_run(alone: None, trained: RunConfig, tmp_path: Path) -> None:
    before = load_file(trained.train.out / "model" / "model.safetensors")
    after = started_from(trained, trained.train.out / "model", tmp_path)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.slow
def test_training_starts_from_an_image_model(alone: None, trained: RunConfig, tmp_path: Path) -> None:
    ours = load_file(trained.train.out / "model" / "model.safetensors")
    theirs = {
        name.replace("spatial_blocks.", "blocks."): tensor[:, :, 0] if name == "x_embedder.proj.weight" else tensor
        for name, tensor in ours.items()
        if not name.startswith(("temporal_blocks.", "fps_embedder.", "rope.")) and "_norm." not in name
    }
    torch.save({"state_dict": {name: tensor.clone() for name, tensor in theirs.items()}}, tmp_path / "pixart.pth")
    after = started_from(trained, tmp_path / "pixart.pth", tmp_path / "run")
    assert torch.equal(after["spatial_blocks.0.attn.qkv.weight"], ours["spatial_blocks.0.attn.qkv.weight"])
    assert after["temporal_blocks.0.attn.proj.weight"].abs().max() < 1e-15  # the identity, and one such step
    assert "kept fresh" in (tmp_path / "run" / "init.txt").read_text()


@pytest.mark.slow
def test_given_frames_and_other_timesteps_are_trained_too(alone: None, trained: RunConfig, tmp_path: Path) -> None:
    masks = {"image_head": 0.5, "random": 0.5}
    config = changed(trained, out=tmp_path, steps=2, masks=masks, timesteps="uniform")
    train_here(config)
    assert len(losses(config)) == 2 and losses(config) != losses(trained)[:2]


@pytest.mark.parametrize(
    ("section", "updates", "message"),
    [
        ("text", {"encoder": "t5"}, "text: t5 has weights"),
        ("model", {"init": "/nowhere"}, "model.init: /nowhere: no such"),
    ],
)
def test_a_run_looks_for_what_it_will_need_before_it_begins(
    cached: RunConfig, tmp_path: Path, section: str, updates: dict[str, str], message: str
) -> None:
    changes = {
        section: getattr(cached, section).model_copy(update=updates),
        "data": cached.data.model_copy(update={"cache": str(tmp_path / "cache")}),
    }
    with pytest.raises(Refused, match=message):
        run(cached.model_copy(update=changes))
    assert not (tmp_path / "cache").exists()
