"""The knobs of the optimizer by step and by parameter, and where its state lies."""

import errno
from pathlib import Path

import pytest
import torch
from torch import nn

from jobs.config import ConfigError, TrainConfig
from jobs.training.optimizer import STATES, ema_decay, learning_rate, make_optimizer, parameter_groups
from pipeline.errors import Refused


def test_the_learning_rate_rises_linearly_and_stays() -> None:
    settings = TrainConfig(lr=1.0, warmup_steps=4)
    assert [learning_rate(settings, step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert learning_rate(TrainConfig(lr=1.0, warmup_steps=0), 0) == 1.0


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [("linear", [1.0, 2.0, 1.625, 1.25, 0.875, 0.5]), ("cosine", [1.0, 2.0, 1.7803, 1.25, 0.7197, 0.5])],
)
def test_it_goes_down_to_its_end_at_the_last_step(schedule: str, wanted: list[float]) -> None:
    settings = TrainConfig(lr=2.0, warmup_steps=2, steps=6, lr_schedule=schedule, lr_end=0.25)  # pyright: ignore
    assert [learning_rate(settings, step) for step in range(6)] == pytest.approx(wanted, abs=1e-4)
    assert learning_rate(settings, 100) == 0.5


def test_the_average_forgets_the_start_first() -> None:
    settings = TrainConfig(ema_decay=0.5)
    assert [ema_decay(settings, step) for step in (0, 1, 7, 8, 1000)] == [0.1, 2 / 11, 8 / 17, 0.5, 0.5]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 1)


def test_parameters_are_grouped_by_learning_rate_and_decay() -> None:
    model = Model()
    settings = TrainConfig(lr_scales={"first.weight": 0.0, "first.*": 0.1}, weight_decay=0.2)
    names = {one: name for name, one in model.named_parameters()}
    found = {
        (group["lr_scale"], group["weight_decay"]): [names[one] for one in group["params"]]
        for group in parameter_groups(model, settings)
    }
    assert found == {(0.1, 0.0): ["first.bias"], (1.0, 0.2): ["last.weight"], (1.0, 0.0): ["last.bias"]}
    assert [name for name, one in model.named_parameters() if not one.requires_grad] == ["first.weight"]


@pytest.mark.parametrize(
    ("scales", "told"), [({"frist.*": 0.1}, "'frist.*' matches no parameter"), ({"*": 0.0}, "nothing to train")]
)
def test_scales_that_do_nothing_or_leave_nothing_are_refused(scales: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parameter_groups(Model(), TrainConfig(lr_scales=scales))


def test_state_in_files_is_memory_whose_file_is_gone(tmp_path: Path) -> None:
    optimizer = make_optimizer(parameter_groups(Model(), TrainConfig()), TrainConfig(), on_cpu=False, on_gpu=False)
    masters = [torch.arange(3.0), torch.ones(1000)]
    optimizer.begin(masters, tmp_path)
    assert not list(tmp_path.iterdir())
    for master in masters:
        state = optimizer.state[master]
        assert torch.equal(state["ema"], master) and not state["exp_avg"].any() and not state["exp_avg_sq"].any()
        for name in STATES:
            assert state[name].add_(1.0).shape == master.shape
        assert str(tmp_path) in Path("/proc/self/maps").read_text()


def test_a_disk_without_room_for_the_state_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    optimizer = make_optimizer(parameter_groups(Model(), TrainConfig()), TrainConfig(), on_cpu=False, on_gpu=False)
    with pytest.raises(Refused, match=r"train\.nvme: .* has no room for 12 bytes: No space left on device; make room"):
        optimizer.begin([torch.ones(3)], tmp_path)
