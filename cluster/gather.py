"""`python -m cluster.gather NODES SECONDS`: wait until so many nodes have joined the Ray at RAY_ADDRESS, and the
dashboard at RAY_API_SERVER_ADDRESS takes jobs."""

import os
import sys
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import ray

from cluster import runtime
from cluster.capacity import capacity

POLL_S = 0.5


def gather(address: str, wanted: int, seconds: float, dashboard: str = "") -> str:
    """Wait for nodes, and for a dashboard (http://host:port); returns in one line what does not come in time."""
    give_up_s = time.monotonic() + seconds
    if not _wait(lambda: runtime.listens(address, POLL_S), give_up_s):  # Ray would wait for a minute, whatever is asked
        return f"found no Ray at {address} after {seconds:g} s; the log says why it did not start on the first node"
    if dashboard and not _wait(lambda: runtime.listens(urlsplit(dashboard).netloc, POLL_S), give_up_s):
        return f"found no dashboard at {dashboard} after {seconds:g} s; the log says why it did not start"
    runtime.connect(address)
    try:
        if _wait(lambda: len(capacity().alive) >= wanted, give_up_s):
            return ""
        found = len(capacity().alive)
        return f"found {found} of {wanted} nodes after {seconds:g} s; the log says why Ray did not start on the others"
    finally:
        ray.shutdown()


def _wait(done: Callable[[], bool], give_up_s: float) -> bool:
    """Whether it was done in time."""
    while not done():
        if time.monotonic() > give_up_s:
            return False
        time.sleep(POLL_S)
    return True


if __name__ == "__main__":
    here = os.environ
    if problem := gather(here["RAY_ADDRESS"], int(sys.argv[1]), float(sys.argv[2]), here["RAY_API_SERVER_ADDRESS"]):
        sys.exit(f"gather: {problem}")
