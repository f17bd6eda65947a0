"""Checkpoints of a small model: what comes back, and what is refused."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jobs.config import TrainConfig
from jobs.training import checkpoint
from jobs.training.checkpoint import load, resume, save
from jobs.training.committed import read_committed
from jobs.training.engine import Engine
from pipeline.errors import Refused
from tests.ranks import run_ranks


def make_engine(seed: int = 0, **knobs: Any) -> Engine:
    """A small model, one of whose parameters is frozen."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    return Engine(model, TrainConfig(precision="fp32", lr_scales={"2.bias": 0.0}, **knobs))


def train(engine: Engine, steps: Iterable[int]) -> list[float]:
    losses = []
    for step in steps:
        loss = engine(torch.randn(4, 6, generator=torch.Generator().manual_seed(step))).square().mean()
        engine.backward(loss, is_last=True)
        engine.step(step)
        losses.append(loss.item())
    return losses


def state(engine: Engine) -> dict[tuple[str, str], Tensor]:
    return {(piece.name, kind): one.clone() for piece in engine.pieces() for kind, one in piece.tensors.items()}


@pytest.mark.parametrize("file_bytes", [2**30, 300])
def test_all_that_is_trained_comes_back_and_what_is_frozen(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_bytes: int
) -> None:
    monkeypatch.setattr(checkpoint, "FILE_BYTES", file_bytes)
    first = make_engine()
    train(first, range(3))
    before = state(first)
    saved = save(first, tmp_path, 3, {"told": "along"})
    told = read_committed(saved)
    assert (told.facts, told.step, told.ranks) == ({"told": "along"}, 3, 1)
    assert (len(told.files) > 2) == (file_bytes == 300)
    again = make_engine(seed=1, zero="zero0")
    assert resume(again, tmp_path) == 3
    after = state(again)
    assert len(before) == 5 * 4 and before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(again.model[2].bias, first.model[2].bias)
    assert train(again, range(3, 6)) == train(first, range(3, 6))


def test_a_committed_step_is_left_as_it_is(alone: None, tmp_path: Path) -> None:
    engine = make_engine()
    assert resume(engine, tmp_path) == 0
    saved = save(engine, tmp_path, 1, {})
    before = {path.name: path.stat().st_mtime_ns for path in saved.iterdir()}
    assert save(engine, tmp_path, 1, {"other": "facts"}) == saved
    assert {path.name: path.stat().st_mtime_ns for path in saved.iterdir()} == before


def test_another_model_is_refused(alone: None, tmp_path: Path) -> None:
    saved = save(make_engine(), tmp_path, 1, {})
    torch.manual_seed(0)
    other = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 6))
    with pytest.raises(Refused, match=r"trains other parameters than this run, such as 2\.bias; change \[model\]"):
        load(Engine(other, TrainConfig(precision="fp32")), saved)


def test_what_reads_back_as_other_bytes_is_refused_and_removed(
    alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "crc32c_of", lambda path: 0)
    with pytest.raises(Refused, match=r"rank-00000-000\.safetensors: reads back as other bytes than were written"):
        save(make_engine(), tmp_path, 1, {})
    assert not list(tmp_path.iterdir())


def test_every_rank_refuses_what_one_finds_damaged(tmp_path: Path) -> None:
    run_ranks(2, save_one, tmp_path)
    (damaged,) = tmp_path.glob("step-*/rank-00001-000.safetensors")
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    told = run_ranks(2, refused, tmp_path)
    assert (
        told == [f"{damaged}: is not as it was written; delete the folder, and the run goes on from the one before"] * 2
    )


def save_one(folder: Path) -> None:
    save(make_engine(), folder, 1, {})


def start(folder: Path) -> int:
    return resume(make_engine(zero="zero3"), folder)


def refused(folder: Path) -> str:
    with pytest.raises(Refused) as caught:
        start(folder)
    return str(caught.value)
