"""Waiting for nodes, from a process of its own, as a script does."""

import os
import socket
import subprocess
import sys

import ray

from cluster.gather import gather

TWICE = """
import os
from cluster.gather import gather

address = os.environ["RAY_ADDRESS"]
print(repr(gather(address, 1, 30, f"http://{address}")))
print(gather(address, 2, 0.1, f"http://{address}"))
print(gather(address, 1, 0.1, "http://127.0.0.1:1"))
"""


def test_waits_for_as_many_nodes_as_there_are_and_tells_what_is_missing(local_ray: None) -> None:
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run([sys.executable, "-c", TWICE], env=environment, capture_output=True, text=True, timeout=60)
    enough, missing, faceless = done.stdout.splitlines()[-3:]
    assert enough == "''"
    assert missing.startswith("found 1 of 2 nodes after 0.1 s; ")
    assert faceless.startswith("found no dashboard at http://127.0.0.1:1 after 0.1 s; ")


def test_gives_up_on_a_head_that_does_not_start() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        assert gather(address, 1, 0.2).startswith(f"found no Ray at {address} after 0.2 s; ")
