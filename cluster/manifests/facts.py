"""What a cluster is asked for: the one record that every kind of manifest is made from."""

from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]  # of YAML


@dataclass(frozen=True)
class Nodes:
    """Machines of one kind, beside the head."""

    kind: str  # "decode" or "gpu"
    least: int
    most: int
    cpus: int
    gpus: int
    memory_bytes: int
    label: str  # key=value, in Ray
    spot: bool

    @property
    def labels(self) -> dict[str, str]:
        key, _, value = self.label.partition("=")
        return {key: value}


@dataclass(frozen=True)
class Facts:
    """A cluster, and the verb that it is for. Empty texts and a time limit of 0 mean: none."""

    name: str
    verb: str
    image: str
    ray_version: str
    run_toml: str  # the whole configuration of the run
    nodes: tuple[Nodes, ...]
    volume: str
    mount: str
    secret: str
    service_account: str
    queue: str
    retries: int
    time_limit_s: int
    grace_s: int
    redis: str
    redis_secret: str
    region: str
    zone: str
    project: str
    gpu_machine: str
    machine_image: str
    slurm_options: tuple[str, ...]

    @property
    def autoscaling(self) -> bool:
        return any(one.least < one.most for one in self.nodes)


def shm_bytes(memory_bytes: int) -> int:
    """/dev/shm of a node: Ray keeps objects there, up to 30% of the memory, and processes of PyTorch share tensors."""
    return memory_bytes * 2 // 5


# The head runs Ray's own processes and the verb's driver, and no task: it is the one node that must not be lost.
HEAD_CPUS = 4
HEAD_BYTES = 16 * 2**30
