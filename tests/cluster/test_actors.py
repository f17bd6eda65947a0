"""Work shared out over actors that own it."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import psutil
import pytest
import ray
from ray.exceptions import OutOfMemoryError

from cluster import actors
from cluster.actors import share_out
from cluster.sharing import IN_FLIGHT, WorkerLost


@ray.remote(num_cpus=0.1)
class Worker:
    """Doubles numbers; what a number's file in `folder` says happens first, and `begin`'s before any."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.announced: int | None = None
        self._heed("begin")

    def do(self, item: int, upcoming: int | None, turn: int) -> tuple[int, bool]:
        expected = self.announced is None or self.announced == item
        self.announced = upcoming
        self._heed(str(item))
        return 2 * item, expected

    def _heed(self, name: str) -> None:
        order = self.folder / name
        if order.exists():
            what = order.read_text()
            if what.endswith("once"):
                order.unlink()
            if what.startswith("no memory"):
                raise OutOfMemoryError("as where Ray kills a worker because the node's memory is full")
            if what.startswith("die"):
                os.kill(os.getpid(), 9)
            raise ValueError(what)


def start(folder: Path) -> Any:
    worker: Any = Worker
    return lambda: worker.remote(folder)


def quiet(waited_s: float) -> None:
    """Nothing has room at first."""


def shared(start_worker: Any, most: int, items: Any) -> Iterator[tuple[Any, Any]]:
    return share_out(start_worker, lambda: most, items, quiet)


def test_every_item_is_done_once_and_was_announced(local_ray: None, tmp_path: Path) -> None:
    results = list(shared(start(tmp_path), 3, range(10)))
    assert sorted(results) == [(item, (2 * item, True)) for item in range(10)]


@pytest.mark.parametrize("order", ["die once", "no memory once"])
def test_a_dead_workers_items_are_done_by_another(local_ray: None, tmp_path: Path, order: str) -> None:
    (tmp_path / "2").write_text(order)
    results = list(shared(start(tmp_path), 2, range(6)))
    assert sorted(item for item, _ in results) == list(range(6))
    assert not (tmp_path / "2").exists()


def test_an_item_that_kills_every_worker_ends_the_work(local_ray: None, tmp_path: Path) -> None:
    (tmp_path / "1").write_text("die always")
    with pytest.raises(WorkerLost, match="3 workers died of 1"):
        list(shared(start(tmp_path), 2, range(4)))


def test_workers_that_never_begin_end_the_work(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "LOOK_EVERY_S", 0.2)
    (tmp_path / "begin").write_text("die always")
    with pytest.raises(WorkerLost, match="workers die as they begin"):
        list(shared(start(tmp_path), 2, range(4)))


@pytest.mark.parametrize("where", ["begin", "3"])
def test_an_exception_of_the_work_itself_is_raised(local_ray: None, tmp_path: Path, where: str) -> None:
    (tmp_path / where).write_text("no such colour")
    with pytest.raises(ValueError, match="no such colour"):
        list(shared(start(tmp_path), 2, range(4)))


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
    done = dict(shared(worker.options(max_concurrency=IN_FLIGHT).remote, 1, range(4)))
    assert [turn for turn, _ in (done[item] for item in range(4))] == [0, 1, 2, 3]


def test_that_no_worker_has_room_is_told_and_when_there_is_room_nobody_waits_for_them(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two never have any; then smaller ones do all."""
    monkeypatch.setattr(actors, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(actors, "WAITING_S", 0.3)
    told: list[float] = []
    worker: Any = Worker

    def start_worker() -> Any:
        return worker.options(num_cpus=0.1 if told else 10**6).remote(tmp_path)

    def count_workers() -> int:
        return 3 if told else 2

    results = dict(share_out(start_worker, count_workers, range(5), told.append))
    assert results == {item: (2 * item, True) for item in range(5)}
    assert 0.3 <= told[0] < told[-1] or len(told) == 1


def begun(folder: Path) -> list[Path]:
    """A file by each process that has begun."""
    return list(folder.iterdir())


@ray.remote(num_cpus=0.1)
class Lonely:
    """Does nothing before there are two, and while both live."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def do(self, item: int, upcoming: int | None, turn: int) -> int:
        (self.folder / str(os.getpid())).touch()
        while sum(psutil.pid_exists(int(path.name)) for path in begun(self.folder)) != 1 or len(begun(self.folder)) < 2:
            time.sleep(0.05)
        return os.getpid()


def test_where_there_is_no_longer_room_for_all_the_last_is_ended_and_its_items_are_done_by_others(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "LOOK_EVERY_S", 0.1)
    worker: Any = Lonely

    def count_workers() -> int:
        return 1 if len(begun(tmp_path)) == 2 else 2

    done = list(
        share_out(lambda: worker.options(max_concurrency=IN_FLIGHT).remote(tmp_path), count_workers, range(4), quiet)
    )
    assert sorted(item for item, _ in done) == list(range(4))
    assert len({process for _, process in done}) == 1


def test_no_items_need_no_workers(local_ray: None, tmp_path: Path) -> None:
    assert list(shared(start(tmp_path), 2, [])) == []
