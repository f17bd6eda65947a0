"""The pods of a Ray cluster on Kubernetes: who they run as, what they may use, and what is mounted into them."""

from cluster.manifests.facts import Document, Facts, Nodes, shm_bytes

IDENTITY = "app.kubernetes.io/instance"  # the label that the pods of one cluster have in common
CONFIG_FOLDER = "/etc/latentmill"
USER_ID = 1000  # of the image
METRICS_PORT = 8080  # of every node, for Prometheus
SCRAPE = {"prometheus.io/scrape": "true", "prometheus.io/port": str(METRICS_PORT)}  # where it has no operator
CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}

METRICS = {"containerPort": METRICS_PORT, "name": "metrics"}

# Nodes that can be taken away at any time, as GKE, EKS and Karpenter mark them.
SPOT_MARKS = {
    "cloud.google.com/gke-spot": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
}

# What keeps autoscalers of machines from moving a pod to save one.
STAY = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}

# A node that is to go tells Ray, so that training can write a checkpoint, and stays until its Ray has left or time is
# over. Where the head is gone already there is nobody to tell.
LEAVE = """\
ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "the pod is to be deleted" \
--deadline-remaining-seconds {seconds} || exit 0
health=http://localhost:52365/api/local_raylet_healthz
timeout {seconds} bash -c "while wget -q -T 2 -O /dev/null $health; do sleep 2; done" || true
"""
LEAVE_S = 5  # of the grace period, for the pod to end after that


def head_pod(facts: Facts, name: str, cpus: int, memory_bytes: int, config: str) -> Document:
    """The pod of Ray's head; the ConfigMap `config`, where there is one, becomes CONFIG_FOLDER."""
    volumes = [{"name": "config", "configMap": {"name": config}}] if config else []
    mounts = [{"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True}] if config else []
    # How long Ray lets a stopped job end by itself; 3 s unless told otherwise.
    stop = [{"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": str(facts.grace_s)}]
    container = {
        "name": "ray-head",
        **_container(facts, _resources(cpus, memory_bytes), mounts),
        "env": stop,
        "ports": [
            {"containerPort": 6379, "name": "gcs"},
            {"containerPort": 8265, "name": "dashboard"},
            {"containerPort": 10001, "name": "client"},
            METRICS,
        ],
    }
    return _pod(facts, name, container, _volumes(facts, memory_bytes) + volumes, spot=False)


def worker_pod(facts: Facts, name: str, nodes: Nodes) -> Document:
    """The pod of one node of a kind."""
    leave = LEAVE.format(seconds=facts.grace_s - LEAVE_S)
    container = {
        "name": "ray-worker",
        **_container(facts, _resources(nodes.cpus, nodes.memory_bytes, nodes.gpus), []),
        "ports": [METRICS],
        "lifecycle": {"preStop": {"exec": {"command": ["bash", "-c", leave]}}},
    }
    pod = _pod(facts, name, container, _volumes(facts, nodes.memory_bytes), nodes.spot)
    if nodes.gpus:
        pod["spec"]["tolerations"].append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    pod["spec"]["automountServiceAccountToken"] = False  # only the head, which scales, talks to Kubernetes
    return pod


def submitter_pod(facts: Facts, name: str) -> Document:
    """The pod that hands the job to the head and follows its log; KubeRay fills in its command."""
    container = {
        "name": "ray-job-submitter",
        "image": facts.image,
        "resources": _resources(1, 2**30),
        "securityContext": CONTAINER_SECURITY,
    }
    pod = _pod(facts, name, container, [], spot=False)
    pod["spec"]["automountServiceAccountToken"] = False
    return pod


def _pod(facts: Facts, name: str, container: Document, volumes: list[Document], spot: bool) -> Document:
    scrape = SCRAPE if METRICS in container.get("ports", []) else {}
    spec = {
        "containers": [container],
        "volumes": volumes,
        "restartPolicy": "Never",  # KubeRay replaces pods; one restarted in place would be a stranger to its head
        "terminationGracePeriodSeconds": facts.grace_s,
        **({"serviceAccountName": facts.service_account} if facts.service_account else {}),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "affinity": {"nodeAffinity": _prefer_spot() if spot else _avoid_spot()},
        "tolerations": [{"key": mark, "operator": "Exists"} for mark in SPOT_MARKS] if spot else [],
    }
    return {"metadata": {"labels": {IDENTITY: name}, "annotations": scrape | ({} if spot else STAY)}, "spec": spec}


def _container(facts: Facts, resources: Document, mounts: list[Document]) -> Document:
    storage = [{"name": "storage", "mountPath": facts.mount}] if facts.volume else []
    return {
        "image": facts.image,
        "resources": resources,
        **({"envFrom": [{"secretRef": {"name": facts.secret}}]} if facts.secret else {}),
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, *storage, *mounts],
    }


def _resources(cpus: int, memory_bytes: int, gpus: int = 0) -> Document:
    """Requests equal limits, so that a node is never short of what Ray believes it has."""
    amounts = {"cpu": str(cpus), "memory": _quantity(memory_bytes), **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    return {"requests": amounts, "limits": dict(amounts)}


def _quantity(size_bytes: int) -> str:
    return f"{size_bytes // 2**20}Mi"


def _volumes(facts: Facts, memory_bytes: int) -> list[Document]:
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": _quantity(shm_bytes(memory_bytes))}}
    claim = {"name": "storage", "persistentVolumeClaim": {"claimName": facts.volume}}
    return [shm, claim] if facts.volume else [shm]


def _prefer_spot() -> Document:
    """Preferred only: a cluster has its own names for them, or none to give."""
    return {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 100, "preference": {"matchExpressions": [{"key": mark, "operator": "In", "values": [value]}]}}
            for mark, value in SPOT_MARKS.items()
        ]
    }


def _avoid_spot() -> Document:
    unmarked = [{"key": mark, "operator": "NotIn", "values": [value]} for mark, value in SPOT_MARKS.items()]
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": unmarked}]}}
