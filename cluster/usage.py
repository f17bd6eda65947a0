"""What of a cluster's CPUs and GPUs is in use, as its dashboard tells."""

import re
from dataclasses import dataclass

from cluster.submission import Submissions

AMOUNT = re.compile(r"([\d.]+)/([\d.]+) (CPU|GPU)\b")  # of one node, as `ray status --verbose` shows it


@dataclass(frozen=True)
class Usage:
    """Of all nodes that are alive."""

    nodes: int
    used: dict[str, float]  # by "CPU" and "GPU"
    total: dict[str, float]


def read_usage(submissions: Submissions) -> Usage:
    """Ask a dashboard; NoCluster where it does not answer."""
    return count_usage(submissions.ask("/nodes?view=summary")["data"]["nodeLogicalResources"])


def count_usage(told: dict[str, str]) -> Usage:
    """What each node offers and has given away, in words by its id -> the sums."""
    used, total = {"CPU": 0.0, "GPU": 0.0}, {"CPU": 0.0, "GPU": 0.0}
    for words in told.values():
        for taken, there, name in AMOUNT.findall(words):
            used[name] += float(taken)
            total[name] += float(there)
    return Usage(len(told), used, total)
