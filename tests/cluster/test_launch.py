"""Workers through Ray Train: which failures are tried again, what stops them, what is told meanwhile."""

import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist
from ray.util import placement_group_table

from cluster import launch
from cluster.launch import Workers, run_workers
from jobs.training.stopping import agree

TWO = Workers(most=2, least=2, cpus=1, gpus=False)


def start(
    function: Callable[[dict[str, Any]], Any],
    folder: Path,
    workers: Workers = TWO,
    failures: list[str] | None = None,
    on_waiting: Callable[[float], None] = lambda _: None,
) -> Any:
    on_failure = [].append if failures is None else failures.append
    return run_workers(
        function,
        {"folder": folder},
        workers,
        folder / "ray",
        max_failures=1,
        final=(ArithmeticError,),
        on_failure=on_failure,
        on_waiting=on_waiting,
    )


def attempt(folder: Path) -> int:
    """Which one this is of the rank that asks, counted from 1."""
    with open(folder / f"attempts-{dist.get_rank()}", "a+") as file:
        file.write("x")
        file.flush()
        file.seek(0)
        return len(file.read())


def die_then_be_terminated(argument: dict[str, Any]) -> tuple[str | None, int]:
    """Rank 1 is killed at first, and sent SIGTERM the second time; returns why all stopped, and at which step."""
    number, step = attempt(argument["folder"]), 0
    dist.barrier()  # both have begun
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL if number == 1 else signal.SIGTERM)
    while True:
        step += 1
        agreed = agree(torch.ones(()), 0, step)
        assert agreed.more == [2 * step]
        if agreed.stop:
            return agreed.stop, number


def test_a_dead_worker_restarts_all_and_sigterm_to_one_stops_all_at_the_same_step(
    local_ray: None, tmp_path: Path
) -> None:
    failures: list[str] = []
    assert start(die_then_be_terminated, tmp_path, failures=failures) == ("SIGTERM", 2)
    assert len(failures) == 1 and re.match(r"(worker 1: )?ActorDiedError: ", failures[0])
    assert len(failures[0]) < 250 and "\n" not in failures[0]


@dataclass(frozen=True)
class Deadly:
    """Kills the first two processes that read it."""

    folder: Path

    def __reduce__(self) -> Any:
        return _read, (self.folder,)


def _read(folder: Path) -> Deadly:
    for number in range(2):
        try:
            (folder / f"victim-{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        os.kill(os.getpid(), signal.SIGKILL)
    return Deadly(folder)


@pytest.mark.slow
def test_workers_that_die_as_they_begin_are_started_again(local_ray: None, tmp_path: Path) -> None:
    failures: list[str] = []
    deadly = Deadly(tmp_path)

    def work(argument: dict[str, Any]) -> str:
        return f"{type(deadly).__name__} of {dist.get_world_size()}"

    assert start(work, tmp_path, failures=failures) == "Deadly of 2"
    assert len(failures) == 1 and "ActorDiedError" in failures[0]


def divide_by_zero(argument: dict[str, Any]) -> None:
    """On rank 1, while rank 0 waits for it."""
    attempt(argument["folder"])
    if dist.get_rank() == 1:
        raise ZeroDivisionError("of rank 1")
    dist.barrier()


@pytest.mark.slow
def test_a_final_failure_is_raised_and_not_tried_again(local_ray: None, tmp_path: Path) -> None:
    failures: list[str] = []
    with pytest.raises(ZeroDivisionError, match="of rank 1"):
        start(divide_by_zero, tmp_path, failures=failures)
    assert not failures
    assert (tmp_path / "attempts-1").read_text() == "x"
    assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}


def look_up(argument: dict[str, Any]) -> None:
    attempt(argument["folder"])
    raise LookupError("nothing there\nat all")


@pytest.mark.slow
def test_any_other_failure_is_tried_again_as_often_as_allowed_each_told(local_ray: None, tmp_path: Path) -> None:
    failures: list[str] = []
    with pytest.raises(LookupError, match="nothing there"):
        start(look_up, tmp_path, failures=failures)
    assert [re.sub(r"\d", "N", one) for one in failures] == ["worker N: LookupError: at all"] * 2  # either is first
    assert (tmp_path / "attempts-0").read_text() == "xx"


@pytest.mark.slow
def test_sigterm_ends_what_waits_for_room_and_the_waiting_is_told(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "WAITING_S", 1.0)
    told: list[float] = []

    def terminate(waited_s: float) -> None:
        told.append(waited_s)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    too_many = Workers(most=1, least=1, cpus=int(ray.cluster_resources()["CPU"]) + 1, gpus=False)
    assert start(die_then_be_terminated, tmp_path, too_many, on_waiting=terminate) == "SIGTERM"
    assert told and told[0] >= 1.0
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert not list(tmp_path.glob("attempts-*"))


@pytest.mark.slow
def test_ctrl_c_is_ctrl_c(local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "WAITING_S", 1.0)
    too_many = Workers(most=1, least=1, cpus=int(ray.cluster_resources()["CPU"]) + 1, gpus=False)
    with pytest.raises(KeyboardInterrupt):
        start(look_up, tmp_path, too_many, on_waiting=lambda _: os.kill(os.getpid(), signal.SIGINT))
