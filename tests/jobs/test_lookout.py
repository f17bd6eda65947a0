"""Who waits says for what: when that changes, and again and again while it does not."""

import time

import pytest

from jobs import lookout
from jobs.lookout import Lookout


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "PAUSE_S", 0.0)
    monkeypatch.setattr(lookout, "PAUSE_BY_LOOK", 0.0)


def test_what_is_missing_is_told_when_it_changes() -> None:
    missing, told = iter(["two", "two", "one", "one", ""]), []
    Lookout(lambda: next(missing), told.append).wait()
    assert told == ["waits: two", "waits: one"] and list(missing) == []


def test_what_stays_missing_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "TELL_EVERY_S", -1.0)
    missing, told = iter(["two", "two", ""]), []
    Lookout(lambda: next(missing), told.append).wait()
    assert told == ["waits: two", "waits for 0 minutes already: two; see whether that still runs"]


def test_looking_takes_a_small_part_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "PAUSE_BY_LOOK", 1e6)
    looks = []

    def look() -> str:
        looks.append(time.sleep(0.001))
        return "much"

    waiting = Lookout(look, print)
    assert [waiting.found() for _ in range(5)] == [False] * 5 and len(looks) == 1
