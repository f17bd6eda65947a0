"""Work in a process of its own, so that its time and memory are its own."""

import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


def measured(name: str, work: Callable[..., Result], *given: Any) -> Result:
    """Do it in a fresh process, and print what that took."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        result, told = pool.submit(_measure, work, given).result()
    print(f"{name}: {told}", flush=True)
    return result


def _measure(work: Callable[..., Result], given: tuple[Any, ...]) -> tuple[Result, str]:
    begun_s = time.monotonic()
    result = work(*given)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return (
        result,
        f"{time.monotonic() - begun_s:.0f} s, CPU {time.process_time():.0f} s, {peak / 1e9:.2f} GB at its peak",
    )
