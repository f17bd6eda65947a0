"""What a node of a Ray cluster tells Prometheus."""

import time
import urllib.request
from collections.abc import Callable

import ray

Metrics = dict[str, float]  # by `name{run="a",...}`, of the labels that were asked for


def scrape(*labels: str) -> Metrics:
    """The metrics of this node now, each the sum over all other labels."""
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found: Metrics = {}
    for line in urllib.request.urlopen(url).read().decode().splitlines():
        if line.startswith("#"):
            continue
        series, _, value = line.rpartition(" ")
        name, _, rest = series.partition("{")
        kept = [f"{label}={part.partition(chr(34))[0]}" for label in labels for part in rest.split(f'{label}="')[1:2]]
        key = ",".join([name, *kept])
        found[key] = found.get(key, 0.0) + float(value)
    return found


def scrape_until(told: Callable[[Metrics], bool], *labels: str) -> Metrics:
    """The same, as soon as `told` likes it, or after a minute: what tells the node begins late on a busy machine."""
    give_up_s = time.monotonic() + 60
    while not told(found := scrape(*labels)) and time.monotonic() < give_up_s:
        time.sleep(0.2)
    return found
