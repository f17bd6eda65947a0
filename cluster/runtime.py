"""Connect to Ray, and what it has."""

import os
import socket
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from cluster.errors import NoCluster, no_token
from cluster.token import keep_token_private, make_token

QUIET: dict[str, Any] = {"logging_level": "warning", "log_to_driver": False}


def connect(address: str = "", num_cpus: int = 0) -> None:
    """Connect to the cluster at `address`, or inside a Ray job to its own, or start Ray on this machine.

    `num_cpus` is the least number of CPU slots that a Ray started here offers, so that two processes which wait for
    each other also run on one core. Does nothing where this process is connected already.
    """
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS", "")
    if address:
        _join(address)
    else:
        make_token()
        keep_token_private()
        # "local": else it would join one that somebody has started on this machine.
        ray.init("local", num_cpus=max(num_cpus, os.cpu_count() or 1), include_dashboard=False, **QUIET)


def is_joined(address: str = "") -> bool:
    """Whether `connect` joins a cluster, and does not start Ray on this machine."""
    return bool(address or os.environ.get("RAY_ADDRESS"))


def _join(address: str) -> None:
    """Become a driver of a cluster; NoCluster where that cannot be."""
    if "://" in address:
        raise NoCluster(
            f"{address}: a verb that runs here wants a Ray whose nodes it can reach, auto or HOST:6379; "
            f"`latentmill submit` has the verb run over there, and takes a dashboard's http://HOST:8265"
        )
    if ":" in address and not listens(address):  # Ray itself would wait for two minutes
        raise NoCluster(f"{address}: no Ray answers there; start one (`ray start --head`), or mend cluster.address")
    keep_token_private()
    try:
        ray.init(address=address, **QUIET)
    except AuthenticationError as error:
        raise no_token(address) from error
    except ConnectionError as error:
        raise NoCluster(
            f"{address}: no Ray that takes us; start one (`ray start --head`), or mend cluster.address or RAY_ADDRESS; "
            f"its ~/.ray/auth_token and RAY_AUTH_MODE have to be those of this machine"
        ) from error
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        raise NoCluster(f"{address}: {' '.join(str(error).split())} Install the cluster's versions here") from error


def listens(address: str, timeout_s: float = 5.0) -> bool:
    """Whether anything answers at host:port."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
    except (OSError, ValueError):
        return False
    return True


def count(resource: str) -> int:
    """How many of a resource ("CPU", "GPU") the cluster has."""
    return int(ray.cluster_resources().get(resource, 0))


def count_free(resource: str) -> int:
    """How many of a resource nobody holds now."""
    return int(ray.available_resources().get(resource, 0))
