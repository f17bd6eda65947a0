"""As many encoders as fit: by GPU, by node, by CPU, and always with a CPU left to decode."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.runtime import Node
from jobs.config import EncodeConfig
from jobs.room import GPU_PARTS, count_encoders, room
from pipeline.errors import Refused


@pytest.mark.parametrize(
    ("nodes", "settings", "encoders"),
    [
        ([Node(16, 8)], {}, 8),
        ([Node(16, 1)], {"encoder_gpus": 0.5}, 2),
        ([Node(16, 3)], {"encoder_gpus": 0.4}, 6),  # two on each; what is left of three GPUs is no GPU
        ([Node(16, 1)], {"encoder_gpus": 0.7}, 1),
        ([Node(16, 1)], {"encoder_gpus": 1 / 7}, 7),
        ([Node(16, 1)], {"encoder_gpus": 0.1}, 10),
        ([Node(8, 8)], {}, 7),  # one CPU decodes
        ([Node(8, 8), Node(32, 0)], {}, 8),  # the other node does
        ([Node(6, 4)], {"encoder_cpus": 2}, 2),
        ([Node(3, 1), Node(3, 1)], {"encoder_cpus": 2}, 2),
        ([Node(2, 0)], {}, 1),
        ([Node(64, 0)] * 3, {}, 3),  # one per node: a VAE uses the CPUs it is given by encoder_cpus
        ([Node(64, 0)] * 3, {"encoders": 20}, 20),
        ([Node(4, 2)], {"encoders": 1}, 1),
    ],
)
def test_as_many_as_fit(nodes: list[Node], settings: dict, encoders: int) -> None:
    assert count_encoders(nodes, EncodeConfig(**settings), num_shards=100) == encoders


def test_no_more_than_there_are_shards() -> None:
    assert count_encoders([Node(64, 8)], EncodeConfig(), num_shards=3) == 3
    assert count_encoders([Node(64, 8)], EncodeConfig(encoders=8), num_shards=1) == 1


@pytest.mark.parametrize(
    ("nodes", "settings", "told"),
    [
        ([Node(64, 2)], {"encoders": 3}, "3 encoders of 1 CPUs and 1 GPUs each, .* room for 2 on the 1 nodes"),
        ([Node(4, 0)], {"encoders": 4}, "4 encoders of 1 CPUs each, .* room for 3 on the 1 nodes"),
        ([Node(3, 0), Node(3, 0)], {"encoder_cpus": 4}, "1 encoders of 4 CPUs each, .* room for 0 on the 2 nodes"),
        ([Node(1, 0)], {}, "1 encoders of 1 CPUs each, .* room for 0 on the 1 nodes"),
    ],
)
def test_more_than_fit_are_refused(nodes: list[Node], settings: dict, told: str) -> None:
    with pytest.raises(Refused, match=f"encode.encoders: {told}"):
        count_encoders(nodes, EncodeConfig(**settings), num_shards=100)


NODES = st.lists(st.builds(Node, st.integers(0, 20), st.integers(0, 8)), min_size=1, max_size=4)
SETTINGS = st.builds(EncodeConfig, encoder_cpus=st.integers(1, 6), encoder_gpus=st.floats(0.01, 1))


@given(NODES, SETTINGS)
def test_all_that_fit_find_gpus_and_cpus_and_leave_one_cpu(nodes: list[Node], settings: EncodeConfig) -> None:
    most = room(nodes, settings)
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    assert most == 0 or most * settings.encoder_cpus + 1 <= cpus
    assert not gpus or most * int(settings.encoder_gpus * GPU_PARTS) <= gpus * GPU_PARTS
