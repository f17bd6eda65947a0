"""The head of a Ray cluster of its own, with token authentication, and a line to its dashboard that can be cut."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.token import make_token


@dataclass(frozen=True)
class Head:
    """What was started."""

    dashboard: str  # http://host:port
    address: str  # host:port
    folder: Path  # where Ray keeps logs and packages

    @property
    def packages(self) -> list[str]:
        """The working folders that it was sent."""
        return sorted(path.name for path in self.folder.glob("session_2*/runtime_resources/working_dir_files/*/"))


@contextmanager
def serve_head(num_cpus: int = 2) -> Iterator[Head]:
    """A head on free ports, started as an admin does; our packages are not on its path."""
    make_token()
    gcs, dashboard, agent, client = free_ports(4)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    environment["RAY_AUTH_MODE"] = "token"
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory(
        prefix="ray", ignore_cleanup_errors=True
    ) as folder:  # its sockets want short names
        ports = {"port": gcs, "dashboard-port": dashboard, "dashboard-agent-listen-port": agent}
        ports |= {"ray-client-server-port": client, "min-worker-port": 0, "max-worker-port": 0}
        words = [f"--{name}={value}" for name, value in ports.items()]
        words += [f"--temp-dir={folder}", f"--num-cpus={num_cpus}", "--disable-usage-stats", "--block"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *words]
        with open(Path(folder) / "head.log", "w") as log:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            _wait_for(f"http://127.0.0.1:{dashboard}/api/authentication_mode", process)
            yield Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", Path(folder))
        finally:
            process.terminate()
            process.wait()


def _wait_for(url: str, process: subprocess.Popen) -> None:
    while True:
        assert process.poll() is None, "the head did not start"
        with suppress(OSError):
            urllib.request.urlopen(url).close()
            return
        time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """Ports above those that Ray gives its workers."""
    with_sockets = [socket.socket() for _ in range(count)]
    for one in with_sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in with_sockets]
    for one in with_sockets:
        one.close()
    return ports


class Wire:
    """A port that leads to another one, until it is cut; then it leads there again."""

    def __init__(self, port: int) -> None:
        self.to = port
        self.door = socket.create_server(("127.0.0.1", 0))
        self.port = self.door.getsockname()[1]
        self.ends: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self.door.accept()
                there = socket.create_connection(("127.0.0.1", self.to))
                self.ends += [here, there]
                for one, other in ((here, there), (there, here)):
                    threading.Thread(target=_pump, args=(one, other), daemon=True).start()

    def cut(self) -> None:
        """End all connections that are open."""
        ends, self.ends = self.ends, []
        for one in ends:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.door.close()
        self.cut()


def _pump(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    with suppress(OSError):
        other.shutdown(socket.SHUT_RDWR)
