"""What a run asks of a cluster, and whether a cluster can be that."""

from importlib.metadata import version
from math import ceil
from pathlib import PurePosixPath
from typing import Literal

from cluster.capacity import Capacity, Node
from cluster.manifests import aws, gcp
from cluster.manifests.facts import Facts, Nodes
from jobs.config import ClusterConfig, RunConfig
from jobs.placement import CHECKS, check_encoding
from jobs.run_toml import toml_document
from pipeline.errors import Refused
from pipeline.location import Location

ClusterVerb = Literal["encode", "train", "run"]
MACHINES = {"aws": aws.MACHINES, "gcp": gcp.MACHINES}
NVIDIA_AMI = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
NEEDED = {  # knobs that have no default, and what to set them to
    "aws": {
        "region": "AWS's, such as us-west-2",
        "machine_image": f"an AMI of the region, as `aws ssm get-parameter --name {NVIDIA_AMI}` tells one",
    },
    "gcp": {"region": "GCP's, such as us-central1", "project": "the id of a project"},
}


def describe_cluster(config: RunConfig, verb: ClusterVerb) -> Facts:
    """What manifests are made from."""
    wanted = config.cluster
    decode = [] if verb == "train" or not wanted.decode_nodes else [_decode_nodes(wanted)]
    return Facts(
        name=wanted.name,
        verb=verb,
        image=wanted.image,
        ray_version=version("ray"),
        run_toml=changed_knobs(config),
        nodes=(*decode, _gpu_nodes(config, verb)),
        volume=wanted.volume,
        mount=str(wanted.mount),
        secret=wanted.secret,
        service_account=wanted.service_account,
        queue=wanted.queue,
        retries=wanted.retries,
        time_limit_s=wanted.time_limit_s,
        grace_s=wanted.grace_s,
        redis=wanted.redis,
        redis_secret=wanted.redis_secret,
        region=wanted.region,
        zone=wanted.zone,
        project=wanted.project,
        gpu_machine=wanted.gpu_machine,
        machine_image=wanted.machine_image,
        slurm_options=wanted.slurm_options,
    )


def _decode_nodes(wanted: ClusterConfig) -> Nodes:
    return Nodes(
        kind="decode",
        least=1,
        most=wanted.decode_nodes,
        cpus=wanted.decode_cpus,
        gpus=0,
        memory_bytes=wanted.decode_node_bytes,
        label=wanted.decode_label,
        spot=wanted.spot,
    )


def _gpu_nodes(config: RunConfig, verb: ClusterVerb) -> Nodes:
    """Encoding begins with one node, training with all of its own."""
    wanted, training = config.cluster, training_nodes(config)
    least, most = {
        "encode": (1, wanted.gpu_nodes),
        "train": (training, training),
        "run": (training, max(training, wanted.gpu_nodes)),
    }[verb]
    return Nodes(
        kind="gpu",
        least=least,
        most=most,
        cpus=wanted.gpu_cpus,
        gpus=wanted.gpus_per_node,
        memory_bytes=wanted.gpu_node_bytes,
        label=wanted.encode_label,
        spot=wanted.spot and verb == "encode",
    )


def training_nodes(config: RunConfig) -> int:
    """How many nodes train.workers fill."""
    return ceil(config.train.workers / max(1, workers_per_node(config)))


def workers_per_node(config: RunConfig) -> int:
    """How many of train.workers fit on a node: each has its CPUs, and one GPU where there are any."""
    by_cpus = config.cluster.gpu_cpus // config.train.cpus_per_worker
    return min(config.cluster.gpus_per_node, by_cpus) if config.cluster.gpus_per_node else by_cpus


def changed_knobs(config: RunConfig) -> str:
    """What differs from the defaults, as a run.toml for the cluster; cluster.address is for here."""
    sections = config.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    sections.get("cluster", {}).pop("address", None)
    return toml_document({name: knobs for name, knobs in sections.items() if knobs})


def check_nodes(config: RunConfig, verb: ClusterVerb, decode_nodes: int) -> None:
    """Refuse nodes on which encoders or training workers could never run."""
    wanted = config.cluster
    gpu = Node(wanted.gpu_cpus, wanted.gpus_per_node, frozenset([wanted.encode_label]))
    if verb != "train":
        decode = [Node(wanted.decode_cpus, 0, frozenset([wanted.decode_label]))] * decode_nodes
        check_encoding(config, Capacity((), (*[gpu] * wanted.gpu_nodes, *decode)))
    if verb != "encode":
        CHECKS["train"](config, Capacity((), (gpu,) * training_nodes(config)))


def check_places(config: RunConfig, verb: ClusterVerb) -> None:
    """Refuse folders that other nodes do not see."""
    wanted = config.cluster
    for knob, place in _places(config, verb):
        mounted = bool(wanted.volume) and PurePosixPath(place).is_relative_to(wanted.mount)
        if not (mounted or Location.of(place).bucket):
            store = "" if knob == "train.out" else "s3://..., gs://... or "
            raise Refused(
                f"{knob}: {place} is on this machine only; wanted {store}a folder below cluster.mount={wanted.mount}, "
                f"and in cluster.volume what is mounted there"
            )


def _places(config: RunConfig, verb: ClusterVerb) -> list[tuple[str, str]]:
    """Knobs whose folders a verb reads or writes on other nodes, and these; a hub's ids are no folders."""
    encode = [("data.source", config.data.source), ("recipe.vae_path", config.recipe.vae_path or "")]
    train = [("train.out", str(config.train.out)), ("model.init", config.model.init or "")]
    text = [("text.path", config.text.path or "")]
    found = {"encode": encode, "train": train, "run": encode + text + train}[verb]
    return [("data.cache", config.data.cache), *((knob, place) for knob, place in found if place.startswith("/"))]


def check_cloud(wanted: ClusterConfig, cloud: Literal["aws", "gcp"]) -> None:
    """Refuse what the cloud would refuse, or has no machine for."""
    for knob, what in NEEDED[cloud].items():
        if not getattr(wanted, knob):
            raise Refused(f"cluster.{knob}: empty, wanted {what}")
    machines = MACHINES[cloud]
    if wanted.decode_nodes and wanted.decode_cpus not in machines.decode:
        known = ", ".join(str(cpus) for cpus in machines.decode)
        raise Refused(f"cluster.decode_cpus: found {wanted.decode_cpus}, wanted on {cloud}: one of {known}")
    if not wanted.gpu_machine and wanted.gpus_per_node not in machines.gpu:
        known = ", ".join(str(gpus) for gpus in machines.gpu)
        raise Refused(
            f"cluster.gpus_per_node: found {wanted.gpus_per_node}, wanted on {cloud}: one of {known}, or the name of "
            f"another machine in cluster.gpu_machine"
        )
