"""`train` through Ray: one rank, all ranks or the driver is killed at random, and it ends as an undisturbed run."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from jobs.config import RunConfig
from jobs.events import read_events
from jobs.training.committed import find_damage, list_committed, read_committed, step_of
from jobs.training.metrics import read_metrics
from tests.conftest import CACHE_OVERRIDES, TRAIN_OVERRIDES

STEPS = 300
KILLS = ("driver", "one rank", "all ranks", "one rank", "driver", "all ranks")
EVERY = 2  # steps between checkpoints, so that many kills are within one
WORKER = "ray::RayTrainWorker"


@contextmanager
def training(cached: RunConfig, out: Path) -> Iterator[psutil.Popen]:
    """The verb in a process of its own, which starts Ray for itself."""
    toml = out.parent / "run.toml"
    toml.touch()
    places = [f"data.source={cached.data.source}", f"data.cache={cached.data.cache}", f"train.out={out}"]
    knobs = [f"train.steps={STEPS}", f"train.checkpoint_every={EVERY}", "train.max_failures=100", "train.held_out=0"]
    command = [sys.executable, "-m", "jobs", "train", toml, *places, *CACHE_OVERRIDES, *TRAIN_OVERRIDES, *knobs]
    with open(out.parent / "told.txt", "a") as told:
        driver = psutil.Popen(command, stdout=told, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[1])
    try:
        yield driver
    finally:
        kill(driver)
        driver.wait()


def kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def ranks_of(driver: psutil.Popen) -> list[psutil.Process]:
    found = []
    for process in driver.children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith(WORKER):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def begun(out: Path) -> int:
    """How often its steps have begun."""
    path = out / "events.jsonl"
    return sum(event["event"] == "begin" for event in read_events(path)) if path.exists() else 0


def wait_until_begun(driver: psutil.Popen, out: Path, times: int) -> None:
    while begun(out) < times:
        assert driver.poll() is None, (out.parent / "told.txt").read_text()
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_at_random_a_run_loses_nothing_that_was_committed_and_ends_as_an_undisturbed_one(
    cached: RunConfig, tmp_path: Path
) -> None:
    with training(cached, tmp_path / "undisturbed") as driver:
        assert driver.wait() == 0
    out, chance, committed, kills = tmp_path / "run", random.Random(0), 0, list(KILLS)
    while kills:
        with training(cached, out) as driver:
            times = begun(out)
            while kills:
                wait_until_begun(driver, out, times := times + 1)
                time.sleep(chance.uniform(0.0, 1.0))
                victim, ranks = kills.pop(0), ranks_of(driver)
                assert len(ranks) == 2
                for process in {"driver": [driver], "one rank": [chance.choice(ranks)], "all ranks": ranks}[victim]:
                    kill(process)
                found = list_committed(out / "checkpoints")
                assert not found or step_of(found[-1].name) >= committed
                committed = step_of(found[-1].name) if found else 0
                if victim == "driver":
                    break
    with training(cached, out) as driver:
        assert driver.wait() == 0, (tmp_path / "told.txt").read_text()
    for path in list_committed(out / "checkpoints"):
        assert find_damage(path, read_committed(path).files) is None
    ours, theirs = (read_metrics(one / "metrics.jsonl") for one in (out, tmp_path / "undisturbed"))
    names = ("step", "loss", "grad_norm", "damaged")
    assert [[line[name] for name in names] for line in ours] == [[line[name] for name in names] for line in theirs]
    assert (out / "ema" / "model.safetensors").read_bytes() == (
        tmp_path / "undisturbed" / "ema" / "model.safetensors"
    ).read_bytes()
