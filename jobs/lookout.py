"""Waiting for what other processes bring, without hiding it."""

import time
from collections.abc import Callable

PAUSE_S = 1.0
PAUSE_BY_LOOK = 10.0  # so that looking, which costs a store requests, takes a tenth of the time at most
TELL_EVERY_S = 600.0


class Lookout:
    """Looks again and again until nothing is missing. Tells what is: when that changes, and every ten minutes."""

    def __init__(self, look: Callable[[], str], tell: Callable[[str], None]) -> None:
        """`look` returns what is missing, in words; empty where nothing is."""
        self.look, self.tell = look, tell
        self.missing = ""
        self.since_s = self.told_s = self.next_s = 0.0

    def found(self) -> bool:
        """Whether nothing is missing any more; looks if it is time to."""
        began_s = time.monotonic()
        if began_s < self.next_s:
            return False
        missing = self.look()
        if missing:
            self._tell(missing, began_s)
        now_s = time.monotonic()
        self.next_s = now_s + PAUSE_BY_LOOK * (now_s - began_s)
        return not missing

    def wait(self) -> None:
        """Return when nothing is missing."""
        while not self.found():
            time.sleep(PAUSE_S)

    def _tell(self, missing: str, now_s: float) -> None:
        if missing != self.missing:
            self.missing, self.since_s, self.told_s = missing, now_s, now_s
            self.tell(f"waits: {missing}")
        elif now_s - self.told_s > TELL_EVERY_S:
            self.told_s = now_s
            minutes = (now_s - self.since_s) / 60
            self.tell(f"waits for {minutes:.0f} minutes already: {missing}; see whether that still runs")
