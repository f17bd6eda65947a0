"""What a worker is told while it works: that it is to stop, or that a node of its group will be taken away."""

import signal
from typing import Any, Literal, get_args

Notice = Literal["SIGTERM", "preemption"]
NOTICES: tuple[Notice, ...] = get_args(Notice)

_told: set[Notice] = set()  # of this process


def tell(notice: Notice) -> None:
    """From a signal handler or a thread of this process."""
    _told.add(notice)


def told() -> list[bool]:
    """Which of NOTICES this process was told since it began."""
    return [notice in _told for notice in NOTICES]


def listen(*_: Any) -> None:
    """From now on SIGTERM is a notice and does not end this process; called in its main thread."""
    signal.signal(signal.SIGTERM, lambda *_: tell("SIGTERM"))
