"""AdamW with an average of the weights, which parameters it treats how, and how its knobs move with the step.

The average is one more state of the optimizer, beside the two moments. So it is made of the float32 master weights,
is divided among the ranks as they are, and is stored and restored with them, under every stage of ZeRO.
"""

import math
import os
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from torch import Tensor, nn

from jobs.config import ConfigError, TrainConfig
from jobs.knobs import LearningRateSchedule
from pipeline.storage import while_room

STATES = ("exp_avg", "exp_avg_sq", "ema")  # of each element of the master weights, float32

# The share of the learning rate at a part of the way from the end of warm-up (0) to the last step (1).
DECAYS: dict[LearningRateSchedule, Callable[[float], float]] = {
    "constant": lambda part: 1.0,
    "linear": lambda part: 1.0 - part,
    "cosine": lambda part: 0.5 * (1.0 + math.cos(math.pi * part)),
}


def learning_rate(settings: TrainConfig, step: int) -> float:
    """Linear warm-up, then `lr_schedule` down to `lr_end` of it at the last step."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    part = min(1.0, max(0, step + 1 - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps))
    left = DECAYS[settings.lr_schedule](part)
    return settings.lr * warm * (settings.lr_end + (1.0 - settings.lr_end) * left)


def ema_decay(settings: TrainConfig, step: int) -> float:
    """How much of the average stays at `step`: less at first, so that the random start is soon forgotten."""
    return min(settings.ema_decay, (1 + step) / (10 + step))


def parameter_groups(model: nn.Module, settings: TrainConfig) -> list[dict[str, Any]]:
    """The trained parameters, by how they are: `lr_scale` of the learning rate, and weight decay or none.

    Matrices decay; biases and the scales of norms do not. What is scaled by 0 is frozen: it gets no gradient and no
    state. Raises ConfigError where a pattern of `lr_scales` matches nothing or nothing is left to train.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    for pattern in settings.lr_scales:
        if not any(fnmatchcase(name, pattern) for name, _ in named):
            raise ConfigError(f"train.lr_scales: {pattern!r} matches no parameter; they are named like {named[0][0]}")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        scale = next((scale for pattern, scale in settings.lr_scales.items() if fnmatchcase(name, pattern)), 1.0)
        if scale == 0:
            parameter.requires_grad_(False)
            continue
        groups.setdefault((scale, settings.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    if not groups:
        raise ConfigError("train.lr_scales: scales every parameter by 0, so there is nothing to train; leave some")
    return [
        {"params": parameters, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]


class Averaged(torch.optim.Optimizer):
    """An Adam that also keeps an exponential moving average of the weights, in its state "ema"."""

    begun = False

    def begin(self, masters: Iterable[Tensor], folder: Path | None) -> None:
        """Make the state of the tensors that will be stepped on, before the first step: the average is what they are
        now. With a `folder`, in files there, mapped to memory."""
        for master in masters:
            state = {name: torch.zeros_like(master) if folder is None else _mapped(master, folder) for name in STATES}
            state["ema"].copy_(master.detach())
            self.state[master] = {"step": self._count(0, master), **state}
        self.begun = True

    def set_steps(self, steps: int) -> None:
        """Restore how many updates were made, by which Adam corrects its moments."""
        for master, state in self.state.items():
            state["step"] = self._count(steps, master)

    @property
    def steps(self) -> int:
        """How many updates were made."""
        return int(next(iter(self.state.values()))["step"])

    def _count(self, steps: int, master: Tensor) -> Any:
        return torch.tensor(float(steps), device=master.device)  # where a fused step looks for it

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if not self.begun:  # some of DeepSpeed's wrappers try a step on gradients of zero, which would decay weights
            return None
        result = super().step(closure)
        for group in self.param_groups:
            masters = [master for master in group["params"] if master.grad is not None]
            if masters:
                averages = [self.state[master]["ema"] for master in masters]
                torch._foreach_lerp_(averages, masters, 1.0 - group["ema_decay"])  # pyright: ignore
        return result


class AveragedAdamW(Averaged, torch.optim.AdamW):
    """torch's own."""


def make_optimizer(groups: list[dict[str, Any]], settings: TrainConfig, on_cpu: bool, on_gpu: bool) -> Averaged:
    """AdamW for these groups: DeepSpeed's where ZeRO keeps the state in the CPU's memory, else torch's, fused on a GPU.

    `on_cpu`: the state is offloaded. `on_gpu`: the weights are on a GPU.
    """
    knobs: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps}
    groups = [{**group, "ema_decay": 0.0} for group in groups]
    if on_cpu:
        return _cpu_adam()(groups, **knobs)
    return AveragedAdamW(groups, **knobs, fused=on_gpu or None)


def _mapped(like: Tensor, folder: Path) -> Tensor:
    """Zeros as `like`, (n,), in a file that is gone with this process: memory that the system may take back."""
    num_bytes = like.numel() * like.element_size()
    with while_room(f"train.nvme: {folder} has no room for {num_bytes} bytes"), NamedTemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, num_bytes)  # a full disk is told here, and does not kill a step later
        return torch.from_file(file.name, shared=True, size=like.numel(), dtype=like.dtype)


def _cpu_adam() -> type[Averaged]:
    """DeepSpeed's Adam for state in the CPU's memory; it is compiled when it is first made."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    class AveragedCPUAdam(Averaged, DeepSpeedCPUAdam):
        def _count(self, steps: int, master: Tensor) -> Any:
            return steps

    return AveragedCPUAdam
