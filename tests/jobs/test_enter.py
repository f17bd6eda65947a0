"""Verbs on clusters of several nodes: work goes where it belongs, waits for nodes that come, and else is refused."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from cluster.capacity import growth_labels
from cluster.manifests.facts import Nodes
from jobs.config import RunConfig
from jobs.encode import encode
from jobs.plan import plan
from jobs.run import run
from jobs.scan import scan
from jobs.text import text
from jobs.verify import verify
from pipeline.errors import Refused
from tests.conftest import before_encoding, cache_config, digests

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_task_events_report_interval_ms": "10",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}
linux = pytest.mark.skipif(sys.platform != "linux", reason="each node has a loopback address of its own")


def played(scene: Callable[..., None], folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> Any:
    """What a scene sends, of a process and a Ray of its own."""
    for name, value in {**ENVIRONMENT, "RAY_TMPDIR": str(folder)}.items():
        monkeypatch.setenv(name, value)  # here, for Ray reads some of them when it is imported
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=scene, args=(*arguments, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def where_it_ran(names: set[str]) -> dict[str, set[str]]:
    """The addresses of the nodes on which such tasks and methods of actors ran."""
    ran = defaultdict(set)
    for event in ray.timeline() or []:
        if (name := event["cat"].removeprefix("task::")) in names:
            ran[name].add(event["pid"])
    return dict(ran)


DECODED, ENCODED = "127.0.0.2", "127.0.0.3"


def on_labelled_nodes(config: RunConfig, verbs: list[Callable[[RunConfig], int]], names: set[str], end: Any) -> None:
    """Verbs, on a node that decodes and another that encodes."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for place, label in ((DECODED, "decode"), (ENCODED, "encode")):
        cluster.add_node(num_cpus=2, labels={"stage": label}, node_ip_address=place)
    ray.init(address=cluster.address, log_to_driver=False)
    for verb in verbs:
        verb(config)
    end.send(where_it_ran(names))
    ray.shutdown()
    cluster.shutdown()


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("verbs", "places"),
    [
        ([scan, plan, encode], {"read_files": DECODED, "decode": DECODED, "ShardEncoder.__init__": ENCODED}),
        ([scan, plan, encode, text, verify], {"TextWriter.__init__": ENCODED, "Verifier.__init__": DECODED}),
    ],
    ids=["encode", "text and verify"],
)
def test_work_goes_to_nodes_with_its_label(
    ray_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    shapes: Path,
    verbs: list[Callable[[RunConfig], int]],
    places: dict[str, str],
) -> None:
    config = cache_config(shapes, ray_folder, "encode.forecast=false")
    ran = played(on_labelled_nodes, ray_folder, monkeypatch, config, verbs, set(places))
    assert ran == {name: {place} for name, place in places.items()}


DECODE = Nodes("decode", least=0, most=1, cpus=1, gpus=0, memory_bytes=0, label="stage=decode", spot=True)
GPU = Nodes("gpu", least=0, most=2, cpus=1, gpus=1, memory_bytes=0, label="stage=encode", spot=True)
HEAD = "f" * 51 + "00000"  # what Ray's provider of nodes that are processes takes for the head
KINDS = {
    nodes.kind: {
        "resources": {"CPU": nodes.cpus, "GPU": nodes.gpus},
        "labels": nodes.labels,
        "node_config": {},
        "min_workers": nodes.least,
        "max_workers": nodes.most,
    }
    for nodes in (DECODE, GPU)
}
COMMANDS = ("setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray", "initialization")


def autoscaling(address: str) -> dict[str, Any]:
    """A cluster whose nodes are started as processes of this machine, by Ray's own autoscaler."""
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "head_node_id": HEAD,
        "gcs_address": address,
        "launch_multiple": True,
        "foreground_node_launch": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    return {
        "cluster_name": "test",
        "max_workers": 3,
        "idle_timeout_minutes": 60,
        "provider": provider,
        "head_node_type": "ray.head.default",
        "available_node_types": {"ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0}, **KINDS},
        "file_mounts": {},
        "cluster_synced_files": [],
        **{f"{name}_commands": [] for name in COMMANDS},
    }


@contextmanager
def autoscaled(folder: Path) -> Iterator[str]:
    """The address of a head without CPUs that says what nodes may come, and of an autoscaler that has them come."""
    port = 20_000 + os.getpid() % 10_000
    address = f"{ray.util.get_node_ip_address()}:{port}"
    (folder / "cluster.json").write_text(json.dumps(autoscaling(address)))
    environment = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "RAY_NODE_TYPE_NAME": "ray.head.default"}
    environment |= {"RAY_CLOUD_INSTANCE_ID": HEAD, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD}
    labels = ",".join(f"{key}={value}" for key, value in growth_labels([DECODE, GPU]).items())
    options = ["--head", "--block", f"--port={port}", "--num-cpus=0", f"--labels={labels}", "--include-dashboard=false"]
    options += [f"--autoscaling-config={folder / 'cluster.json'}", "--disable-usage-stats"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options]
    log = folder / "head.log"
    with log.open("w") as out:
        head = subprocess.Popen(command, env={**os.environ, **environment}, stdout=out, stderr=out)
    try:
        while "Ray runtime started" not in log.read_text():
            assert head.poll() is None, log.read_text()
            time.sleep(0.1)
        yield address
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait()
        for process in psutil.process_iter(["cmdline"]):  # nodes that the autoscaler has started outlive it
            if any(str(folder) in word for word in process.info["cmdline"] or []) and process.pid != os.getpid():
                process.kill()


def on_nodes_that_come(config: RunConfig, folder: Path, end: Any) -> None:
    """Encode where there is no node yet; first with more encoders than there can ever be, and in a whole run."""
    with autoscaled(folder) as address:
        config = changed(config, "cluster", address=address)
        asking, refused = changed(config, "encode", encoders=3), []
        for verb, given in ((encode, asking), (run, changed(config, "train", workers=3))):
            with pytest.raises(Refused) as error:
                verb(given)
            refused.append(str(error.value))
        encode(config)
        end.send((refused, set(where_it_ran({"decode", "ShardEncoder.__init__"}))))
        ray.shutdown()


def changed(config: RunConfig, section: str, **knobs: Any) -> RunConfig:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=knobs)})


@linux
@pytest.mark.slow
def test_nodes_are_waited_for_that_the_autoscaler_can_start_and_no_others(
    cached: RunConfig, ray_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    config = before_encoding(cached, ray_folder)
    refused, ran = played(on_nodes_that_come, ray_folder, monkeypatch, config, ray_folder)
    assert refused == [
        "encode: asks for 3 encoders of 1 GPU and 1 CPU each on nodes labelled stage=encode, with room left to decode; "
        "the cluster has room for 0 on 0 nodes and can scale to 2: lower encode.encoders, encode.encoder_gpus or "
        "encode.encoder_cpus, or let the cluster have more or larger nodes",
        "train: asks for 3 workers of 1 GPU and 1 CPU each; the cluster has room for 0 on 0 nodes and can scale to 2: "
        "lower train.workers or train.cpus_per_worker, or let the cluster have more or larger nodes",
    ]
    told = "encode: waiting for nodes: asks for one encoder of 1 GPU and 1 CPU on nodes labelled stage=encode"
    assert told in capfd.readouterr().out
    assert ran == {"decode", "ShardEncoder.__init__"}
    assert digests(config.cache.latents) == digests(cached.cache.latents)
