"""Kubernetes: facts -> a RayJob that does one verb, or a RayCluster that takes jobs; KubeRay 1.6 or later runs them."""

from cluster.capacity import growth_labels
from cluster.manifests.facts import HEAD_BYTES, HEAD_CPUS, Document, Facts, Nodes
from cluster.manifests.pods import (
    CONFIG_FOLDER,
    CONTAINER_SECURITY,
    IDENTITY,
    METRICS_PORT,
    head_pod,
    submitter_pod,
    worker_pod,
)

DASHBOARD_PORT = 8265
SHOWN = {"metrics-export-port": str(METRICS_PORT)}
KEEP_S = 600  # a finished job's nodes, to look at what they have logged
IDLE_S = 300
SCRIPT = "job.sh"

# Exit code 3 means that some inputs are in the quarantine. The work is done: on new nodes it would end the same.
JOB = """\
status=0
python -m jobs {verb} {folder}/run.toml || status=$?
if [ "$status" -eq 3 ]; then exit 0; fi
exit "$status"
"""


def job_manifest(facts: Facts) -> list[Document]:
    """The verb as a RayJob: a cluster of its own, which ends with it."""
    name = f"{facts.name}-{facts.verb}"
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "labels": _labels(facts, name)},
        "spec": {
            "entrypoint": f"bash {CONFIG_FOLDER}/{SCRIPT}",
            "backoffLimit": facts.retries,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": KEEP_S,
            "suspend": bool(facts.queue),  # Kueue lets it begin
            **({"activeDeadlineSeconds": facts.time_limit_s} if facts.time_limit_s else {}),
            "submissionMode": "K8sJobMode",
            "submitterPodTemplate": submitter_pod(facts, name),
            "rayClusterSpec": _cluster_spec(facts, name, config=f"{name}-config"),
        },
    }
    script = JOB.format(verb=facts.verb, folder=CONFIG_FOLDER)
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{name}-config", "labels": {IDENTITY: name}},
        "data": {SCRIPT: script, "run.toml": facts.run_toml},
    }
    return [config, _network_policy(name), job]


def cluster_manifest(facts: Facts) -> list[Document]:
    """A RayCluster that stays and takes jobs of all verbs that `facts.verb` stands for."""
    name = f"{facts.name}-{facts.verb}"
    spec = _cluster_spec(facts, name, config="")
    if facts.redis:  # of use here only: a RayJob's driver dies with the head, and the job is run again
        spec["gcsFaultToleranceOptions"] = _fault_tolerance(facts)
    cluster = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": name, "labels": _labels(facts, name)},
        "spec": {"suspend": bool(facts.queue), **spec},
    }
    return [_network_policy(name), cluster]


def _labels(facts: Facts, name: str) -> dict[str, str]:
    gang = {} if _autoscaled(facts) else {"ray.io/gang-scheduling-enabled": "true"}
    return {IDENTITY: name, **gang, **({"kueue.x-k8s.io/queue-name": facts.queue} if facts.queue else {})}


def _autoscaled(facts: Facts) -> bool:
    """Kueue admits all nodes at once, so what waits in its queue has a fixed number of them."""
    return facts.autoscaling and not facts.queue


def _cluster_spec(facts: Facts, name: str, config: str) -> Document:
    autoscaler = {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": IDLE_S, "securityContext": CONTAINER_SECURITY},
    }
    return {
        "rayVersion": facts.ray_version,
        "authOptions": {"mode": "token"},  # the operator makes the token, and a Secret that its pods read it from
        **(autoscaler if _autoscaled(facts) else {}),
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            # The operator asks the dashboard how the job does. Token and network policy keep others out.
            "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0", **SHOWN},
            "labels": growth_labels(facts.nodes),
            "template": head_pod(facts, name, HEAD_CPUS, HEAD_BYTES, config),
        },
        "workerGroupSpecs": [_worker_group(facts, name, nodes) for nodes in facts.nodes],
    }


def _worker_group(facts: Facts, name: str, nodes: Nodes) -> Document:
    least = nodes.least if _autoscaled(facts) else nodes.most
    return {
        "groupName": nodes.kind,
        "replicas": least,
        "minReplicas": least,
        "maxReplicas": nodes.most,
        "labels": nodes.labels,
        "rayStartParams": SHOWN,
        "template": worker_pod(facts, name, nodes),
    }


def _fault_tolerance(facts: Facts) -> Document:
    password = {"valueFrom": {"secretKeyRef": {"name": facts.redis_secret, "key": "password"}}}
    return {"redisAddress": facts.redis, **({"redisPassword": password} if facts.redis_secret else {})}


def _network_policy(name: str) -> Document:
    """Pods of one cluster reach each other, the operator its dashboard, Prometheus its metrics, nobody else anything.

    What they may reach is left open: object stores, hubs and the API server have no addresses that could be named here.
    """
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "labels": {IDENTITY: name}},
        "spec": {
            "podSelector": {"matchLabels": {IDENTITY: name}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {"matchLabels": {IDENTITY: name}}}]},
                _let_in("kuberay-operator", DASHBOARD_PORT),
                _let_in("prometheus", METRICS_PORT),
            ],
        },
    }


def _let_in(application: str, port: int) -> Document:
    """A rule for the pods of an application, in whichever namespace it is."""
    pods = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": application}}}
    return {"from": [{"namespaceSelector": {}, **pods}], "ports": [{"protocol": "TCP", "port": port}]}
