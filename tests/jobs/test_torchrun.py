"""`torchrun -m jobs train`: the same training without Ray, stopped by SIGTERM and gone on with."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.config import RunConfig
from jobs.events import read_events
from jobs.training.metrics import read_metrics
from tests.conftest import CACHE_OVERRIDES, TRAIN_OVERRIDES


def torchrun(cached: RunConfig, out: Path, *more: str) -> subprocess.Popen[str]:
    """Start two ranks."""
    toml = out.parent / "run.toml"
    toml.touch()
    places = [f"data.source={cached.data.source}", f"data.cache={cached.data.cache}", f"train.out={out}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "jobs", "train"]
    return subprocess.Popen(
        [*command, toml, *places, *CACHE_OVERRIDES, *TRAIN_OVERRIDES, "train.held_out=0", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.parametrize("goes_on", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sigterm_commits_the_step_that_is_under_way_and_the_same_command_goes_on(
    cached: RunConfig, tmp_path: Path, goes_on: bool
) -> None:
    out = tmp_path / "run"
    ranks = torchrun(cached, out, "train.steps=100000")
    while ranks.poll() is None and not read_metrics(out / "metrics.jsonl"):
        time.sleep(0.1)
    ranks.send_signal(signal.SIGTERM)
    told = ranks.communicate()[0]
    found = re.search(r"train: SIGTERM: stopped after step (\d+), which is committed", told)
    assert found, told
    step = int(found[1])
    assert read_metrics(out / "metrics.jsonl")[-1]["step"] == step
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-{step:08d}"]
    if not goes_on:
        return
    ranks = torchrun(cached, out, f"train.steps={step + 1}")
    told = ranks.communicate()[0]
    assert ranks.returncode == 0 and f"train: {step + 1} steps done" in told, told
    assert (out / "ema" / "model.safetensors").exists()
    assert not (out / "ray_train").exists()
    events = read_events(out / "events.jsonl")
    begun = [(event["step"], event["ranks"], event["lost"]) for event in events if event["event"] == "begin"]
    assert begun == [(0, 2, 0), (step, 2, 0)]


@pytest.mark.slow
def test_what_the_first_rank_refuses_ends_all_of_them(cached: RunConfig, tmp_path: Path) -> None:
    ranks = torchrun(cached, tmp_path / "run", "train.filter='fps > 1000'")
    told = ranks.communicate()[0]
    assert ranks.returncode == 1
    assert told.count("\nlatentmill: ") == 1 and "none is left to train on" in told
    assert not (tmp_path / "run" / "checkpoints").exists()
