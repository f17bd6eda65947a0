"""Numbers reach the page that Prometheus reads on each node of a Ray cluster."""

import subprocess
import sys

import ray

from tests.ray_metrics import scrape_until

DRIVER = """
import sys
import ray
from cluster.meters import Meters

early = Meters("latentmill_early")
early.add({"chunks": 1})  # Ray is not there yet
ray.init(sys.argv[1], logging_level="error", log_to_driver=False)
meters = Meters("latentmill_test", run="a")
meters.set({"loss": 1.0, "held_out/loss": 0.5})
meters.set({"loss": 0.25})
for stage, seconds in [("encode", 2), ("write", 0.5), ("encode", 1), ("wait", 0)]:
    meters.add({"seconds": seconds}, stage=stage)
meters.add({"chunks": 3})
"""


def test_what_a_driver_told_is_there_when_it_has_ended(local_ray: None) -> None:
    """It tells every ten seconds, and once more at its end."""
    address = ray.get_runtime_context().gcs_address
    subprocess.run([sys.executable, "-c", DRIVER, address], check=True)
    found = scrape_until(lambda found: "ray_latentmill_test_chunks_total,run=a" in found, "run", "stage")
    assert {name: value for name, value in found.items() if "latentmill_test" in name or "early" in name} == {
        "ray_latentmill_test_loss,run=a": 0.25,
        "ray_latentmill_test_held_out_loss,run=a": 0.5,
        "ray_latentmill_test_seconds_total,run=a,stage=encode": 3.0,
        "ray_latentmill_test_seconds_total,run=a,stage=write": 0.5,
        "ray_latentmill_test_chunks_total,run=a": 3.0,
    }


def test_a_process_that_ray_knows_not_measures_nothing() -> None:
    told = subprocess.run(
        [sys.executable, "-c", DRIVER.partition("ray.init")[0]], capture_output=True, text=True, check=True
    )
    assert told.stderr == told.stdout == ""
