"""Encoding on nodes that are lost, come and are taken away: the cache has the bytes that one machine makes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from cluster import actors, runtime
from jobs.config import RunConfig
from jobs.encode import encode
from jobs.shapes import make_shapes
from jobs.text import text
from tests.conftest import before_encoding, cache_config, digests, fill_cache
from tests.head import free_ports
from tests.many_nodes import ENCODER, Nodes, end, is_writing, nobody_decodes, pid_of, play, wait_until, workers
from tests.networks import IN_TIME, PINGS, Network, why_not

COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
HEAD = "ray.head.default"  # what the provider calls it: with another name a second one comes, again and again
SOON = {  # a process that is gone is missed in seconds; one that is only slow has as long as ever
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
Happening = Callable[[Nodes, Future[int]], str]


@pytest.fixture(scope="module")
def long(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A filled cache of more shards; tests must not change it."""
    root = tmp_path_factory.mktemp("long")
    make_shapes(root / "videos", num_clips=80)
    config = cache_config(root / "videos" / "captions.csv", root, "encode.shard_bytes=20000", "encode.forecast=false")
    fill_cache(config)
    return config


def encode_meanwhile(config: RunConfig, number: int, happens: Happening) -> tuple[int, str]:
    """The exit code of encoding on so many nodes, while something happens to them, and what that tells."""
    actors.LOOK_EVERY_S = 1.0
    with Nodes(number) as nodes, ThreadPoolExecutor(1) as thread:
        encoding = thread.submit(encode, config)
        told = happens(nodes, encoding)  # here, for Ray starts nodes in the main thread only
        quarantined = encoding.result()
        text(config)
    return quarantined, told


def one_is_lost(nodes: Nodes, encoding: Future[int]) -> str:
    """In the middle of a shard."""
    wait_until(lambda: is_writing(pid_of(nodes.nodes[0])), encoding)
    nodes.kill(nodes.nodes[0])
    return "one"


def test_a_node_is_lost_in_the_middle_of_a_shard(cached: RunConfig, tmp_path: Path, ray_folder: Path) -> None:
    config = before_encoding(cached, tmp_path)
    assert play(encode_meanwhile, ray_folder, config, 2, one_is_lost, **SOON) == (0, "one")
    assert digests(config.cache.root) == digests(cached.cache.root)


def one_after_the_other_is_lost(nodes: Nodes, encoding: Future[int]) -> str:
    """Each in the middle of a shard, and another takes its place; the last is the only one."""
    for _ in range(3):
        nodes.nodes.append(nodes.add())
        node = nodes.nodes.pop(0)
        wait_until(lambda: is_writing(pid_of(node)), encoding)  # noqa: B023
        nodes.kill(node)
    return "three"


def one_comes(nodes: Nodes, encoding: Future[int]) -> str:
    """It is given shards too."""
    wait_until(lambda: is_writing(pid_of(nodes.nodes[0])), encoding)
    with nobody_decodes(pid_of(nodes.nodes[0])):  # all could be done before
        added = nodes.add()
        wait_until(lambda: is_writing(pid_of(added)), encoding)
    return "came"


def one_is_drained(nodes: Nodes, encoding: Future[int]) -> str:
    """A cloud tells that it will be taken away: it ends what it has, and Ray ends it once it is idle."""
    node = nodes.nodes[0]
    wait_until(lambda: is_writing(pid_of(node)), encoding)
    told = ["--address", nodes.cluster.address, "--node-id", node.node_id, "--deadline-remaining-seconds", "300"]
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "drain-node", *told, *reason], check=True)
    wait_until(lambda: node.node_id not in {one["NodeID"] for one in ray.nodes() if one["Alive"]}, encoding)
    nodes.kill(node)
    return "went before its time"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "happens", "told"),
    [
        (1, one_after_the_other_is_lost, "three"),
        (1, one_comes, "came"),
        (2, one_is_drained, "went before its time"),
    ],
)
def test_nodes_come_and_go(
    long: RunConfig, tmp_path: Path, ray_folder: Path, number: int, happens: Any, told: str
) -> None:
    config = before_encoding(long, tmp_path)
    assert play(encode_meanwhile, ray_folder, config, number, happens, **SOON) == (0, told)
    assert digests(config.cache.root) == digests(long.cache.root)


@contextmanager
def growing(folder: Path) -> Any:
    """The address and process of a head alone, whose autoscaler may start two nodes of two CPUs on this machine."""
    ports = dict(zip(("port", "dashboard-agent-listen-port", "ray-client-server-port"), free_ports(3), strict=True))
    address = f"127.0.0.1:{ports['port']}"
    plain = {"node_config": {}, "min_workers": 0}
    scaling = {
        "cluster_name": "test",
        "max_workers": 2,
        "idle_timeout_minutes": 5,
        "upscaling_speed": 10,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": address,
        },
        "available_node_types": {
            HEAD: {**plain, "resources": {"CPU": 0}, "max_workers": 0},
            "work": {**plain, "resources": {"CPU": 2}, "max_workers": 2},
        },
        "head_node_type": HEAD,
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{f"{name}_commands": [] for name in COMMANDS},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }
    (folder / "scaling.json").write_text(json.dumps(scaling))
    words = [f"--{name}={port}" for name, port in ports.items()]
    words += [f"--autoscaling-config={folder / 'scaling.json'}", "--node-ip-address=127.0.0.1", "--num-cpus=0"]
    words += ["--labels=latentmill.gpu=2x2x0", "--include-dashboard=false", "--disable-usage-stats", "--block"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *words]
    with open(folder / "head.log", "w") as log:
        head = psutil.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: runtime.listens(address))
        yield address, head.pid
    finally:
        end(head)


def encode_growing(config: RunConfig, folder: Path) -> tuple[int, int]:
    """The exit code of encoding on what an autoscaler starts, and how many nodes those were."""
    actors.LOOK_EVERY_S = 1.0
    with growing(folder) as (address, pid), ThreadPoolExecutor(1) as thread:
        ray.init(address, log_to_driver=False)
        encoding = thread.submit(encode, config)
        with nobody_decodes(pid):  # all could be done before
            wait_until(lambda: num_started() == 2, encoding)
        quarantined = encoding.result()
        text(config)
        started = num_started()
        ray.shutdown()
    return quarantined, started


def num_started() -> int:
    """Nodes besides the head."""
    return sum(bool(node["Resources"].get("CPU")) for node in ray.nodes())


@pytest.mark.slow
def test_a_head_alone_brings_the_nodes_that_it_may_have(long: RunConfig, tmp_path: Path, ray_folder: Path) -> None:
    config = before_encoding(long, tmp_path)
    asked = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    assert play(encode_growing, ray_folder, config, ray_folder, **asked) == (0, 2)
    assert digests(config.cache.root) == digests(long.cache.root)


def cut_one_off(network: Network, encoding: Future[int]) -> dict[str, float]:
    """In the middle of a shard; when it comes back it has been given up, and ends itself. Seconds that these took."""
    machine = network.machines[0]
    wait_until(lambda: is_writing(machine.node.pid), encoding)
    writers = workers(machine.node.pid, ENCODER)
    network.cut(machine)
    seen_s = wait_until(lambda: machine.address not in addresses())
    time.sleep(1.0)
    network.mend(machine)
    ended_s = wait_until(lambda: machine.node.poll() is not None)
    wait_until(lambda: not any(one.is_running() for one in writers))  # a little later: until then it may begin files
    return {"seen_s": seen_s, "ended_s": ended_s}


def addresses() -> set[str]:
    """Of the nodes that are alive."""
    return {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def encode_cut_off(config: RunConfig, folder: Path) -> tuple[int, dict[str, float]]:
    """The exit code of encoding on three machines of which one is cut off."""
    actors.LOOK_EVERY_S = 1.0
    actors.PINGS.update(PINGS)
    with Network(3, folder) as network, ThreadPoolExecutor(1) as thread:
        os.environ["RAY_ADDRESS"] = network.head_address  # as a job finds it
        runtime.connect()
        encoding = thread.submit(encode, config)
        took_s = cut_one_off(network, encoding)
        quarantined = encoding.result()
        encode(config)  # which removes what the one that was cut off left aside when it ended
        text(config)
        ray.shutdown()
    return quarantined, took_s


@pytest.mark.slow
def test_a_node_is_cut_off_in_the_middle_of_a_shard_and_comes_back(
    long: RunConfig, tmp_path: Path, ray_folder: Path
) -> None:
    if reason := why_not():
        pytest.skip(reason)
    config = before_encoding(long, tmp_path)
    quarantined, took_s = play(encode_cut_off, ray_folder, config, ray_folder, **IN_TIME)
    assert quarantined == 0 and set(took_s) == {"seen_s", "ended_s"}
    print(took_s)
    assert digests(config.cache.root) == digests(long.cache.root)
