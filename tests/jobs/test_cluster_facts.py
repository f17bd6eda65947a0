"""What a run asks of a cluster, and what no cluster could be."""

import re
from pathlib import Path

import pytest

from jobs.cluster_facts import (
    ClusterVerb,
    changed_knobs,
    check_cloud,
    check_nodes,
    check_places,
    describe_cluster,
    training_nodes,
)
from jobs.config import ClusterConfig, ConfigError, RunConfig
from jobs.run_toml import load_config
from pipeline.errors import Refused

MOUNTED = ["cluster.volume=shared", "data.cache=/mnt/latentmill/cache", "data.source=/mnt/latentmill/videos"]
MOUNTED += ["train.out=/mnt/latentmill/runs/first"]


def configured(*words: str) -> RunConfig:
    return load_config(None, [*MOUNTED, *words])


@pytest.mark.parametrize(
    ("workers", "gpus", "cpus_per_worker", "nodes"),
    [(1, 1, 1, 1), (8, 8, 1, 1), (9, 8, 1, 2), (8, 8, 8, 4), (4, 0, 8, 2), (1, 8, 16, 1)],
)
def test_training_has_as_many_nodes_as_its_workers_fill(
    workers: int, gpus: int, cpus_per_worker: int, nodes: int
) -> None:
    words = [f"train.workers={workers}", f"train.cpus_per_worker={cpus_per_worker}", f"cluster.gpus_per_node={gpus}"]
    config = configured(*words, "cluster.gpu_cpus=16")
    assert training_nodes(config) == nodes
    [gpu] = describe_cluster(config, "train").nodes
    assert (gpu.least, gpu.most) == (nodes, nodes)
    check_nodes(config, "train", decode_nodes=0)


@pytest.mark.parametrize(
    ("verb", "kinds", "scale", "spot"),
    [
        ("encode", ["decode", "gpu"], {"decode": (1, 4), "gpu": (1, 2)}, {"decode", "gpu"}),
        ("train", ["gpu"], {"gpu": (3, 3)}, set()),
        ("run", ["decode", "gpu"], {"decode": (1, 4), "gpu": (3, 3)}, {"decode"}),
    ],
)
def test_each_verb_has_the_nodes_it_needs(
    verb: ClusterVerb, kinds: list[str], scale: dict[str, tuple[int, int]], spot: set[str]
) -> None:
    nodes = describe_cluster(configured("train.workers=3"), verb).nodes
    assert [one.kind for one in nodes] == kinds
    assert {one.kind: (one.least, one.most) for one in nodes} == scale
    assert {one.kind for one in nodes if one.spot} == spot
    assert not any(one.spot for one in describe_cluster(configured("cluster.spot=false"), verb).nodes)


def test_nodes_are_as_the_knobs_say() -> None:
    words = ["decode_cpus=3", "decode_node_bytes=5", "decode_label=a=b", "gpu_cpus=7", "gpu_node_bytes=9"]
    words += ["encode_label=c=d", "gpus_per_node=2"]
    decode, gpu = describe_cluster(configured(*(f"cluster.{word}" for word in words)), "encode").nodes
    assert (decode.cpus, decode.gpus, decode.memory_bytes, decode.labels) == (3, 0, 5, {"a": "b"})
    assert (gpu.cpus, gpu.gpus, gpu.memory_bytes, gpu.labels) == (7, 2, 9, {"c": "d"})
    [alone] = describe_cluster(configured("cluster.decode_nodes=0"), "encode").nodes
    assert alone.kind == "gpu"


def test_every_knob_of_a_cluster_gets_into_its_facts() -> None:
    of_nodes = {"decode_nodes", "decode_cpus", "decode_node_bytes", "decode_label", "gpu_nodes", "gpus_per_node"}
    of_nodes |= {"gpu_cpus", "gpu_node_bytes", "encode_label", "spot"}
    text = {"image": "i", "volume": "v", "mount": "/m", "secret": "s", "service_account": "a", "queue": "q"}
    text |= {"redis": "r:1", "redis_secret": "p", "region": "e", "zone": "z", "project": "j", "gpu_machine": "g"}
    text |= {"machine_image": "ami-1", "name": "other"}
    numbers = {"retries": 7, "time_limit_s": 8, "grace_s": 99}
    wanted = {**text, **numbers, "slurm_options": ("--account=video",)}
    assert set(ClusterConfig.model_fields) == set(wanted) | of_nodes | {"address", "driver_cpus", "pip"}
    facts = describe_cluster(RunConfig(cluster=ClusterConfig.model_validate(wanted)), "encode")
    assert {name: getattr(facts, name) for name in wanted} == wanted


def test_the_cluster_reads_the_same_configuration(tmp_path: Path) -> None:
    config = configured(
        'train.buckets={"*" = {17 = [1, 0.5, 32]}}', 'train.mix={"/mnt/latentmill/more" = 0.5}', "cluster.queue=team"
    )
    path = tmp_path / "run.toml"
    path.write_text(changed_knobs(config))
    assert load_config(path, []) == config
    assert "lr" not in path.read_text()  # what is at its default is not repeated


def test_the_cluster_is_not_told_the_address_that_it_has_here() -> None:
    assert "10.0.0.1" not in changed_knobs(configured("cluster.address=10.0.0.1:6379"))


@pytest.mark.parametrize(
    ("word", "verbs"),
    [
        ("data.cache=/home/me/cache", ["encode", "train", "run"]),
        ("data.source=/home/me/videos", ["encode", "run"]),
        ("train.out=/home/me/runs", ["train", "run"]),
        ("model.init=/home/me/dit", ["train", "run"]),
        ("text.path=/home/me/t5", ["run"]),
        ("cluster.volume=", ["encode", "train", "run"]),
        ("data.source=gs://bucket/videos", []),
        ("model.init=owner/name", []),
    ],
)
def test_folders_that_other_nodes_do_not_see_are_refused(word: str, verbs: list[ClusterVerb]) -> None:
    every: list[ClusterVerb] = ["encode", "train", "run"]
    config = configured(word)
    for verb in every:
        if verb in verbs:
            with pytest.raises(Refused, match=r"is on this machine only; wanted .*below cluster.mount=/mnt/latentmill"):
                check_places(config, verb)
        else:
            check_places(config, verb)


def test_weights_that_other_nodes_do_not_see_are_refused() -> None:
    config = configured()
    local = config.model_copy(update={"recipe": config.recipe.model_copy(update={"vae_path": "/home/me/vae"})})
    check_places(local, "train")
    with pytest.raises(Refused, match="recipe.vae_path: /home/me/vae is on this machine only"):
        check_places(local, "encode")


def test_an_encoder_that_no_node_has_room_for_is_refused() -> None:
    check_nodes(configured(), "encode", decode_nodes=0)
    with pytest.raises(Refused, match=r"can scale to 0: lower encode.encoders"):
        check_nodes(configured("encode.encoder_cpus=17"), "encode", decode_nodes=0)
    with pytest.raises(Refused, match=r"asks for 3 encoders .* can scale to 2: "):
        check_nodes(configured("encode.encoders=3"), "encode", decode_nodes=4)


def test_a_training_worker_that_no_node_has_room_for_is_refused() -> None:
    config = configured("train.cpus_per_worker=17")
    check_nodes(config, "encode", decode_nodes=4)
    asked = "asks for one worker of 1 GPU and 17 CPUs"
    with pytest.raises(Refused, match=f"train: {asked}; .* can scale to 0: lower train.workers"):
        check_nodes(config, "train", decode_nodes=0)


@pytest.mark.parametrize(
    ("cloud", "words", "told"),
    [
        ("aws", [], "cluster.region: empty, wanted AWS's"),
        ("aws", ["region=us-west-2"], "cluster.machine_image: empty, wanted an AMI"),
        ("aws", ["region=us-west-2", "machine_image=ami-1"], ""),
        ("gcp", ["region=us-central1"], "cluster.project: empty, wanted the id"),
        ("gcp", ["region=us-central1", "project=mine"], ""),
        ("gcp", ["region=us-central1", "project=mine", "decode_cpus=17"], "cluster.decode_cpus: found 17, wanted on"),
        ("gcp", ["region=us-central1", "project=mine", "decode_cpus=17", "decode_nodes=0"], ""),
        ("gcp", ["region=us-central1", "project=mine", "gpus_per_node=3"], "cluster.gpus_per_node: found 3, wanted"),
        ("gcp", ["region=us-central1", "project=mine", "gpus_per_node=3", "gpu_machine=big"], ""),
    ],
)
def test_a_cloud_is_told_what_it_needs(cloud: str, words: list[str], told: str) -> None:
    config = configured(*(f"cluster.{word}" for word in words)).cluster
    if told:
        with pytest.raises(Refused, match=re.escape(told)):
            check_cloud(config, cloud)  # pyright: ignore[reportArgumentType]
    else:
        check_cloud(config, cloud)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "word",
    ["name=Latentmill", "name=-a", f"name={'a' * 31}", "decode_label=decode", "encode_label=a=b=c", "grace_s=5"],
)
def test_what_kubernetes_or_ray_would_refuse_is_refused_here(word: str) -> None:
    with pytest.raises(ConfigError, match=rf"^command line: cluster\.{word.partition('=')[0]}: found"):
        configured(f"cluster.{word}")
