"""Numbers reach the page that Prometheus reads on each node of a Ray cluster."""

import time
import urllib.request

import pytest
import ray

from cluster.gauges import Gauges


@pytest.mark.slow
def test_a_gauge_is_among_the_metrics_of_the_node(local_ray: None) -> None:
    Gauges("latentmill_test").set({"loss": 1.0, "held_out/loss": 0.5})
    Gauges("latentmill_test").set({"loss": 0.25})
    url = f"http://{ray.nodes()[0]['NodeManagerAddress']}:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    told: dict[str, float] = {}
    for _ in range(120):  # it is told every ten seconds
        lines = urllib.request.urlopen(url).read().decode().splitlines()
        found = [line for line in lines if line.startswith("ray_latentmill_test_")]
        told = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in found}
        if told.get("ray_latentmill_test_loss") == 0.25:
            break
        time.sleep(0.5)
    assert told == {"ray_latentmill_test_loss": 0.25, "ray_latentmill_test_held_out_loss": 0.5}
