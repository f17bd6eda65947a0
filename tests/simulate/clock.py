"""Simulated time, and real code that waits in it."""

import threading
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count


class Clock:
    """Calls to be made, by the time they are due; nothing else makes time pass."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.num_calls = 0
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()  # of two calls due at once the one asked for first is made first

    def after(self, seconds: float, call: Callable[[], object]) -> None:
        heappush(self._due, (self.now_s + seconds, next(self._numbers), call))

    def run(self, is_over: Callable[[], bool]) -> None:
        """Make calls until it is over, or none is left."""
        while self._due and not is_over():
            self.now_s, _, call = heappop(self._due)
            self.num_calls += 1
            call()

    def wait(self, seconds: float) -> None:
        """Let time pass for the process that calls this; for all others of this program it stands still."""
        process = threading.current_thread()
        if isinstance(process, Process):
            process.wait(seconds)


class Killed(BaseException):
    """The process ends here, wherever it is. Nothing catches this."""


class Process(threading.Thread):
    """Real code in simulated time: it runs alone until it waits or ends, so that every run is the same.

    A killed process does nothing more from where it waits on.
    """

    def __init__(self, clock: Clock, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.clock, self.work = clock, work
        self.is_killed = False
        self.error: BaseException | None = None
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        clock.after(0.0, self._begin)

    def run(self) -> None:
        try:
            self.work()
        except Killed:
            pass
        except BaseException as error:  # to be raised where somebody sees it
            self.error = error
        finally:
            self._back.release()

    def wait(self, seconds: float) -> None:
        """In the process itself."""
        self.clock.after(seconds, self._resume)
        self._back.release()
        self._go.acquire()
        if self.is_killed:
            raise Killed

    def _begin(self) -> None:
        if not self.is_killed:
            self.start()
            self._turn()

    def _resume(self) -> None:
        self._go.release()
        self._turn()

    def _turn(self) -> None:
        """Until it waits or ends."""
        self._back.acquire()
        if self.error is not None:
            raise self.error
