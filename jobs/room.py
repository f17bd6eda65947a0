"""How many encoders a cluster has room for."""

from collections.abc import Sequence

from cluster.runtime import Node
from jobs.config import EncodeConfig
from pipeline.errors import Refused

GPU_PARTS = 10_000  # Ray counts GPUs in parts of this size, and drops what is less


def room(nodes: Sequence[Node], settings: EncodeConfig) -> int:
    """How many encoders can run at once, with a CPU left for a decode task.

    An encoder is on one GPU, where the cluster has any, and its CPUs are on the same node.
    """
    per_gpu = GPU_PARTS // max(1, int(settings.encoder_gpus * GPU_PARTS))
    on_gpus = any(node.gpus for node in nodes)
    fitting = sum(
        min(node.cpus // settings.encoder_cpus, node.gpus * per_gpu if on_gpus else node.cpus) for node in nodes
    )
    return max(0, min(fitting, (sum(node.cpus for node in nodes) - 1) // settings.encoder_cpus))


def count_encoders(nodes: Sequence[Node], settings: EncodeConfig, num_shards: int) -> int:
    """How many encoders to start: `encode.encoders`, or as many as fit; no more than there are shards.

    Refused where they do not fit: what has no room would wait for ever, with shards in its hands.
    """
    most = room(nodes, settings)
    on_gpus = any(node.gpus for node in nodes)
    wanted = min(settings.encoders or max(1, most if on_gpus else min(most, len(nodes))), num_shards)
    if wanted > most:
        gpus = f" and {settings.encoder_gpus:g} GPUs" if on_gpus else ""
        raise Refused(
            f"encode.encoders: {wanted} encoders of {settings.encoder_cpus} CPUs{gpus} each, with one CPU left to "
            f"decode, found room for {most} on the {len(nodes)} nodes of the cluster; lower encode.encoders, "
            f"encode.encoder_cpus or encode.encoder_gpus"
        )
    return wanted
