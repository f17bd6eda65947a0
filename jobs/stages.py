"""What an encoder does with its time: several things at once, of which each moment counts for one."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BUSY = ("encode", "decode", "write")  # the VAE computes; frames are waited for; tar and commit are written
STAGES = (*BUSY, "wait")  # none of these


class Stages:
    """Seconds by stage; of what goes on at a time the first of BUSY counts. Used by several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._going: Counter[str] = Counter()
        self._since_s = clock()
        self._seconds = _no_seconds()

    @contextmanager
    def doing(self, stage: str) -> Iterator[None]:
        """The block belongs to a stage."""
        self._change(stage, 1)
        try:
            yield
        finally:
            self._change(stage, -1)

    def take(self) -> dict[str, float]:
        """Seconds by stage since this was asked the last time, as many as have passed."""
        with self._lock:
            self._count()
            taken, self._seconds = self._seconds, _no_seconds()
        return taken

    def _change(self, stage: str, by: int) -> None:
        with self._lock:
            self._count()
            self._going[stage] += by

    def _count(self) -> None:
        now_s = self._clock()
        stage = next((stage for stage in BUSY if self._going[stage]), "wait")
        self._seconds[stage] += now_s - self._since_s
        self._since_s = now_s


def _no_seconds() -> dict[str, float]:
    return dict.fromkeys(STAGES, 0.0)
