"""Numbers among Ray's own metrics, which its dashboard and Prometheus read."""

from collections.abc import Mapping

import ray
from ray.util.metrics import Counter, Gauge


class Meters:
    """Numbers by name, shown by each node of a cluster as `ray_<prefix>_<name>` with the same labels.

    Does nothing in a process that Ray knows not. What was told last is shown too when the process ends.
    """

    def __init__(self, prefix: str, **labels: str) -> None:
        self.prefix, self.labels = prefix, labels
        self.gauges: dict[str, Gauge] = {}
        self.counters: dict[str, Counter] = {}

    def set(self, values: Mapping[str, float], **labels: str) -> None:
        """Show these, in place of what was set before; they vanish half a minute after the process."""
        for name, value in values.items() if ray.is_initialized() else ():
            if name not in self.gauges:
                self.gauges[name] = Gauge(self._shown(name), tag_keys=(*self.labels, *labels))
            self.gauges[name].set(value, {**self.labels, **labels})

    def add(self, values: Mapping[str, float], **labels: str) -> None:
        """Add these to what is shown as `<name>_total`, which stays as long as the node."""
        for name, value in values.items() if ray.is_initialized() else ():
            if name not in self.counters:
                self.counters[name] = Counter(f"{self._shown(name)}_total", tag_keys=(*self.labels, *labels))
            if value > 0:
                self.counters[name].inc(value, {**self.labels, **labels})

    def _shown(self, name: str) -> str:
        return f"{self.prefix}_{name.replace('/', '_')}"
