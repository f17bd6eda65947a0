"""Files for `ray up`: Ray's own schema and its own preparation take them, and they say what the facts say."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.manifests.aws import aws_manifest
from cluster.manifests.facts import Document, Facts
from cluster.manifests.gcp import gcp_manifest
from tests.cluster_facts import DECODE, GPU, TRAIN, VARIANTS, options_of_ray, some_facts, texts

CLOUDS: dict[str, Callable[[Facts], Document]] = {"aws": aws_manifest, "gcp": gcp_manifest}
both = pytest.mark.parametrize("cloud", CLOUDS)


def prepared(cloud: str, facts: Facts) -> dict[str, Any]:
    """As `ray up` reads it, with its defaults filled in; raises what it would raise."""
    config = prepare_config(copy.deepcopy(CLOUDS[cloud](facts)))
    validate_config(config)
    return config


@both
@pytest.mark.parametrize("variant", VARIANTS)
def test_ray_takes_the_file_and_adds_nothing_that_installs_anything(cloud: str, variant: str) -> None:
    facts = some_facts(**{**VARIANTS[variant].__dict__, "gpu_machine": "big"})
    written, read = CLOUDS[cloud](facts), prepared(cloud, facts)
    for key, value in read.items():
        if key in written and key != "available_node_types":
            assert value == written[key]
    assert "ray-wheels" not in " ".join(texts(read))


@both
def test_ray_refuses_a_field_that_it_does_not_know(cloud: str) -> None:
    file = CLOUDS[cloud](some_facts())
    file["available_node_types"]["gpu"]["label"] = "stage=encode"
    with pytest.raises(Exception, match="Additional properties"):
        validate_config(prepare_config(file))


@both
def test_decoding_and_encoding_scale_each_on_nodes_of_their_own(cloud: str) -> None:
    types = prepared(cloud, some_facts(nodes=(DECODE, GPU)))["available_node_types"]
    decode, gpu = types["decode"], types["gpu"]
    assert (decode["min_workers"], decode["max_workers"], decode["labels"]) == (1, 4, {"stage": "decode"})
    assert (gpu["min_workers"], gpu["max_workers"], gpu["labels"]) == (1, 2, {"stage": "encode"})
    assert decode["resources"] == {"CPU": 16}
    assert gpu["resources"] == {"CPU": 32, "GPU": 4}


@both
def test_the_head_is_one_that_stays_and_no_task_runs_on_it(cloud: str) -> None:
    file = prepared(cloud, some_facts())
    head = file["available_node_types"][file["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert head["max_workers"] == 0
    assert "spot" not in " ".join(texts(head)).lower()


@both
def test_only_what_may_be_lost_runs_on_spot_nodes(cloud: str) -> None:
    types = prepared(cloud, some_facts(verb="run", nodes=(DECODE, TRAIN)))["available_node_types"]
    spot = [kind for kind, one in types.items() if "spot" in " ".join(texts(one["node_config"])).lower()]
    assert spot == ["decode"]
    assert types["gpu"]["min_workers"] == types["gpu"]["max_workers"] == 3


@both
def test_the_dashboard_is_bound_to_loopback_and_wants_a_token(cloud: str) -> None:
    file = prepared(cloud, some_facts())
    start = options_of_ray(file["head_start_ray_commands"][-1].partition("; ")[2])
    assert start["head"] and start["dashboard_host"] == "127.0.0.1"
    join = options_of_ray(file["worker_start_ray_commands"][-1].partition("; ")[2])
    assert join["address"] == f"$RAY_HEAD_IP:{start['port']}"
    assert "--env RAY_AUTH_MODE=token" in file["docker"]["run_options"]
    assert file["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


@both
def test_storage_is_mounted_into_the_container_where_there_is_any(cloud: str) -> None:
    file = prepared(cloud, some_facts(volume="fs-1.efs.us-west-2.amazonaws.com:/"))
    [mount] = file["initialization_commands"]
    assert "fs-1.efs.us-west-2.amazonaws.com:/ /mnt/latentmill" in mount
    assert "--volume /mnt/latentmill:/mnt/latentmill" in file["docker"]["run_options"]
    assert prepared(cloud, some_facts())["initialization_commands"] == []
    assert not any("--volume" in one for one in prepared(cloud, some_facts())["docker"]["run_options"])


@both
def test_nodes_are_to_the_store_whom_the_facts_name_and_the_head_is_rays_own(cloud: str) -> None:
    types = prepared(cloud, some_facts(service_account="mill@example"))["available_node_types"]
    named = [kind for kind, one in types.items() if "mill@example" in " ".join(texts(one))]
    assert named == ["decode", "gpu"]


@both
def test_a_machine_that_was_asked_for_is_taken(cloud: str) -> None:
    config = prepared(cloud, some_facts(gpu_machine="big"))["available_node_types"]["gpu"]["node_config"]
    assert config[{"aws": "InstanceType", "gcp": "machineType"}[cloud]] == "big"


def test_each_cloud_is_asked_for_its_place() -> None:
    assert prepared("aws", some_facts())["provider"]["region"] == "us-west-2"
    assert prepared("aws", some_facts(zone="us-west-2b"))["provider"]["availability_zone"] == "us-west-2b"
    assert "availability_zone" not in aws_manifest(some_facts())["provider"]
    gcp = prepared("gcp", some_facts(region="us-central1"))["provider"]
    assert (gcp["project_id"], gcp["availability_zone"]) == ("mine", "us-central1-a")


def test_machines_on_gcp_that_cannot_be_moved_are_not() -> None:
    types = gcp_manifest(some_facts(nodes=(DECODE, TRAIN)))["available_node_types"]
    scheduling = {kind: one["node_config"].get("scheduling", {}) for kind, one in types.items()}
    assert scheduling["gpu"] == {"onHostMaintenance": "TERMINATE", "automaticRestart": False}
    assert scheduling["decode"]["provisioningModel"] == "SPOT"
    assert scheduling["head"] == {}
