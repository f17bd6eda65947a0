"""What a cluster has, and what its head says may come."""

from dataclasses import replace

import pytest

from cluster.capacity import Capacity, Node, capacity, growth_labels, to_come
from cluster.errors import NoCluster
from cluster.manifests.aws import aws_manifest
from cluster.manifests.gcp import gcp_manifest
from cluster.manifests.kuberay import cluster_manifest, job_manifest
from tests.cluster_facts import DECODE, options_of_ray, some_facts

GPU = replace(DECODE, kind="gpu", most=3, cpus=8, gpus=4, label="team.stage=en.code")
COMING_DECODE = Node(16, 0, frozenset(["stage=decode"]))
COMING_GPU = Node(8, 4, frozenset(["team.stage=en.code"]))


def head(labels: dict[str, str]) -> Node:
    return Node(0, 0, frozenset(f"{key}={value}" for key, value in labels.items()))


def test_a_heads_labels_tell_which_nodes_may_come() -> None:
    labels = growth_labels([DECODE, GPU])
    assert labels["latentmill.decode"] == "4x16x0"
    assert list(to_come([head(labels)])) == [COMING_DECODE] * 4 + [COMING_GPU] * 3


def test_nodes_that_are_there_do_not_come_again() -> None:
    there = [head(growth_labels([DECODE, GPU])), COMING_GPU, *[Node(12, 0, COMING_DECODE.labels | {"zone=a"})] * 5]
    assert list(to_come(there)) == [COMING_GPU] * 2


def test_no_nodes_come_to_a_cluster_whose_head_tells_of_none() -> None:
    assert to_come([Node(8, 1, frozenset(["stage=encode", "latentmill-gpu=3x8x2"]))]) == ()
    assert Capacity((COMING_GPU,), (COMING_DECODE,)).possible == (COMING_GPU, COMING_DECODE)


def test_a_label_that_cannot_be_read_is_told() -> None:
    with pytest.raises(NoCluster, match="label latentmill.gpu of a node: found two, wanted NODESxCPUSxGPUS"):
        to_come([head({"latentmill.gpu": "two"})])


def test_this_machine_is_one_node(local_ray: None) -> None:
    found = capacity()
    assert [(node.cpus > 1, node.gpus) for node in found.alive] == [(True, 0)]
    assert found.coming == ()


def test_the_heads_of_all_manifests_tell_what_may_come() -> None:
    facts = some_facts(nodes=(DECODE, GPU))
    job, cluster = job_manifest(facts)[-1]["spec"]["rayClusterSpec"], cluster_manifest(facts)[-1]["spec"]
    heads = [one["headGroupSpec"]["labels"] for one in (job, cluster)]
    for file in (aws_manifest(facts), gcp_manifest(facts)):
        start = options_of_ray(file["head_start_ray_commands"][-1].partition("; ")[2])
        heads.append(dict(label.split("=") for label in start["labels"].split(",")))
    for labels in heads:
        assert list(to_come([head(labels)])) == [COMING_DECODE] * 4 + [COMING_GPU] * 3
