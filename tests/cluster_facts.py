"""What the tests of manifests share: facts of a cluster, and looking into documents."""

import shlex
from collections.abc import Iterator
from typing import Any

from ray.scripts import scripts

from cluster.manifests.facts import Facts, Nodes

DECODE = Nodes("decode", least=1, most=4, cpus=16, gpus=0, memory_bytes=2**35, label="stage=decode", spot=True)
GPU = Nodes("gpu", least=1, most=2, cpus=32, gpus=4, memory_bytes=2**36, label="stage=encode", spot=True)
TRAIN = Nodes("gpu", least=3, most=3, cpus=32, gpus=8, memory_bytes=2**36, label="stage=encode", spot=False)
PLAIN: dict[str, Any] = {
    "name": "mill",
    "verb": "encode",
    "image": "registry/latentmill:1",
    "ray_version": "2.60.0",
    "run_toml": '[data]\ncache = "/mnt/latentmill/cache"\n',
    "nodes": (DECODE, GPU),
    "volume": "",
    "mount": "/mnt/latentmill",
    "secret": "",
    "service_account": "",
    "queue": "",
    "retries": 2,
    "time_limit_s": 0,
    "grace_s": 120,
    "redis": "",
    "redis_secret": "",
    "region": "us-west-2",
    "zone": "",
    "project": "mine",
    "gpu_machine": "",
    "machine_image": "ami-1",
    "slurm_options": (),
}
ALL_ASKED: dict[str, Any] = {
    "volume": "shared",
    "secret": "keys",
    "service_account": "mill@example",
    "queue": "team",
    "time_limit_s": 3601,
    "redis": "redis:6379",
    "redis_secret": "redis-password",
    "zone": "us-west-2b",
    "gpu_machine": "big",
    "slurm_options": ("--account=video",),
}


def some_facts(**changes: Any) -> Facts:
    return Facts(**{**PLAIN, **changes})


VARIANTS = {
    "encode": some_facts(),
    "train": some_facts(verb="train", nodes=(TRAIN,)),
    "all asked": some_facts(verb="run", nodes=(DECODE, TRAIN), **ALL_ASKED),
}


def options_of_ray(line: str) -> dict[str, Any]:
    """A shell command `ray VERB ...` -> what Ray's own command line reads in it; raises what that would raise."""
    ray, verb, *words = shlex.split(line)
    assert ray == "ray"
    return scripts.cli.commands[verb].make_context(verb, words).params


def texts(document: object) -> Iterator[str]:
    """All keys and texts in a document."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield str(key)
            yield from texts(value)
    elif isinstance(document, (list, tuple)):
        for one in document:
            yield from texts(one)
    else:
        yield str(document)
