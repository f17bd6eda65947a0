"""What a driver and its workers tell each other. Light to import, for it has a process of its own."""

import asyncio
import time

import ray


@ray.remote(num_cpus=0)
class Line:
    """The driver asks the workers to stop; they tell that they began, and Ray Train's controller that they failed."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.waiting_since: float | None = time.monotonic()
        self.failures: list[str] = []

    async def ask_to_stop(self) -> None:
        self.stop.set()

    async def asked_to_stop(self) -> None:
        """Returns when that was asked."""
        await self.stop.wait()

    async def began(self) -> None:
        self.waiting_since = None

    async def failed(self, why: str) -> None:
        if self.waiting_since is None:  # otherwise it is the end of a group that was told already
            self.waiting_since = time.monotonic()
            self.failures.append(why)

    async def news(self) -> tuple[float, list[str]]:
        """For how long no worker has begun, and the failures since this was asked the last time."""
        failures, self.failures = self.failures, []
        return 0.0 if self.waiting_since is None else time.monotonic() - self.waiting_since, failures
