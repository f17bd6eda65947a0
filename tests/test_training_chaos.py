"""Killed at any moment of writing, pruning or copying a checkpoint, training goes on from a whole one."""

import os
import re
import resource
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from jobs.config import TrainConfig
from jobs.events import Events
from jobs.training import checkpoint
from jobs.training.committed import find_damage, list_committed, read_committed, step_of
from jobs.training.copies import Keeper, fetch_newest
from jobs.training.engine import Engine
from pipeline.errors import Refused
from tests.ranks import run_ranks

STEPS = 6
KILLED_AT = 5  # when there are the checkpoints of steps 3 and 4; in the end the fourth is deleted, and its copy
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}  # as sys.addaudithook names them


@dataclass(frozen=True)
class Fate:
    """What befalls a rank."""

    rank: int = 0
    effect: int = 0  # it is killed before this one on a file below the run's folder, counted from 1; 0 = never
    room: int = 0  # no file of it may grow larger, in bytes; 0 = as it likes


def settings_of(root: Path, **more: Any) -> TrainConfig:
    """One checkpoint is kept, and its copy, and those of every third step."""
    run, copies = root / "run", str(root / "copies")
    knobs = {"steps": STEPS, "warmup_steps": 1, "lr": 0.01, "precision": "fp32", "keep_checkpoints": 1, "keep_every": 3}
    return TrainConfig(out=run, checkpoint_to=copies, **{**knobs, **more})


def go_on(settings: TrainConfig, fate: Fate) -> tuple[list[float], list[int]]:
    """Train a small model from its last checkpoint on, with one after each step -> losses, steps of the effects."""
    now = [0]
    effects = meet(fate, settings.out.parent, now) if fate.rank == dist.get_rank() else []
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    model[2].bias.requires_grad_(False)
    engine = Engine(model, settings)
    keeper = Keeper(settings, Events(settings.out / "events.jsonl", "train"))
    losses = []
    for step in range(checkpoint.resume(engine, settings.out / "checkpoints"), settings.steps):
        now[0] = step + 1
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        loss = engine(inputs).square().mean()
        engine.backward(loss, is_last=True)
        engine.step(step)
        losses.append(loss.item())
        checkpoint.save(engine, settings.out / "checkpoints", step + 1, {})
        if dist.get_rank() == 0:
            keeper.keep()
            keeper.finish()  # so that effects have one order
    return losses, effects


def meet(fate: Fate, root: Path, now: list[int]) -> list[int]:
    """Have this process meet its fate -> the step at which it had each effect, to be filled."""
    effects: list[int] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES and not (event == "open" and arguments[2] & WRITES):
            return
        is_below_folder = event in ("os.remove", "os.rmdir") and arguments[1] != -1  # as shutil.rmtree goes on
        if is_below_folder or str(arguments[0]).startswith(str(root)):
            effects.append(now[0])
            if len(effects) == fate.effect:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    if fate.room:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fate.room, resource.RLIM_INFINITY))
    return effects


def dies(root: Path, ranks: int, fate: Fate) -> TrainConfig:
    settings = settings_of(root)
    with pytest.raises(AssertionError, match=rf"rank {fate.rank}: died"):
        run_ranks(ranks, go_on, settings, fate)
    return settings


def assert_whole(folder: Path, at_least: int) -> None:
    """All that counts as a checkpoint is one, and the newest is not older than that."""
    found = list_committed(folder)
    assert max([step_of(path.name) for path in found], default=0) >= at_least
    for path in found:
        assert find_damage(path, read_committed(path).files) is None


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], list[int]]:
    """The losses of one rank, and its effects."""
    [(losses, effects)] = run_ranks(1, go_on, settings_of(tmp_path_factory.mktemp("undisturbed")), Fate())
    assert len(losses) == STEPS
    return losses, effects


def effects_at(undisturbed: tuple[list[float], list[int]], step: int) -> list[int]:
    return [number for number, at in enumerate(undisturbed[1], 1) if at == step]


@pytest.mark.parametrize("stride", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_before_any_effect_of_a_checkpoint_a_run_goes_on_from_a_whole_one(
    undisturbed: tuple[list[float], list[int]], tmp_path: Path, stride: int
) -> None:
    effects = effects_at(undisturbed, KILLED_AT)
    assert len(effects) > 20
    for effect in effects[::stride]:
        root = tmp_path / str(effect)
        settings = dies(root, 1, Fate(effect=effect))
        assert_whole(settings.out / "checkpoints", KILLED_AT - 1)
        assert_whole(root / "copies", KILLED_AT - 1)
        [(losses, _)] = run_ranks(1, go_on, settings, Fate())
        assert losses == undisturbed[0][STEPS - len(losses) :], effect
        for folder in (settings.out / "checkpoints", root / "copies"):
            assert sorted(path.name for path in folder.glob("step-*")) == ["step-00000003", "step-00000006"]


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_one_of_two_ranks_is_killed_and_any_number_goes_on(
    undisturbed: tuple[list[float], list[int]], tmp_path: Path, rank: int
) -> None:
    """Rank 0 dies before it marks the third checkpoint, rank 1 before it writes its part of it."""
    effect = effects_at(undisturbed, 3)[4] if rank == 0 else 7
    settings = dies(tmp_path, 2, Fate(rank, effect))
    assert_whole(settings.out / "checkpoints", 2)
    for ranks, zero, steps in ((3, "zero3", 4), (1, "zero1", STEPS)):
        results = run_ranks(ranks, go_on, settings_of(tmp_path, zero=zero, steps=steps), Fate())
        found = results[0][0]
        assert found == pytest.approx(undisturbed[0][steps - len(found) : steps], rel=1e-6)


def test_a_run_whose_folder_is_lost_goes_on_from_the_copies(
    undisturbed: tuple[list[float], list[int]], tmp_path: Path
) -> None:
    settings = dies(tmp_path, 1, Fate(effect=effects_at(undisturbed, KILLED_AT)[2]))
    (settings.out / "run.json").write_text("as what it was begun")
    shutil.rmtree(settings.out / "checkpoints")
    shutil.copytree(settings.out, tmp_path / "copies", dirs_exist_ok=True)
    shutil.rmtree(settings.out)
    fetch_newest(settings)
    assert (settings.out / "run.json").read_text() == "as what it was begun"
    [(losses, _)] = run_ranks(1, go_on, settings, Fate())
    assert losses == undisturbed[0][KILLED_AT - 1 :]


def test_where_a_disk_is_full_every_rank_says_so_in_one_line_and_with_room_the_run_goes_on(
    undisturbed: tuple[list[float], list[int]], tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, steps=1)
    for told in run_ranks(2, refused, settings, Fate(rank=1, room=1000)):
        assert re.fullmatch(r"\S*rank-00001-000\.safetensors: cannot be written: File too large; make room .*", told)
    assert not list((settings.out / "checkpoints").iterdir())
    assert run_ranks(2, go_on, settings, Fate())[0][0] == pytest.approx(undisturbed[0][:1], rel=1e-6)


def refused(settings: TrainConfig, fate: Fate) -> str:
    """What a rank is refused for."""
    with pytest.raises(Refused) as caught:
        go_on(settings, fate)
    return str(caught.value)
