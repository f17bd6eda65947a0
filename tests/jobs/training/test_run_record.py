"""A run goes on as the one that was begun, or not at all."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.config import RunConfig, TrainConfig
from jobs.configured import configured_recipe, open_configured_set
from jobs.training.run_record import FIXED, record_run, refuse_other_run
from pipeline.errors import Refused
from pipeline.lengths import Entry
from tests.jobs.training.test_committed import committed

# What may change while a run is resumed: how it runs, how long, how it is optimized.
FREE = {
    *("out", "steps", "workers", "cpus_per_worker", "loader_threads", "shard_cache_bytes", "max_damaged"),
    *("lr", "warmup_steps", "weight_decay", "clip_grad_norm", "precision", "zero", "renormalize"),
    *("checkpoint_every", "keep_checkpoints", "keep_every", "checkpoint_to", "max_failures", "min_workers"),
    *("accumulate", "activation_checkpointing", "nvme", "lr_schedule", "lr_end", "lr_scales", "betas", "eps"),
    *("ema_decay", "eval_every", "eval_batches", "sample_every"),
}


def begun(config: RunConfig, out: Path) -> RunConfig:
    """The run below `out`, recorded, with one checkpoint."""
    config = changed(config, out=out)
    record_run(config, open_configured_set(config, configured_recipe(config)))
    committed(out / "checkpoints", 1)
    return config


def changed(config: RunConfig, **updates: object) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"workers": 1, **updates})})


def test_every_knob_of_training_is_fixed_or_free() -> None:
    fixed = {name.removeprefix("train.") for name in FIXED if name.startswith("train.")}
    assert fixed | FREE == set(TrainConfig.model_fields) and not fixed & FREE


@pytest.mark.parametrize(
    "updates",
    [
        {"batch": 8},
        {"tokens": 4096},
        {"buckets": {"*": {17: Entry(1.0, 1.0, 4)}}},
        {"mix": {"/data/more": 0.5}},
        {"masks": {"random": 0.5}},
        {"filter": "fps > 1"},
        {"null_caption": "model"},
    ],
    ids=lambda updates: next(iter(updates)),
)
def test_a_run_does_not_go_on_as_another_one(cached: RunConfig, tmp_path: Path, updates: dict[str, object]) -> None:
    config = begun(cached, tmp_path)
    refuse_other_run(changed(config, steps=9, lr=1.0))
    with pytest.raises(Refused, match=rf"run\.json: train\.{next(iter(updates))} was .*, now .*; change it back"):
        refuse_other_run(changed(config, **updates))


def test_a_run_does_not_go_on_with_other_clips_unless_its_record_is_removed(cached: RunConfig, tmp_path: Path) -> None:
    config = begun(cached, tmp_path)
    recipe = configured_recipe(config)
    data = open_configured_set(config, recipe)
    record_run(config, data)
    fewer = open_configured_set(changed(config, filter="num_chunks > 1"), recipe)
    told = rf"begun with {data.num_clips} clips, now there are {fewer.num_clips}, or others, .* remove this file"
    with pytest.raises(Refused, match=told):
        record_run(config, fewer)
    part = data.parts[0]
    turned = replace(data, parts=(replace(part, view=replace(part.view, rows=part.view.rows[::-1])),))
    with pytest.raises(Refused, match="or others, so epochs have another order"):
        record_run(config, turned)
    (tmp_path / "run.json").unlink()
    record_run(config, fewer)
    assert json.loads((tmp_path / "run.json").read_text())["clips"][0]["count"] == fewer.num_clips


def test_a_run_of_an_earlier_version_does_not_go_on(cached: RunConfig, tmp_path: Path) -> None:
    config = begun(cached, tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    del record["clips"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(Refused, match=r"of an earlier version, whose order was another; use another train\.out"):
        refuse_other_run(config)


def test_a_run_of_a_version_that_knew_fewer_knobs_is_refused_in_one_line(cached: RunConfig, tmp_path: Path) -> None:
    config = begun(cached, tmp_path)
    document = json.loads((tmp_path / "run.json").read_text())
    del document["train"]["held_out"]
    (tmp_path / "run.json").write_text(json.dumps(document))
    with pytest.raises(Refused, match=r"run\.json: of an earlier version.*use another train\.out"):
        refuse_other_run(config)
