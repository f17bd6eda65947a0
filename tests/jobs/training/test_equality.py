"""The same curve whatever the ranks, the stage, the parts and the interruptions: the real loop on real ranks."""

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import jobs.train
from jobs.config import RunConfig
from jobs.configured import configured_recipe
from jobs.training.metrics import read_metrics
from tests.ranks import run_ranks

STEPS, STOP = 20, 10
Run = dict[str, Any]  # knobs of [train]


def changed(config: RunConfig, out: Path, knobs: Run) -> RunConfig:
    """Every source of randomness, schedules and weight decay are on."""
    fixed: Run = {
        "out": out,
        "steps": STEPS,
        "checkpoint_every": STOP,
        "keep_every": STOP,
        "eval_every": 0,
        "lr": 1e-3,
        "lr_schedule": "cosine",
        "weight_decay": 0.1,
        "clip_grad_norm": 0.5,
        "caption_dropout": 0.3,
        "masks": {"random": 0.5},
        "lr_scales": {"temporal_blocks.*": 0.5, "fps_embedder.*": 0.0},
    }
    return config.model_copy(update={"train": config.train.model_copy(update={**fixed, **knobs})})


def train_recorded(configs: list[RunConfig]) -> list[list[list[str]]]:
    """The loop of each configuration on this rank -> the keys it trained on at each step of each.

    Random numbers that are nobody's are drawn all along, others on each rank.
    """
    accumulate, trained = jobs.train.accumulate, []

    def record(engine: Any, settings: Any, parts: Any, null: Any) -> Any:
        for _ in range(1 + dist.get_rank()):
            torch.rand(1)
            np.random.rand()
            random.random()
        samples = [sample for part in parts for sample in zip(part.batch.keys, part.batch.weights.tolist())]
        trained[-1].append([key for key, weight in samples if weight > 0])
        return accumulate(engine, settings, parts, null)

    jobs.train.accumulate = record
    for config in configs:
        torch.manual_seed(dist.get_rank() + 7)
        trained.append([])
        jobs.train.train_worker({"config": config, "recipe": configured_recipe(config)})
    return trained


def run_on(ranks: int, cached: RunConfig, folder: Path, runs: dict[str, Run]) -> dict[str, list[list[str]]]:
    """Train each of `runs` below `folder` -> the keys of each step, over all ranks."""
    configs = [changed(cached, folder / name, {"workers": ranks, **knobs}) for name, knobs in runs.items()]
    by_rank = run_ranks(ranks, train_recorded, configs)
    return {
        name: [sorted(key for keys in step for key in keys) for step in zip(*(of_rank[number] for of_rank in by_rank))]
        for number, name in enumerate(runs)
    }


def curve(folder: Path, value: str = "loss") -> list[float]:
    return [line[value] for line in read_metrics(folder / "metrics.jsonl")]


def stopped(whole: Path, copy: Path) -> Path:
    """A copy of a run as it was after `STOP` steps."""
    shutil.copytree(whole, copy)
    shutil.rmtree(copy / "checkpoints" / f"step-{STEPS:08d}")
    return copy


@pytest.fixture(scope="module")
def two(cached: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[list[str]]]]:
    """Two ranks under each stage, and with each rank's share in two parts."""
    folder = tmp_path_factory.mktemp("two")
    runs = {f"zero{stage}": {"zero": f"zero{stage}"} for stage in range(4)}
    return folder, run_on(2, cached, folder, {**runs, "parts": {"accumulate": 2, "activation_checkpointing": True}})


def test_ranks_stages_and_parts_do_not_change_the_curve(
    cached: RunConfig, two: tuple[Path, dict[str, list[list[str]]]], tmp_path: Path
) -> None:
    keys = run_on(1, cached, tmp_path, {"one": {}})["one"]
    wanted = curve(tmp_path / "one")
    assert len(wanted) == len(keys) == STEPS and len(set(wanted)) == STEPS
    for name, found in two[1].items():
        assert found == keys, name
        assert curve(two[0] / name) == pytest.approx(wanted, rel=1e-6), name
        assert curve(two[0] / name, "grad_norm") == pytest.approx(curve(tmp_path / "one", "grad_norm"), rel=1e-5), name


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    cached: RunConfig, two: tuple[Path, dict[str, list[list[str]]]], tmp_path: Path
) -> None:
    stages = ["zero2", "zero3"]
    for stage in stages:
        stopped(two[0] / stage, tmp_path / stage)
    keys = run_on(2, cached, tmp_path, {stage: {"zero": stage} for stage in stages})
    for stage in stages:
        assert keys[stage] == two[1][stage][STOP:]
        assert curve(tmp_path / stage) == curve(two[0] / stage)
        last = f"checkpoints/step-{STEPS:08d}"
        for file in (tmp_path / stage / last).glob("*.safetensors"):
            assert file.read_bytes() == (two[0] / stage / last / file.name).read_bytes()


@pytest.mark.parametrize(("ranks", "zero"), [(1, "zero0"), (3, "zero3")])
def test_a_run_goes_on_with_other_ranks_and_another_stage(
    cached: RunConfig, two: tuple[Path, dict[str, list[list[str]]]], tmp_path: Path, ranks: int, zero: str
) -> None:
    stopped(two[0] / "zero2", tmp_path / "on")
    keys = run_on(ranks, cached, tmp_path, {"on": {"zero": zero}})["on"]
    assert keys == two[1]["zero2"][STOP:]
    assert curve(tmp_path / "on") == pytest.approx(curve(two[0] / "zero2"), rel=1e-6)
