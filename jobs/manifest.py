"""`manifest`: a configuration -> what makes the cluster it asks for, on Kubernetes, AWS, GCP or Slurm."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import yaml

from cluster.manifests.aws import aws_manifest
from cluster.manifests.facts import Document, Facts
from cluster.manifests.gcp import gcp_manifest
from cluster.manifests.grafana import grafana_dashboard
from cluster.manifests.kuberay import cluster_manifest, job_manifest
from cluster.manifests.slurm import slurm_script
from jobs.cluster_facts import ClusterVerb, check_cloud, check_nodes, check_places, describe_cluster
from jobs.config import RunConfig
from jobs.progress import say
from pipeline.storage import publish

Target = Literal["kuberay", "kuberay-cluster", "aws", "gcp", "slurm", "grafana"]

DOCUMENTS: dict[Target, Callable[[Facts], list[Document]]] = {
    "kuberay": job_manifest,
    "kuberay-cluster": cluster_manifest,
    "aws": lambda facts: [aws_manifest(facts)],
    "gcp": lambda facts: [gcp_manifest(facts)],
}
APPLY: dict[Target, str] = {
    "kuberay": "kubectl apply -f {path}",
    "kuberay-cluster": "kubectl apply -f {path}",
    "aws": "ray get-auth-token --generate > /dev/null && ray up {path}",
    "gcp": "ray get-auth-token --generate > /dev/null && ray up {path}",
    "slurm": "sbatch {path}",
    "grafana": "import {path} in Grafana (Dashboards, New, Import)",
}
ENDINGS = {"slurm": "sbatch", "grafana": "json"}


def manifest(config: RunConfig, target: Target, verb: ClusterVerb, to: Path | None) -> None:
    """Write the manifest into the folder `to`, or print it; Refused where no such cluster could do the verb."""
    text = make_manifest(config, target, verb)
    if to is None:
        print(text, end="")
        return
    to.mkdir(parents=True, exist_ok=True)
    path = to / f"{config.cluster.name}-{verb}.{target}.{ENDINGS.get(target, 'yaml')}"
    publish(path, text.encode())
    say(f"manifest: {path} written; then: {APPLY[target].format(path=path)}")


def make_manifest(config: RunConfig, target: Target, verb: ClusterVerb) -> str:
    """The manifest as text: a script for Slurm, JSON for Grafana, else YAML."""
    if target == "grafana":
        return json.dumps(grafana_dashboard(), indent=2) + "\n"
    if target == "slurm":
        check_nodes(config, verb, decode_nodes=0)
        return slurm_script(describe_cluster(config, verb))
    check_nodes(config, verb, config.cluster.decode_nodes)
    check_places(config, verb)
    if target in ("aws", "gcp"):
        check_cloud(config.cluster, target)
    return yaml_text(DOCUMENTS[target](describe_cluster(config, verb)))


class Dumper(yaml.SafeDumper):
    """Texts of several lines as such, and nothing by reference to another place."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Dumper.add_representer(str, _text)


def yaml_text(documents: list[Document]) -> str:
    """Documents -> YAML, their keys in the order they were given."""
    several = len(documents) > 1
    return yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, width=120, explicit_start=several)
