"""`train` on two nodes of which one is lost: it goes on from the last checkpoint, and ends as an undisturbed run."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster import launch
from jobs.config import RunConfig
from jobs.events import read_events
from jobs.train import train
from jobs.training.metrics import read_metrics
from tests.many_nodes import Nodes, play, wait_until

STEPS, EVERY, LOST_AFTER = 60, 2, 7  # steps, those between checkpoints, and those before a node is lost
SOON = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}


def training(cached: RunConfig, out: Path, **knobs: Any) -> RunConfig:
    knobs |= {"out": out, "steps": STEPS, "checkpoint_every": EVERY, "held_out": 0.0, "workers": 2, "zero": "zero2"}
    return cached.model_copy(update={"train": cached.train.model_copy(update=knobs)})


def train_while_one_is_lost(config: RunConfig, is_replaced: bool) -> dict[str, Any]:
    """Train on two nodes, one worker on each; returns how often, from where and by how many it was begun."""
    launch.RESIZE_EVERY_S = 600.0
    out = config.train.out

    with Nodes(2, cpus=1) as nodes, ThreadPoolExecutor(1) as thread:
        training = thread.submit(train, config)
        wait_until(lambda: len(read_metrics(out / "metrics.jsonl")) >= LOST_AFTER, training)
        nodes.kill(nodes.nodes[1])
        if is_replaced:
            nodes.add()
        training.result()
    return {"begun": [event for event in read_events(out / "events.jsonl") if event["event"] in ("begin", "failed")]}


@pytest.fixture(scope="module")
def undisturbed(cached: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    config = training(cached, tmp_path_factory.mktemp("undisturbed"))
    train(config)
    return read_metrics(config.train.out / "metrics.jsonl")


@pytest.mark.slow
@pytest.mark.parametrize("is_replaced", [True, False], ids=["another takes its place", "one is left"])
def test_a_run_survives_the_loss_of_a_node(
    cached: RunConfig,
    undisturbed: list[dict[str, Any]],
    tmp_path: Path,
    ray_folder: Path,
    is_replaced: bool,
) -> None:
    config = training(cached, tmp_path, min_workers=None if is_replaced else 1)
    told = play(train_while_one_is_lost, ray_folder, config, is_replaced, **SOON)
    print(told)
    first, failed, again = told["begun"]
    assert (first["event"], failed["event"], again["event"]) == ("begin", "failed", "begin")
    assert (first["ranks"], again["ranks"]) == (2, 2 if is_replaced else 1)
    assert LOST_AFTER // EVERY * EVERY <= again["step"] < STEPS
    ours = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in ours] == list(range(1, STEPS + 1))
    for name in ("loss", "grad_norm"):
        found, wanted = ([line[name] for line in lines] for lines in (ours, undisturbed))
        assert found == (wanted if is_replaced else pytest.approx(wanted, rel=1e-3))
