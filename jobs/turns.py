"""Calls of one actor that arrive at the same time, brought into their order."""

from threading import Condition


class Turns:
    """Turn 0, 1, 2, ...: each begins when the one before is ended, in whichever threads."""

    def __init__(self) -> None:
        self._ended = 0
        self._changed = Condition()

    def begin(self, turn: int) -> None:
        """Wait until all turns before this one are ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended == turn)

    def end(self) -> None:
        """End the turn that has begun."""
        with self._changed:
            self._ended += 1
            self._changed.notify_all()
