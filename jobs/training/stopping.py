"""Stopping early: all ranks at the end of the same step, whichever of them was told to."""

import signal
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor

from cluster.notices import NOTICES, Notice, told
from jobs.events import Events
from jobs.progress import say

EXIT_CODE = 128 + signal.SIGTERM  # a shell's, for what SIGTERM has ended


@dataclass(frozen=True)
class Agreed:
    """What all ranks know at the end of a step."""

    loss: float
    damaged: int
    stop: Notice | None  # why they stop now, if they do
    more: list[float]


def agree(loss: Tensor, damaged: int, *more: float) -> Agreed:
    """Add up what each rank found in a step and was told, in one exchange; the loss () is averaged over the ranks.

    float32 counts exactly to 16 million.
    """
    numbers = torch.tensor([damaged, *told(), *more], dtype=torch.float32, device=loss.device)
    total = torch.cat([rearrange(loss, "-> 1"), numbers])
    dist.all_reduce(total)
    total_loss, total_damaged, *others = total.tolist()
    notices, total_more = others[: len(NOTICES)], others[len(NOTICES) :]
    return Agreed(total_loss / dist.get_world_size(), int(total_damaged), _first(notices), total_more)


def agree_to_stop(device: torch.device) -> Notice | None:
    """Whether a rank was told to stop, where there is no step to end; called by every rank."""
    here = torch.tensor(told(), dtype=torch.float32, device=device)
    dist.all_reduce(here)
    return _first(here.tolist())


def _first(times: list[float]) -> Notice | None:
    """The first of NOTICES that a rank was told."""
    for notice, ranks in zip(NOTICES, times, strict=True):
        if ranks:
            return notice
    return None


def leave_stopped(step: int, events: Events) -> NoReturn:
    """Tell how far a run came that SIGTERM has stopped, and end this process."""
    events.write("stopped", step=step, why="SIGTERM")
    done = f"after step {step}, which is committed" if step else "before the first step was committed"
    say(f"train: SIGTERM: stopped {done}; the same command goes on from there")
    raise SystemExit(EXIT_CODE)
