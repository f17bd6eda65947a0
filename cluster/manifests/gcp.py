"""GCP: facts -> a file of Ray's cluster launcher. Network, keys and the head's service account are made by `ray up`."""

from cluster.manifests.facts import Document, Facts, Nodes
from cluster.manifests.launcher import DISK_GB, Machines, launcher_file

MACHINES = Machines(
    head="n2-standard-4",
    decode={8: "n2-standard-8", 16: "n2-standard-16", 32: "n2-standard-32", 64: "n2-standard-64"},
    gpu={0: "n2-standard-16", 1: "g2-standard-16", 4: "g2-standard-48", 8: "a3-highgpu-8g"},
)
# Has Docker, and a driver for CUDA 13.
MACHINE_IMAGE = "projects/deeplearning-platform-release/global/images/family/common-cu129-ubuntu-2204-nvidia-580"
# Ray starts machines with it; only a head on GCP needs it, so the image goes without.
GCP_CLIENT = "google-api-python-client==2.202.0"


def gcp_manifest(facts: Facts) -> Document:
    """One head, with the service account that Ray makes for it and that may start nodes; nodes that come and go."""
    provider = {
        "type": "gcp",
        "region": facts.region,
        "availability_zone": facts.zone or f"{facts.region}-a",
        "project_id": facts.project,
    }
    scopes = ["https://www.googleapis.com/auth/cloud-platform"]
    account = [{"email": facts.service_account, "scopes": scopes}]

    def worker(nodes: Nodes) -> Document:
        return {
            **_machine(facts, MACHINES.of(nodes, facts)),
            "scheduling": _scheduling(nodes),
            **({"serviceAccounts": account} if facts.service_account else {}),
        }

    file = launcher_file(facts, provider, _machine(facts, MACHINES.head), worker)
    return {**file, "head_setup_commands": [f"pip install {GCP_CLIENT}"]}


def _machine(facts: Facts, machine: str) -> Document:
    image = {"diskSizeGb": DISK_GB, "sourceImage": facts.machine_image or MACHINE_IMAGE}
    return {
        "machineType": machine,
        "disks": [{"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": image}],
        "metadata": {"items": [{"key": "install-nvidia-driver", "value": "True"}]},
    }


def _scheduling(nodes: Nodes) -> Document:
    """Neither GPUs nor spot machines can be moved to other hardware, and what goes is replaced by Ray, not by GCP."""
    spot = {"provisioningModel": "SPOT", "instanceTerminationAction": "DELETE"} if nodes.spot else {}
    moved = "TERMINATE" if nodes.gpus or nodes.spot else "MIGRATE"
    return {"onHostMaintenance": moved, "automaticRestart": False, **spot}
