"""Each moment of an encoder counts for one stage, however many things go on."""

import threading
from contextlib import ExitStack

import pytest

from jobs.stages import Stages


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def seconds(**spent: float) -> dict[str, float]:
    return {"encode": 0.0, "decode": 0.0, "write": 0.0, "wait": 0.0, **spent}


def test_of_what_goes_on_at_once_the_scarcest_counts_and_all_adds_up() -> None:
    clock = Clock()
    stages = Stages(clock)
    clock.now_s += 1  # nothing
    with stages.doing("write"):
        clock.now_s += 2
        with stages.doing("decode"):
            clock.now_s += 4
            with stages.doing("encode"):
                clock.now_s += 8
            clock.now_s += 16
        clock.now_s += 32
    assert stages.take() == seconds(wait=1, write=2 + 32, decode=4 + 16, encode=8)


def test_a_stage_lasts_until_the_last_that_is_in_it_has_left() -> None:
    clock = Clock()
    stages = Stages(clock)
    first, second = ExitStack(), ExitStack()
    first.enter_context(stages.doing("encode"))
    second.enter_context(stages.doing("encode"))
    first.close()
    clock.now_s += 3
    second.close()
    clock.now_s += 5
    assert stages.take() == seconds(encode=3, wait=5)


def test_what_was_taken_is_not_taken_again_and_what_goes_on_is_divided() -> None:
    clock = Clock()
    stages = Stages(clock)
    with stages.doing("decode"):
        clock.now_s += 1
        assert stages.take() == seconds(decode=1)
        clock.now_s += 2
    assert stages.take() == seconds(decode=2)
    assert stages.take() == seconds()


def test_a_stage_ends_with_an_error_too() -> None:
    clock = Clock()
    stages = Stages(clock)
    with pytest.raises(RuntimeError), stages.doing("encode"):
        raise RuntimeError
    clock.now_s += 1
    assert stages.take() == seconds(wait=1)


def test_threads_lose_no_moment() -> None:
    ticks = iter(range(10**6))
    stages = Stages(lambda: float(next(ticks)))  # every look at the clock takes a second

    def work() -> None:
        for _ in range(500):
            with stages.doing("encode"):
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(stages.take().values()) == 4 * 500 * 2 + 1
