"""Machines with addresses of their own, as network namespaces on a bridge; the link of one can be cut."""

import ctypes
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cluster.gather import gather
from tests.many_nodes import end

CLONE_NEWNET = 0x40000000  # <sched.h>
HEAD = "10.77.0.1"
PORT = 6399  # of the head, which has an address of its own
TOOLS = ("ip", "unshare", "nsenter", "mount")
IN_TIME = {  # in seconds, by default minutes
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
PINGS = {"RAY_grpc_client_keepalive_time_ms": "2000", "RAY_grpc_client_keepalive_timeout_ms": "4000"}


def why_not() -> str:
    """What is missing to make networks here; empty where nothing is."""
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        return f"no {', '.join(missing)} here"
    tried = subprocess.run(["unshare", "-n", "-m", "ip", "link", "add", "test", "type", "bridge"], capture_output=True)
    return f"no network namespaces here: {tried.stderr.decode().strip()}" if tried.returncode else ""


@dataclass(frozen=True)
class Machine:
    """A namespace, held by a process, and the Ray node in it."""

    number: int
    holder: subprocess.Popen[bytes]
    node: psutil.Popen

    @property
    def address(self) -> str:
        return f"10.77.0.{self.number}"


class Network:
    """This process goes to a network of its own, with a head in it and machines around it.

    They share all disks but the folder that Ray keeps its sockets in.
    """

    def __init__(self, number: int, folder: Path, cpus: int = 2) -> None:
        self.folder, self.cpus, self.machines = folder, cpus, []
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        _ip("link set lo up")
        _ip("link add bridge type bridge")
        _ip(f"addr add {HEAD}/24 dev bridge")
        _ip("link set bridge up")
        words = ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false", "--disable-usage-stats"]
        self.head = self._start([], HEAD, words)
        self._gather(1)
        self.machines = [self._add(2 + index) for index in range(number)]
        self._gather(1 + number)

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, *_: Any) -> None:
        for process in [self.head, *(machine.node for machine in self.machines)]:
            end(process)
        for machine in self.machines:
            machine.holder.kill()
            machine.holder.wait()

    @property
    def head_address(self) -> str:
        return f"{HEAD}:{PORT}"

    def cut(self, machine: Machine) -> None:
        _ip(f"link set to{machine.number} down")

    def mend(self, machine: Machine) -> None:
        _ip(f"link set to{machine.number} up")

    def _add(self, number: int) -> Machine:
        alone = f"mount -t tmpfs tmpfs {self.folder} && echo ready && exec sleep infinity"
        holder = subprocess.Popen(["unshare", "-n", "-m", "sh", "-c", alone], stdout=subprocess.PIPE)
        assert holder.stdout is not None and holder.stdout.readline() == b"ready\n"
        inside = ["nsenter", "-t", str(holder.pid), "-n", "-m"]
        _ip(f"link add to{number} type veth peer name eth0 netns {holder.pid}")
        _ip(f"link set to{number} master bridge up")
        for words in ("link set lo up", f"addr add 10.77.0.{number}/24 dev eth0", "link set eth0 up"):
            subprocess.run([*inside, "ip", *words.split()], check=True)
        words = [f"--address={self.head_address}", f"--num-cpus={self.cpus}"]
        return Machine(number, holder, self._start(inside, f"10.77.0.{number}", words))

    def _start(self, inside: list[str], address: str, words: list[str]) -> psutil.Popen:
        words = [f"--node-ip-address={address}", "--object-store-memory=150000000", "--block", *words]
        command = [*inside, sys.executable, "-m", "ray.scripts.scripts", "start", *words]
        with open(self.folder / f"{address}.log", "w") as log:
            return psutil.Popen(command, stdout=log, stderr=log, env={**os.environ})

    def _gather(self, number: int) -> None:
        if missing := gather(self.head_address, number, 120):
            raise RuntimeError(missing)


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)
