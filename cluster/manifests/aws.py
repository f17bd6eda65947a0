"""AWS: facts -> a file of Ray's cluster launcher. Network, keys and the head's role are made by `ray up`."""

from cluster.manifests.facts import Document, Facts, Nodes
from cluster.manifests.launcher import DISK_GB, Machines, launcher_file

MACHINES = Machines(
    head="m7i.xlarge",
    decode={8: "c7i.2xlarge", 16: "c7i.4xlarge", 32: "c7i.8xlarge", 64: "c7i.16xlarge"},
    gpu={0: "m7i.4xlarge", 1: "g6e.4xlarge", 4: "g6e.24xlarge", 8: "p5.48xlarge"},
)


def aws_manifest(facts: Facts) -> Document:
    """One on-demand head, with the role that Ray makes for it and that may start nodes; nodes that come and go."""
    zone = {"availability_zone": facts.zone} if facts.zone else {}
    provider = {"type": "aws", "region": facts.region, **zone}

    def worker(nodes: Nodes) -> Document:
        return {
            **_machine(facts, MACHINES.of(nodes, facts)),
            **({"IamInstanceProfile": {"Name": facts.service_account}} if facts.service_account else {}),
            **({"InstanceMarketOptions": {"MarketType": "spot"}} if nodes.spot else {}),
        }

    return launcher_file(facts, provider, _machine(facts, MACHINES.head), worker)


def _machine(facts: Facts, machine: str) -> Document:
    return {
        "InstanceType": machine,
        "ImageId": facts.machine_image,
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": DISK_GB, "VolumeType": "gp3"}}],
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},  # a container is one hop away
    }
