"""Looking after something while something else is done."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def meanwhile(look: Callable[[], None], every_s: float) -> Iterator[None]:
    """While the block runs, a thread calls `look` every so often; behind the block it does not any more."""
    over = threading.Event()

    def look_again() -> None:
        while not over.wait(every_s):
            look()

    thread = threading.Thread(target=look_again, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
