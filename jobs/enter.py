"""Into the cluster of a run: is there room for a verb, or will there be?"""

from cluster import runtime
from cluster.capacity import Capacity, capacity
from jobs.config import RunConfig
from jobs.placement import CHECKS
from jobs.progress import say


def enter(config: RunConfig, verb: str, num_cpus: int = 0) -> Capacity:
    """Connect to the cluster of a run, or start Ray with at least so many CPU slots. Refused where the cluster could
    never hold what the verb asks for; where that has to be waited for, says so."""
    runtime.connect(config.cluster.address, num_cpus)
    found = capacity()
    if waiting := CHECKS[verb](config, found):
        say(waiting)
    return found


def check_all(config: RunConfig, verbs: list[str]) -> None:
    """Refused where a cluster that is joined could never hold what one of the verbs asks for."""
    if not runtime.is_joined(config.cluster.address):
        return
    runtime.connect(config.cluster.address)
    found = capacity()
    for verb in verbs:
        CHECKS[verb](config, found)
