"""Training through Ray Train and DeepSpeed ZeRO-2 on two real processes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from jobs.config import RunConfig
from jobs.metrics import read_metrics
from jobs.mp4 import read_mp4
from jobs.run import run
from jobs.sample import sample
from jobs.train import train
from models.dit import load_dit
from pipeline.errors import Refused


def changed(config: RunConfig, **updates: object) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=updates)})


def losses(config: RunConfig) -> list[float]:
    return [line["loss"] for line in read_metrics(config.train.out / "metrics.jsonl")]


def test_training_lowers_the_loss_and_logs_every_step(trained: RunConfig) -> None:
    lines = read_metrics(trained.train.out / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert sum(losses(trained)[-3:]) < sum(losses(trained)[:3])
    assert list((trained.train.out / "tensorboard").glob("events.*"))


def test_a_resumed_run_repeats_the_uninterrupted_one(trained: RunConfig, tmp_path: Path) -> None:
    interrupted = changed(trained, out=tmp_path, steps=4)
    train(interrupted)
    resumed = changed(interrupted, steps=8)
    train(resumed)
    assert losses(resumed) == losses(trained)
    ours, theirs = (load_file(config.train.out / "model" / "model.safetensors") for config in (resumed, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_bf16_zero_1_and_reading_ahead_give_about_the_same_losses(trained: RunConfig, tmp_path: Path) -> None:
    config = changed(trained, out=tmp_path, steps=3, precision="bf16", zero_stage=1, loader_workers=1)
    train(config)
    assert losses(config) == pytest.approx(losses(trained)[:3], rel=0.02)
    assert load_file(tmp_path / "model" / "model.safetensors")["x_embedder.proj.weight"].dtype == torch.bfloat16


def test_checkpoints_are_committed_with_the_shards_of_every_rank(trained: RunConfig) -> None:
    folder = trained.train.out / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000004", "step-00000008"]
    mark = json.loads((folder / "step-00000008" / "COMMITTED.json").read_text())
    assert (mark["step"], mark["ranks"]) == (8, 2)
    assert all((folder / "step-00000008" / name).stat().st_size == size for name, size in mark["files"].items())
    assert not (folder / "step-00000008" / "latest").exists()


def test_a_finished_run_is_left_alone(trained: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained.train.out / "metrics.jsonl").read_bytes()
    train(trained)
    assert "trained for 8 steps already" in capsys.readouterr().out
    assert (trained.train.out / "metrics.jsonl").read_bytes() == before


def test_a_run_cannot_go_on_as_another_one(trained: RunConfig) -> None:
    with pytest.raises(Refused, match=r"train\.batch was 4, now 8; change it back"):
        train(changed(trained, batch=8, steps=9))


def test_another_number_of_workers_cannot_read_the_checkpoint(trained: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(trained.train.out, tmp_path / "run")
    with pytest.raises(Refused, match="written by 2 workers, the run has 1"):
        train(changed(trained, out=tmp_path / "run", steps=9, workers=1, max_failures=0))


def test_training_needs_text_for_every_clip(cached: RunConfig, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    shutil.copytree(cached.cache.root, root)
    shutil.rmtree(root / "text")
    data = cached.data.model_copy(update={"cache": root})
    with pytest.raises(Refused, match="run `text` first"):
        train(cached.model_copy(update={"data": data}))


def test_the_trained_model_samples_videos_of_the_asked_size(trained: RunConfig, tmp_path: Path) -> None:
    shutil.copytree(trained.train.out, tmp_path / "run")
    settings = trained.sample.model_copy(update={"prompts": ("a red circle", ""), "num_frames": 34, "steps": 2})
    config = changed(trained, out=tmp_path / "run").model_copy(update={"sample": settings})
    sample(config)
    assert [read_mp4(tmp_path / "run" / "samples" / f"00{n}.mp4").shape for n in range(2)] == [(34, 64, 64, 3)] * 2
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "samples").iterdir()}
    sample(config)
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize("num_frames", [16, 18])
def test_sampling_refuses_frames_that_are_not_whole_chunks(trained: RunConfig, num_frames: int) -> None:
    settings = trained.sample.model_copy(update={"num_frames": num_frames})
    with pytest.raises(Refused, match=rf"sample\.num_frames: {num_frames} .*\(17 = 1\+4\+4\+4\+4 .* use 17"):
        sample(trained.model_copy(update={"sample": settings}))


def test_the_saved_model_loads_without_deepspeed(trained: RunConfig) -> None:
    model = load_dit(trained.train.out / "model")
    assert model.config.in_channels == 16 and model.config.caption_channels == 256


def test_a_cache_under_another_normalization_is_converted_where_the_run_says_so(
    cached: RunConfig, tmp_path: Path
) -> None:
    recipe = cached.recipe.model_copy(update={"scaling_factor": 2.0})
    other = changed(cached.model_copy(update={"recipe": recipe}), out=tmp_path, steps=1, workers=1)
    with pytest.raises(
        Refused, match=r"recipe\.latent\.scaling_factor: found 1\.0, wanted 2\.0.*train\.renormalize=true"
    ):
        train(other)
    train(changed(other, renormalize=True))
    trained = json.loads((tmp_path / "model" / "trained.json").read_text())
    assert trained["recipe"]["latent"]["scaling_factor"] == 2.0  # what the model's samples are to be decoded with
    assert losses(other)[0] > 0


def started_from(config: RunConfig, path: Path, out: Path) -> dict[str, torch.Tensor]:
    """The weights after a step too small to see, from those at `path`."""
    model = config.model.model_copy(update={"init": str(path)})
    train(changed(config.model_copy(update={"model": model}), out=out, steps=1, workers=1, lr=1e-20))
    return load_file(out / "model" / "model.safetensors")


def test_training_starts_from_the_weights_of_another_run(trained: RunConfig, tmp_path: Path) -> None:
    before = load_file(trained.train.out / "model" / "model.safetensors")
    after = started_from(trained, trained.train.out / "model", tmp_path)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_training_starts_from_an_image_model(trained: RunConfig, tmp_path: Path) -> None:
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


def sampled(config: RunConfig, out: Path, **settings: object) -> np.ndarray:
    """The first video that the trained model makes of two prompts, (T, H, W, 3)."""
    shutil.copytree(config.train.out / "model", out / "model")
    asked = {"prompts": ("a red circle moving left", "a blue square"), "steps": 3, "guidance": 2.0, **settings}
    sample(changed(config.model_copy(update={"sample": config.sample.model_copy(update=asked)}), out=out))
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
    for number, settings in enumerate([{"negative_prompt": "a green triangle"}, {"full_null": True}]):
        other = sampled(trained, tmp_path / str(number), **settings)
        assert np.abs(other - plain).mean() > 0.5


def test_a_picture_that_is_none_is_refused(trained: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(Refused, match=r"text\.png: cannot be read as an image.*give a png or jpeg"):
        sampled(trained, tmp_path / "run", first_frame=tmp_path / "text.png")


def test_given_frames_and_other_timesteps_are_trained_too(trained: RunConfig, tmp_path: Path) -> None:
    masks = {"image_head": 0.5, "random": 0.5}
    config = changed(trained, out=tmp_path, steps=2, workers=1, masks=masks, timesteps="uniform")
    train(config)
    assert len(losses(config)) == 2 and losses(config) != losses(trained)[:2]
    with pytest.raises(Refused, match=r"train\.masks was .*, now \{\}; change it back"):
        train(changed(config, steps=3, masks={}))


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
        "data": cached.data.model_copy(update={"cache": tmp_path / "cache"}),
    }
    with pytest.raises(Refused, match=message):
        run(cached.model_copy(update=changes))
    assert not (tmp_path / "cache").exists()
