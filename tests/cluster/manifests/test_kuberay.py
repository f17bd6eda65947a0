"""RayJobs and RayClusters: KubeRay's own schema takes them, and they say what the facts say."""

import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.manifests.facts import Document, Facts
from cluster.manifests.kuberay import cluster_manifest, job_manifest
from tests.cluster_facts import ALL_ASKED, DECODE, GPU, TRAIN, VARIANTS, options_of_ray, some_facts, texts

SCHEMAS = Path(__file__).resolve().parents[3] / "../shared/schemas"
KINDS: dict[str, Callable[[Facts], list[Document]]] = {"RayJob": job_manifest, "RayCluster": cluster_manifest}
both = pytest.mark.parametrize("kind", KINDS)


def strict(schema: Any) -> Any:
    """A structural schema of Kubernetes as a JSON schema that refuses unknown fields, as the API server drops them."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed: dict[str, Any] = {key: strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        closed = {"type": ["integer", "string"]}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and not open_ended:
        closed["additionalProperties"] = False
    return closed


@cache
def validator_of(kind: str) -> Any:
    path = SCHEMAS / f"ray.io_{kind.lower()}s.yaml"
    if not path.exists():
        pytest.skip("needs KubeRay's custom resource definitions")
    definition = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    [version] = [one for one in definition["spec"]["versions"] if one["name"] == "v1"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def made(kind: str, facts: Facts) -> Document:
    [found] = [one for one in KINDS[kind](facts) if one["kind"] == kind]
    return found


def cluster_of(document: Document) -> Document:
    return document["spec"].get("rayClusterSpec", document["spec"])


def pods_of(document: Document) -> dict[str, Document]:
    """By what they are: the pod specs of a RayJob or RayCluster."""
    spec = cluster_of(document)
    groups = {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    submitter = document["spec"].get("submitterPodTemplate")
    found = {"head": spec["headGroupSpec"]["template"], **groups, **({"submitter": submitter} if submitter else {})}
    return {name: pod["spec"] for name, pod in found.items()}


@both
@pytest.mark.parametrize("variant", VARIANTS)
def test_kuberay_knows_every_field(kind: str, variant: str) -> None:
    problems = [
        f"{'/'.join(map(str, error.path))}: {error.message}"
        for error in validator_of(kind).iter_errors(made(kind, VARIANTS[variant]))
    ]
    assert problems == []


@both
@pytest.mark.parametrize("place", ["", "headGroupSpec", "workerGroupSpecs/0/template/spec/containers/0/resources"])
def test_the_validator_refuses_a_field_that_kuberay_does_not_know(kind: str, place: str) -> None:
    document = made(kind, some_facts())
    spot: Any = cluster_of(document)
    for step in place.split("/") if place else []:
        spot = spot[int(step)] if step.isdigit() else spot[step]
    assert validator_of(kind).is_valid(document)
    spot["nodeSelectors"] = {}
    assert not validator_of(kind).is_valid(document)


@both
def test_names_are_as_kubernetes_and_kuberay_take_them(kind: str) -> None:
    for document in KINDS[kind](some_facts(name="a" * 30)):
        assert len(document["metadata"]["name"].removesuffix("-config")) <= 47


def test_decoding_and_encoding_scale_each_on_nodes_of_their_own() -> None:
    spec = cluster_of(made("RayJob", some_facts()))
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    decode, gpu = spec["workerGroupSpecs"]
    assert (decode["minReplicas"], decode["maxReplicas"], decode["labels"]) == (1, 4, {"stage": "decode"})
    assert (gpu["minReplicas"], gpu["maxReplicas"], gpu["labels"]) == (1, 2, {"stage": "encode"})
    pods = pods_of(made("RayJob", some_facts()))
    amounts = {name: pod["containers"][0]["resources"]["limits"] for name, pod in pods.items()}
    assert amounts["decode"] == {"cpu": "16", "memory": "32768Mi"}
    assert amounts["gpu"] == {"cpu": "32", "memory": "65536Mi", "nvidia.com/gpu": "4"}


@both
def test_training_has_all_its_nodes_at_once_and_does_not_scale(kind: str) -> None:
    document = made(kind, VARIANTS["train"])
    spec = cluster_of(document)
    assert "enableInTreeAutoscaling" not in spec
    [group] = spec["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 3
    assert document["metadata"]["labels"]["ray.io/gang-scheduling-enabled"] == "true"


@both
def test_what_waits_in_a_queue_of_kueue_is_suspended_and_does_not_scale(kind: str) -> None:
    document = made(kind, some_facts(queue="team"))
    assert document["spec"]["suspend"] is True
    assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert "enableInTreeAutoscaling" not in cluster_of(document)
    assert all(group["replicas"] == group["maxReplicas"] for group in cluster_of(document)["workerGroupSpecs"])
    free = made(kind, some_facts())
    assert free["spec"]["suspend"] is False
    assert "kueue.x-k8s.io/queue-name" not in free["metadata"]["labels"]


@both
def test_no_task_runs_on_the_head(kind: str) -> None:
    assert cluster_of(made(kind, some_facts()))["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@both
@pytest.mark.parametrize("variant", VARIANTS)
def test_pods_run_as_nobody_in_particular(kind: str, variant: str) -> None:
    document = made(kind, VARIANTS[variant])
    for pod in pods_of(document).values():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert not any("hostPath" in volume for volume in pod["volumes"])
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    for name, pod in pods_of(document).items():
        assert pod.get("automountServiceAccountToken", True) is (name == "head")


@both
def test_tokens_and_credentials_are_there_by_reference_only(kind: str) -> None:
    document = made(kind, VARIANTS["all asked"])
    assert cluster_of(document)["authOptions"] == {"mode": "token"}
    for name, pod in pods_of(document).items():
        [container] = pod["containers"]
        assert container.get("envFrom", []) == ([] if name == "submitter" else [{"secretRef": {"name": "keys"}}])
        assert all("TOKEN" not in one["name"] and "PASSWORD" not in one["name"] for one in container.get("env", []))
    assert "auth_token" not in " ".join(texts(document))


@both
def test_only_the_cluster_and_the_operator_reach_the_pods(kind: str) -> None:
    documents = KINDS[kind](some_facts())
    [policy] = [one for one in documents if one["kind"] == "NetworkPolicy"]
    selector = policy["spec"]["podSelector"]["matchLabels"]
    document = made(kind, some_facts())
    templates = [cluster_of(document)["headGroupSpec"], *cluster_of(document)["workerGroupSpecs"]]
    labels = [one["template"]["metadata"]["labels"] for one in templates]
    if kind == "RayJob":
        labels.append(document["spec"]["submitterPodTemplate"]["metadata"]["labels"])
    assert all(selector.items() <= one.items() for one in labels)
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    own, operator, prometheus = policy["spec"]["ingress"]
    assert own == {"from": [{"podSelector": {"matchLabels": selector}}]}
    assert [one["port"] for one in operator["ports"]] == [8265]
    assert [one["port"] for one in prometheus["ports"]] == [8080]
    assert all("podSelector" in one for rule in (own, operator, prometheus) for one in rule["from"])
    assert cluster_of(document)["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_a_job_is_run_again_and_its_nodes_are_given_back() -> None:
    spec = made("RayJob", some_facts(retries=5))["spec"]
    assert (spec["backoffLimit"], spec["shutdownAfterJobFinishes"], spec["ttlSecondsAfterFinished"]) == (5, True, 600)
    assert "activeDeadlineSeconds" not in spec
    assert made("RayJob", some_facts(time_limit_s=7))["spec"]["activeDeadlineSeconds"] == 7


@pytest.mark.parametrize(("code", "told"), [(0, 0), (3, 0), (1, 1), (143, 143)])
def test_a_job_with_inputs_in_the_quarantine_is_done(
    code: int, told: int, shell: Callable[..., tuple[int, str]]
) -> None:
    config, _, job = job_manifest(some_facts(verb="encode"))
    assert config["data"]["run.toml"] == some_facts().run_toml
    assert job["spec"]["entrypoint"].endswith("/job.sh")
    assert shell(config["data"]["job.sh"], exit_code=code) == (told, "-m jobs encode /etc/latentmill/run.toml")


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Run a script where `python` writes down its arguments and ends as it is told."""

    def run(script: str, exit_code: int) -> tuple[int, str]:
        stand_in = tmp_path / "python"
        stand_in.write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/called\nexit {exit_code}\n')
        stand_in.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        done = subprocess.run(["bash", "-c", script])
        return done.returncode, (tmp_path / "called").read_text().strip()

    return run


@both
def test_the_job_finds_its_configuration_on_the_head_alone(kind: str) -> None:
    mounted = {
        name: [one["mountPath"] for one in pod["containers"][0].get("volumeMounts", [])]
        for name, pod in pods_of(made(kind, some_facts())).items()
    }
    found = [name for name, paths in mounted.items() if "/etc/latentmill" in paths]
    assert found == (["head"] if kind == "RayJob" else [])


@both
def test_shared_storage_is_mounted_on_all_nodes_where_there_is_any(kind: str) -> None:
    for volume in ("", "shared"):
        for name, pod in pods_of(made(kind, some_facts(volume=volume))).items():
            claims = [one["persistentVolumeClaim"] for one in pod["volumes"] if "persistentVolumeClaim" in one]
            mounts = [one["mountPath"] for one in pod["containers"][0].get("volumeMounts", [])]
            wanted = bool(volume) and name != "submitter"
            assert claims == ([{"claimName": "shared"}] if wanted else [])
            assert ("/mnt/latentmill" in mounts) is wanted
            assert {one["name"] for one in pod["containers"][0].get("volumeMounts", [])} == {
                one["name"] for one in pod["volumes"]
            }


@both
def test_dev_shm_holds_rays_objects_and_leaves_room_for_processes(kind: str) -> None:
    for name, pod in pods_of(made(kind, some_facts())).items():
        if name == "submitter":
            continue
        [shm] = [one["emptyDir"] for one in pod["volumes"] if one["name"] == "shm"]
        assert shm["medium"] == "Memory"
        limit = pod["containers"][0]["resources"]["limits"]["memory"]
        share = int(shm["sizeLimit"].removesuffix("Mi")) / int(limit.removesuffix("Mi"))
        assert 0.3 < share < 0.5


@both
def test_a_node_that_has_to_go_has_time_for_a_checkpoint(kind: str) -> None:
    for name, pod in pods_of(made(kind, some_facts(grace_s=300))).items():
        assert pod["terminationGracePeriodSeconds"] == 300
        if name in ("decode", "gpu"):
            [_, _, script] = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            told = options_of_ray(script.partition(" || ")[0])
            assert (told["reason"], told["deadline_remaining_seconds"]) == ("DRAIN_NODE_REASON_PREEMPTION", 295)
            assert "timeout 295 " in script
    head = pods_of(made(kind, some_facts(grace_s=300)))["head"]["containers"][0]
    assert {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "300"} in head["env"]


@both
def test_only_what_may_be_lost_runs_on_spot_nodes(kind: str) -> None:
    facts = some_facts(verb="run", nodes=(DECODE, TRAIN))
    for name, pod in pods_of(made(kind, facts)).items():
        affinity = pod["affinity"]["nodeAffinity"]
        if name == "decode":
            assert list(affinity) == ["preferredDuringSchedulingIgnoredDuringExecution"]
        else:
            [term] = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
            assert {one["operator"] for one in term["matchExpressions"]} == {"NotIn"}
            assert not any("spot" in one["key"] for one in pod["tolerations"])
    assert "preferred" in next(iter(pods_of(made(kind, some_facts(nodes=(GPU,))))["gpu"]["affinity"]["nodeAffinity"]))


def test_a_cluster_that_stays_can_survive_the_loss_of_its_head() -> None:
    reference = {"valueFrom": {"secretKeyRef": {"name": "redis-password", "key": "password"}}}
    facts = some_facts(**ALL_ASKED)
    options = cluster_of(made("RayCluster", facts))["gcsFaultToleranceOptions"]
    assert options == {"redisAddress": "redis:6379", "redisPassword": reference}
    assert "gcsFaultToleranceOptions" not in cluster_of(made("RayJob", facts))
    assert "gcsFaultToleranceOptions" not in cluster_of(made("RayCluster", some_facts()))
