"""Nodes come and go while workers run: on a cluster of several nodes, in a process of its own."""

import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist

from cluster import launch
from cluster.launch import Workers, run_workers
from jobs.training.stopping import agree
from tests.many_nodes import play

ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
}


def until_two(argument: dict[str, Any]) -> int:
    """Run until there are two ranks."""
    (argument["folder"] / f"begun-by-{dist.get_world_size()}").touch()
    while dist.get_world_size() == 1:
        time.sleep(0.1)
    return dist.get_world_size()


def until_told(argument: dict[str, Any]) -> str:
    """Run until all ranks are told to stop."""
    (argument["folder"] / f"begun-by-{dist.get_world_size()}").touch()
    while not (agreed := agree(torch.ones(()), 0)).stop:
        time.sleep(0.1)
    return agreed.stop


def come(cluster: Any) -> None:
    cluster.add_node(num_cpus=1)


def go(cluster: Any) -> None:
    """The second node is to be drained, as a cloud's preemption has it, and goes in two minutes."""
    here = ray.get_runtime_context().get_node_id()
    [other] = [node["NodeID"] for node in ray.nodes() if node["NodeID"] != here]
    told = ["--address", cluster.address, "--node-id", other, "--deadline-remaining-seconds", "120"]
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "drain-node", *told, *reason], check=True)


def scene(folder: Path, num_nodes: int, function: Any, happens: Any) -> list[Any]:
    """Run workers, one or two, on nodes of one CPU each; something happens to the cluster once they have begun."""
    from ray.cluster_utils import Cluster

    launch.RESIZE_EVERY_S = launch.LOOK_EVERY_S = 0.5
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(num_nodes - 1):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    returned: list[Any] = []

    def run() -> None:
        given: Any = {"on_failure": returned.append, "on_waiting": lambda _: None, "max_failures": 0, "final": ()}
        returned.append(run_workers(function, {"folder": folder}, Workers(2, 1, 1, False), folder / "ray", **given))

    thread = Thread(target=run)
    thread.start()
    while not (folder / f"begun-by-{num_nodes}").exists() and thread.is_alive():
        time.sleep(0.2)
    happens(cluster)
    thread.join()
    ray.shutdown()
    cluster.shutdown()
    return returned


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_nodes", "function", "happens", "returned"),
    [(1, until_two, come, 2), (2, until_told, go, "preemption")],
    ids=["a node comes, and workers begin again on both", "a node will be taken away, and workers are told"],
)
def test_workers_follow_nodes(ray_folder: Path, num_nodes: int, function: Any, happens: Any, returned: Any) -> None:
    assert play(scene, ray_folder, ray_folder, num_nodes, function, happens, **ENVIRONMENT) == [returned]
