"""What the files of Ray's cluster launcher have in common, whatever the cloud: `ray up` reads them."""

from collections.abc import Callable
from dataclasses import dataclass

from cluster.capacity import growth_labels
from cluster.manifests.facts import Document, Facts, Nodes

IDLE_MINUTES = 5
DISK_GB = 250  # the image, what Ray spills, and train.shard_cache_bytes
TOKEN = "~/.ray/auth_token"  # mounted by its path; `ray get-auth-token --generate` makes it
LIMITS = "ulimit -n 65536"
HEAD = "head"

# Before the container starts, on the machine itself.
MOUNT = (
    "mountpoint -q {mount} || {{ sudo apt-get -qq update && sudo apt-get -qq install --yes nfs-common && "
    "sudo mkdir -p {mount} && sudo mount -t nfs4 -o hard,noresvport {volume} {mount}; }}"
)


@dataclass(frozen=True)
class Machines:
    """Machine types of a cloud."""

    head: str
    decode: dict[int, str]  # by CPUs
    gpu: dict[int, str]  # by GPUs

    def of(self, nodes: Nodes, facts: Facts) -> str:
        if nodes.kind == "decode":
            return self.decode[nodes.cpus]
        return facts.gpu_machine or self.gpu[nodes.gpus]


def launcher_file(facts: Facts, provider: Document, head: Document, workers: Callable[[Nodes], Document]) -> Document:
    """The cluster of `facts` at a provider; `head` and `workers` are what the provider makes of a node."""
    types = {nodes.kind: _node_type(nodes, workers(nodes)) for nodes in facts.nodes}
    return {
        "cluster_name": f"{facts.name}-{facts.verb}",
        "provider": {**provider, "cache_stopped_nodes": False},
        "auth": {"ssh_user": "ubuntu"},
        "max_workers": sum(nodes.most for nodes in facts.nodes),
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": IDLE_MINUTES,
        "docker": {"image": facts.image, "container_name": "ray", "run_options": _docker_options(facts)},
        "head_node_type": HEAD,
        "available_node_types": {
            HEAD: {"node_config": head, "resources": {"CPU": 0}, "min_workers": 0, "max_workers": 0},
            **types,
        },
        "file_mounts": {TOKEN: TOKEN},
        "initialization_commands": [MOUNT.format(mount=facts.mount, volume=facts.volume)] if facts.volume else [],
        # The image has everything.
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [
            "ray stop",
            f"{LIMITS}; ray start --head --port=6379 --object-manager-port=8076 "
            f"--autoscaling-config=~/ray_bootstrap_config.yaml --dashboard-host=127.0.0.1 --labels={_labels(facts)}",
        ],
        "worker_start_ray_commands": [
            "ray stop",
            f"{LIMITS}; ray start --address=$RAY_HEAD_IP:6379 --object-manager-port=8076",
        ],
    }


def _labels(facts: Facts) -> str:
    """The head's, as an option of `ray start`."""
    return ",".join(f"{key}={value}" for key, value in growth_labels(facts.nodes).items())


def _node_type(nodes: Nodes, node_config: Document) -> Document:
    return {
        "node_config": node_config,
        "resources": {"CPU": nodes.cpus, **({"GPU": nodes.gpus} if nodes.gpus else {})},
        "labels": nodes.labels,
        "min_workers": nodes.least,
        "max_workers": nodes.most,
    }


def _docker_options(facts: Facts) -> list[str]:
    """Of `docker run`; Ray itself sizes /dev/shm and passes GPUs through."""
    settings = {"RAY_AUTH_MODE": "token", "RAY_JOB_STOP_WAIT_TIME_S": str(facts.grace_s)}
    volume = [f"--volume {facts.mount}:{facts.mount}"] if facts.volume else []
    return [f"--env {name}={value}" for name, value in settings.items()] + volume
