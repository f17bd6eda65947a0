"""Work shared out over actors that own it."""

import os
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import ray
from ray.exceptions import OutOfMemoryError

from cluster.runtime import IN_FLIGHT, WorkerLost, share_out


@ray.remote(num_cpus=0.1)
class Worker:
    """Doubles numbers; what a number's file in `folder` says happens first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.announced: int | None = None

    def do(self, item: int, upcoming: int | None, turn: int) -> tuple[int, bool]:
        expected = self.announced is None or self.announced == item
        self.announced = upcoming
        order = self.folder / str(item)
        if order.exists():
            what = order.read_text()
            if what.endswith("once"):
                order.unlink()
            if what.startswith("no memory"):
                raise OutOfMemoryError("as where Ray kills a worker because the node's memory is full")
            if what.startswith("die"):
                os.kill(os.getpid(), 9)
            raise ValueError(what)
        return 2 * item, expected


def start(folder: Path) -> Any:
    worker: Any = Worker
    return lambda: worker.remote(folder)


def test_every_item_is_done_once_and_was_announced(local_ray: None, tmp_path: Path) -> None:
    results = dict(share_out(start(tmp_path), 3, range(10)))
    assert results == {item: (2 * item, True) for item in range(10)}


@pytest.mark.parametrize("order", ["die once", "no memory once"])
def test_a_dead_workers_items_are_done_by_another(local_ray: None, tmp_path: Path, order: str) -> None:
    (tmp_path / "2").write_text(order)
    results = list(share_out(start(tmp_path), 2, range(6)))
    assert sorted(item for item, _ in results) == list(range(6))
    assert not (tmp_path / "2").exists()


def test_an_item_that_kills_every_worker_ends_the_work(local_ray: None, tmp_path: Path) -> None:
    (tmp_path / "1").write_text("die always")
    with pytest.raises(WorkerLost, match="3 workers died of 1"):
        list(share_out(start(tmp_path), 2, range(4), max_attempts=3))


def test_an_exception_of_the_work_itself_is_raised(local_ray: None, tmp_path: Path) -> None:
    (tmp_path / "3").write_text("no such colour")
    with pytest.raises(ValueError, match="no such colour"):
        list(share_out(start(tmp_path), 2, range(4)))


@ray.remote(num_cpus=0.1)
class Overlapping:
    """Ends item 0 only when it was given item 1."""

    def __init__(self) -> None:
        self.begun = {1: Event()}

    def do(self, item: int, upcoming: int | None, turn: int) -> tuple[int, int]:
        self.begun.setdefault(item, Event()).set()
        assert item or self.begun[1].wait(timeout=60)
        return turn, os.getpid()


def test_a_worker_is_given_its_next_item_before_it_is_done(local_ray: None) -> None:
    worker: Any = Overlapping
    done = dict(share_out(worker.options(max_concurrency=IN_FLIGHT).remote, 1, range(4)))
    assert [turn for turn, _ in (done[item] for item in range(4))] == [0, 1, 2, 3]


def test_no_worker_gets_a_second_item_while_another_has_none(local_ray: None) -> None:
    worker: Any = Overlapping
    done = dict(share_out(worker.options(max_concurrency=IN_FLIGHT).remote, 3, [1, 2, 3]))
    assert len({process for _, process in done.values()}) == 3


def test_no_items_need_no_workers(local_ray: None, tmp_path: Path) -> None:
    assert list(share_out(start(tmp_path), 2, [])) == []
