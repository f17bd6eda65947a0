"""Joining a Ray that is not there, or by an address of another kind, is refused in one line."""

import os
import subprocess
import sys

from tests.head import free_ports

JOIN = """
import sys
from cluster import runtime
from cluster.errors import NoCluster

for address in sys.argv[1:]:
    try:
        runtime.connect(address)
    except NoCluster as error:
        print(error)
"""


def test_an_address_that_cannot_be_joined_is_one_line() -> None:
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    given = ["http://127.0.0.1:8265", "ray://127.0.0.1:10001", nobody]
    command = [sys.executable, "-c", JOIN, *given]
    told = subprocess.run(command, env={**os.environ, "RAY_ADDRESS": ""}, capture_output=True, text=True, timeout=60)
    dashboard, client, dead = told.stdout.splitlines()
    for address, line in zip(given, (dashboard, client)):
        assert line.startswith(f"{address}: a verb that runs here wants a Ray whose nodes it can reach, auto or HOST:")
        assert "`latentmill submit`" in line
    assert dead.startswith(f"{nobody}: no Ray answers there; start one")
