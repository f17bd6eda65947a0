"""Work goes where it belongs, as much as fits, never so much that nothing is decoded; what cannot be is refused."""

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.capacity import Capacity, Node
from jobs.config import RunConfig
from jobs.placement import (
    CHECKS,
    PARTS,
    ask_decoding,
    ask_encoding,
    ask_training,
    ask_writing,
    check_encoding,
    count_encoders,
    fitting,
    least_cpus,
    one_each,
    room,
    room_to_encode,
)
from pipeline.errors import Refused

HEAD = Node(0, 0)
DECODE, ENCODE = frozenset(["stage=decode", "ray.io/node-id=d"]), frozenset(["stage=encode"])


def configured(**sections: dict) -> RunConfig:
    return RunConfig.model_validate(sections)


def encoders(capacity: Capacity, **settings: float) -> int:
    config = configured(encode=settings)
    encoder, decode = ask_encoding(config, capacity), ask_decoding(config, capacity, "encode")
    return count_encoders(encoder, decode, capacity, config.encode.encoders)


@pytest.mark.parametrize(
    ("nodes", "settings", "number"),
    [
        ([Node(16, 8)], {}, 8),
        ([Node(16, 1)], {"encoder_gpus": 0.5}, 2),
        ([Node(16, 3)], {"encoder_gpus": 0.4}, 6),  # two on each; what is left of three GPUs is no GPU
        ([Node(16, 1)], {"encoder_gpus": 0.7}, 1),
        ([Node(16, 1)], {"encoder_gpus": 1 / 7}, 7),
        ([Node(16, 1)], {"encoder_gpus": 0.1}, 10),
        ([Node(8, 8)], {}, 7),  # one CPU decodes
        ([Node(8, 8)], {"decode_cpus": 2}, 6),
        ([Node(8, 8)], {"decode_cpus": 0.5}, 7),
        ([Node(8, 8), Node(32, 0)], {}, 8),  # the other node does
        ([Node(6, 4)], {"encoder_cpus": 2}, 2),
        ([Node(3, 1), Node(3, 1)], {"encoder_cpus": 2}, 2),
        ([Node(2, 0)], {}, 1),
        ([Node(64, 0)] * 3, {}, 3),  # one per node: a VAE uses the CPUs it is given by encoder_cpus
        ([HEAD, Node(64, 0)], {}, 1),
        ([Node(64, 0)] * 3, {"encoders": 20}, 20),
        ([Node(4, 2)], {"encoders": 1}, 1),
        ([Node(4, 0, DECODE), Node(4, 0, ENCODE)], {"encoders": 9}, 4),  # none where videos are decoded
        ([Node(4, 0, DECODE), Node(4, 4)], {}, 4),
        ([Node(4, 4, DECODE), Node(4, 0, ENCODE)], {}, 1),  # GPUs elsewhere are not for encoders
    ],
)
def test_as_many_as_fit(nodes: list[Node], settings: dict, number: int) -> None:
    assert encoders(Capacity(tuple(nodes)), **settings) == number


GPU, GPU_TO_COME = Node(8, 1, ENCODE), Node(8, 4, ENCODE)


@pytest.mark.parametrize(
    ("alive", "coming", "settings", "number"),
    [
        ([Node(8, 0, DECODE), GPU], [GPU_TO_COME] * 2, {}, 9),  # asking for them is what brings the nodes
        ([Node(8, 0, DECODE), GPU], [GPU_TO_COME] * 2, {"encoders": 3}, 3),
        ([Node(8, 0, DECODE)], [GPU_TO_COME], {}, 4),
        ([HEAD], [GPU_TO_COME, Node(8, 0, DECODE)], {}, 4),
        ([GPU], [GPU_TO_COME, Node(8, 0, DECODE)], {}, 5),  # those at work are kept where all that decode are lost
        ([HEAD], [Node(8, 4)] * 2, {}, 8),  # too few to keep one of these nodes from decoding
        ([HEAD], [Node(2, 2)] * 2, {}, 1),  # more once there is a node to decode on
        ([Node(2, 2)], [Node(2, 2)] * 3, {}, 1),  # a second one would take the CPU that decodes
        ([Node(2, 0), Node(2, 0)], [Node(2, 0)] * 6, {}, 3),
        ([], [], {}, 0),
        ([HEAD], [], {"encoders": 4}, 0),  # all nodes are gone; others may join
    ],
)
def test_encoders_are_asked_for_that_nodes_may_still_come_for(
    alive: list[Node], coming: list[Node], settings: dict, number: int
) -> None:
    assert encoders(Capacity(tuple(alive), tuple(coming)), **settings) == number


LABELS = st.frozensets(st.sampled_from(["stage=encode", "stage=decode"]))
NODES = st.lists(st.builds(Node, st.integers(0, 6), st.integers(0, 3), LABELS), min_size=1, max_size=3)
ENCODE_SETTINGS = st.fixed_dictionaries(
    {
        "encoder_cpus": st.integers(1, 3),
        "encoder_gpus": st.floats(0.2, 1),
        "decode_cpus": st.sampled_from([0.5, 1.0, 2.0]),
    }
)


@given(NODES, ENCODE_SETTINGS)
def test_wherever_ray_puts_all_that_fit_something_is_decoded(nodes: list[Node], settings: dict) -> None:
    """Every way to place them is tried: so many on each node as it holds."""
    capacity, config = Capacity(tuple(nodes)), configured(encode=settings)
    encoder, decode = ask_encoding(config, capacity), ask_decoding(config, capacity, "encode")
    most = room_to_encode(encoder, decode, nodes)
    for counts in product(*(range(fitting(encoder, node) + 1) for node in nodes)):
        if sum(counts) == most > 0:
            left = [Node(n.cpus - k * settings["encoder_cpus"], 0, n.labels) for n, k in zip(nodes, counts)]
            assert room(decode, left) > 0
            assert all(
                not encoder.gpus or k * int(encoder.gpus * PARTS) <= n.gpus * PARTS for n, k in zip(nodes, counts)
            )


@pytest.mark.parametrize(
    ("capacity", "labels"),
    [
        (Capacity((Node(8, 0),)), {}),  # a laptop
        (Capacity((Node(8, 0, frozenset(["stage=decoded", "stages=decode"])),)), {}),
        (Capacity((HEAD, Node(8, 0, DECODE))), {"stage": "decode"}),
        (Capacity((HEAD,), (Node(8, 0, DECODE),)), {"stage": "decode"}),
    ],
)
def test_a_label_is_asked_for_where_a_node_has_it_or_may_come_with_it(capacity: Capacity, labels: dict) -> None:
    ask = ask_decoding(configured(encode={"decode_cpus": 2}), capacity, "scan")
    assert ask.options == {"num_cpus": 2, "num_gpus": 0, "label_selector": labels}


def test_text_goes_where_encoding_goes_one_per_gpu_or_node() -> None:
    gpus = Capacity((HEAD, Node(8, 0, DECODE)), (Node(8, 2, ENCODE),) * 2)
    ask = ask_writing(RunConfig(), gpus)
    assert ask.options == {"num_cpus": 1, "num_gpus": 1, "label_selector": {"stage": "encode"}}
    assert one_each(ask, gpus.possible) == 4
    cpus = (HEAD, Node(8, 0), Node(8, 0))
    assert one_each(ask_writing(RunConfig(), Capacity(cpus)), cpus) == 2


def test_training_workers_have_a_gpu_each_and_their_cpus_beside_it() -> None:
    config = configured(train={"workers": 4, "cpus_per_worker": 4})
    nodes = (Node(8, 8), Node(64, 0), Node(3, 1))
    assert room(ask_training(config, Capacity(nodes)), nodes) == 2
    assert room(ask_training(config, Capacity(nodes[1:2])), nodes[1:2]) == 16


def test_a_laptops_ray_has_slots_for_an_encoder_beside_a_decode_task() -> None:
    assert least_cpus(configured(encode={"encoder_cpus": 2, "decode_cpus": 1.5})) == 4


SIX = Capacity((HEAD, *[Node(8, 1)] * 4), (Node(8, 1),) * 2)


@pytest.mark.parametrize(
    ("verb", "sections", "capacity", "told"),
    [
        (
            "encode",
            {"encode": {"encoders": 8, "encoder_cpus": 4}},
            SIX,
            "encode: asks for 8 encoders of 1 GPU and 4 CPUs each, with room left to decode; the cluster has room for "
            "4 on 4 nodes and can scale to 6: lower encode.encoders, encode.encoder_gpus or encode.encoder_cpus, or "
            "let the cluster have more or larger nodes",
        ),
        (
            "train",
            {"train": {"workers": 8}},
            SIX,
            "train: asks for 8 workers of 1 GPU and 1 CPU each; the cluster has room for 4 on 4 nodes and can scale to "
            "6: lower train.workers or train.cpus_per_worker, or let the cluster have more or larger nodes",
        ),
        ("train", {"train": {"workers": 9, "min_workers": 7}}, SIX, "asks for 7 workers.*: lower train.min_workers"),
        ("train", {"train": {"workers": 3, "cpus_per_worker": 9}}, SIX, "room for 0 on 4 nodes and can scale to 0"),
        ("encode", {}, Capacity((Node(1, 0),)), "asks for one encoder of 1 CPU, .* has room for 0 on 1 node: lower"),
        ("encode", {"encode": {"encoder_cpus": 4}}, Capacity((Node(3, 0),) * 2), "room for 0 on 2 nodes: lower"),
        (
            "encode",
            {"encode": {"encoders": 2}},
            Capacity((Node(9, 0, DECODE), Node(1, 0, ENCODE))),
            "2 encoders of 1 CPU each on nodes labelled stage=encode, .* room for 1 ",
        ),
        ("scan", {}, Capacity((HEAD,)), "scan: asks for one decode task of 1 CPU; .* room for 0 on 0 nodes: lower"),
        ("text", {}, Capacity((Node(0, 1),)), "text: asks for one text encoder of 1 GPU and 1 CPU; .* room for 0 "),
        ("verify", {}, Capacity((HEAD,)), "verify: asks for one verifier of 1 CPU; "),
    ],
)
def test_what_a_cluster_can_never_hold_is_refused(verb: str, sections: dict, capacity: Capacity, told: str) -> None:
    with pytest.raises(Refused, match=told if ".*" in told else re.escape(told)) as refused:
        CHECKS[verb](configured(**sections), capacity)
    assert "\n" not in str(refused.value)


def test_what_nodes_may_still_come_for_is_waited_for() -> None:
    config = configured(encode={"encoders": 6}, train={"workers": 6, "min_workers": 4})
    assert check_encoding(config, SIX) == (
        "encode: waiting for nodes: asks for 6 encoders of 1 GPU and 1 CPU each, with room left to decode; the cluster "
        "has room for 4 on 4 nodes and can scale to 6"
    )
    assert CHECKS["train"](config, SIX) == ""  # it begins with four
    assert CHECKS["scan"](config, SIX) == CHECKS["encode"](RunConfig(), SIX) == ""
    assert CHECKS["scan"](config, Capacity((HEAD,), (Node(1, 0),))).startswith("scan: waiting for nodes: ")
