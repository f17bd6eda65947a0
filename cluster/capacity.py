"""Which nodes a cluster has, and which may still come. Its head says the latter by labels, for no autoscaler does."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import ray
from ray._private.state import state

from cluster.errors import NoCluster
from cluster.manifests.facts import Nodes

# latentmill.KIND=NODESxCPUSxGPUS: the cluster has so many nodes of a kind at the most. latentmill.KIND.KEY=VALUE: they
# are labelled KEY=VALUE.
PREFIX = "latentmill."
SIZE = re.compile(r"(\d+)x(\d+)x(\d+)")


@dataclass(frozen=True)
class Node:
    """What a machine of the cluster offers."""

    cpus: int
    gpus: int
    labels: frozenset[str] = frozenset()  # key=value


@dataclass(frozen=True)
class Capacity:
    """The nodes of a cluster: those that are alive, and those that come where they are needed."""

    alive: tuple[Node, ...]
    coming: tuple[Node, ...] = ()

    @property
    def possible(self) -> tuple[Node, ...]:
        return self.alive + self.coming


def capacity() -> Capacity:
    """Of the cluster that this process is connected to; a node that will be taken away is not counted."""
    leaving = state.get_draining_nodes()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    alive = tuple(
        Node(
            cpus=int(node["Resources"].get("CPU", 0)),
            gpus=int(node["Resources"].get("GPU", 0)),
            labels=frozenset(f"{key}={value}" for key, value in node["Labels"].items()),
        )
        for node in nodes
    )
    return Capacity(alive, to_come(alive))


def growth_labels(groups: Iterable[Nodes]) -> dict[str, str]:
    """The labels of a head whose cluster may have these nodes."""
    labels = {}
    for nodes in groups:
        labels[f"{PREFIX}{nodes.kind}"] = f"{nodes.most}x{nodes.cpus}x{nodes.gpus}"
        labels |= {f"{PREFIX}{nodes.kind}.{key}": value for key, value in nodes.labels.items()}
    return labels


def to_come(alive: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes that the head's labels speak of and that are not alive; NoCluster where a label cannot be read."""
    sizes: dict[str, str] = {}
    labels: dict[str, set[str]] = defaultdict(set)
    for label in (label for node in alive for label in node.labels if label.startswith(PREFIX)):
        name, _, value = label.removeprefix(PREFIX).partition("=")
        kind, dot, key = name.partition(".")
        if dot:
            labels[kind].add(f"{key}={value}")
        else:
            sizes[kind] = value
    coming: list[Node] = []
    for kind, size in sorted(sizes.items()):
        if (found := SIZE.fullmatch(size)) is None:
            raise NoCluster(f"label {PREFIX}{kind} of a node: found {size}, wanted NODESxCPUSxGPUS, such as 4x16x0")
        most, cpus, gpus = map(int, found.groups())
        node = Node(cpus, gpus, frozenset(labels[kind]))
        coming += [node] * (most - sum(node.labels <= one.labels and bool(one.cpus) for one in alive))
    return tuple(coming)
