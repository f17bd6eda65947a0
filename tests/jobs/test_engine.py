"""What of the engine needs no cluster: the DeepSpeed configuration, the learning rate, the state of checkpoints."""

import json
from pathlib import Path

import pytest

from jobs.config import TrainConfig
from jobs.engine import committed, compiler_problem, deepspeed_config, learning_rate, prune, step_of


def commit(folder: Path, step: int) -> Path:
    checkpoint = folder / f"step-{step:08d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMMITTED.json").write_text(json.dumps({"step": step, "ranks": 1, "files": {}}))
    return checkpoint


def test_deepspeed_is_told_what_train_says() -> None:
    settings = TrainConfig(zero_stage=2, precision="bf16", lr=3e-4, weight_decay=0.1, clip_grad_norm=0.5)
    assert deepspeed_config(settings, samples_per_rank=3, num_parameters=1000) == {
        "train_micro_batch_size_per_gpu": 3,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000, "allgather_bucket_size": 1000},
        "optimizer": {"type": "AdamW", "params": {"lr": 3e-4, "weight_decay": 0.1, "torch_adam": True}},
        "steps_per_print": 2**63 - 1,
    }


def test_a_missing_compiler_is_told_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiler_problem() == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiler_problem().startswith("no C++ compiler")
    assert "install g++" in compiler_problem()


def test_the_learning_rate_rises_linearly_and_stays() -> None:
    settings = TrainConfig(lr=1.0, warmup_steps=4)
    assert [learning_rate(settings, step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert learning_rate(TrainConfig(lr=1.0, warmup_steps=0), 0) == 1.0


def test_only_committed_checkpoints_count(tmp_path: Path) -> None:
    second, first = commit(tmp_path, 20), commit(tmp_path, 3)
    (tmp_path / "step-00000030").mkdir()  # renamed by nobody: no mark
    (commit(tmp_path, 40)).rename(tmp_path / "step-00000040.tmp")  # marked, but not renamed
    assert committed(tmp_path) == [first, second]
    assert step_of(second) == 20


def test_pruning_keeps_the_newest_and_removes_what_crashes_left(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        commit(tmp_path, step)
    (tmp_path / "step-00000004.tmp").mkdir()
    prune(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
