"""What DeepSpeed needs of a machine is told before it fails."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.file_baton import FileBaton

from jobs.config import TrainConfig
from jobs.training.machine import RELEASE_S, compiler_problem, free_operators, refuse_impossible
from pipeline.errors import Refused
from tests.jobs.training.test_engine import train_in_half
from tests.ranks import run_ranks


def test_only_locks_that_nobody_holds_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    held, left = (tmp_path / "py311_cpu" / name / "lock" for name in ("held", "left"))
    for lock in (held, left):
        lock.parent.mkdir(parents=True)
        lock.touch()
    with open(held):
        free_operators()
    assert held.exists() and not left.exists()


def test_a_lock_that_is_being_given_back_is_left_to_who_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    baton = FileBaton(str(tmp_path / "py311_cpu" / "shm" / "lock"))
    Path(baton.lock_file_path).parent.mkdir(parents=True)
    assert baton.try_acquire() and baton.fd is not None
    os.close(baton.fd)  # as its release begins
    with ThreadPoolExecutor(1) as thread:
        freeing = thread.submit(free_operators)
        time.sleep(RELEASE_S / 2)
        os.remove(baton.lock_file_path)  # as it ends
        assert baton.try_acquire()  # the next one has it
        freeing.result()
    baton.release()


def test_a_missing_compiler_is_told_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiler_problem() == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiler_problem().startswith("no C++ compiler")
    assert "install g++" in compiler_problem()


def test_a_compiler_is_asked_for_where_something_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refuse_impossible(TrainConfig(zero="zero3"), on_gpu=True)
    for settings, on_gpu in ((TrainConfig(zero="zero2-offload"), True), (TrainConfig(zero="zero2"), False)):
        with pytest.raises(Refused, match="no C"):
            refuse_impossible(settings, on_gpu)


def test_fp16_is_refused_without_a_gpu() -> None:
    refuse_impossible(TrainConfig(precision="fp16"), on_gpu=True)
    with pytest.raises(Refused, match=r"train\.precision: fp16 needs a GPU and there is none; use bf16 or fp32"):
        refuse_impossible(TrainConfig(precision="fp16"), on_gpu=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_fp16_trains_on_a_gpu(tmp_path: Path) -> None:
    run_ranks(1, train_in_half, ["zero1", "zero2", "zero3"], tmp_path, on_gpu=True)
