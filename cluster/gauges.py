"""Numbers among Ray's own metrics, which its dashboard and Prometheus read."""

from collections.abc import Mapping

import ray
from ray.util.metrics import Gauge


class Gauges:
    """Numbers by name, the latest of each; shown as `<prefix>_<name>`. Does nothing in a process that Ray knows not."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.gauges: dict[str, Gauge] = {}

    def set(self, values: Mapping[str, float]) -> None:
        if not ray.is_initialized():
            return
        for name, value in values.items():
            if name not in self.gauges:
                self.gauges[name] = Gauge(f"{self.prefix}_{name.replace('/', '_')}")
            self.gauges[name].set(value)
