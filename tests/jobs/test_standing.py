"""What events come to: how far each verb is, how fast, where the time went."""

import os
import socket
import subprocess
import sys
from datetime import datetime, timezone
from typing import Any

import pytest

from jobs.standing import Standing

START_S = datetime(2025, 1, 1, tzinfo=timezone.utc).timestamp()


def event(second: float, verb: str, what: str, **facts: Any) -> dict[str, Any]:
    time = datetime.fromtimestamp(START_S + second, timezone.utc).isoformat(timespec="milliseconds")
    return {"time": time, "verb": verb, "event": what, **facts}


def shard(second: float, number: int, failed: tuple[str, ...] = (), **stages: float) -> dict[str, Any]:
    costs = {"chunks": 40, "latent_bytes": 10**6, "decode_cpu_s": 6.0, "stages": stages}
    return event(second, "encode", "shard", shard=f"64x64/{number}", failed=list(failed), **costs)


def began(
    second: float, verb: str, job: str = "a", host: str = "elsewhere", pid: int = 1, **facts: str
) -> dict[str, Any]:
    return event(second, verb, "began", id=job, host=host, pid=pid, **facts)


def ended(second: float, verb: str, job: str = "a", outcome: str = "done") -> dict[str, Any]:
    return event(second, verb, "ended", id=job, outcome=outcome, exit_code=0, took_s=1.0)


def standing(*events: dict[str, Any]) -> Standing:
    found = Standing()
    for one in events:
        found.take(one)
    return found


def test_the_last_job_of_a_verb_counts() -> None:
    first = standing(began(1, "encode"), ended(2, "encode", outcome="failed"))
    assert first.state("encode") == ("failed", START_S + 2)
    assert first.state("text") == ("", 0.0)
    again = standing(began(1, "encode"), ended(2, "encode", outcome="failed"), began(3, "encode", "b"))
    assert again.state("encode") == ("running", START_S + 3)
    again.take(ended(4, "encode", "a"))  # an older one, that ran beside it
    assert again.state("encode") == ("running", START_S + 3)


def test_a_job_whose_process_is_not_there_was_killed() -> None:
    over = subprocess.Popen([sys.executable, "-c", ""])
    over.wait()
    here = socket.gethostname()
    assert standing(began(1, "encode", host=here, pid=over.pid)).state("encode")[0] == "killed"
    assert standing(began(1, "encode", host=here, pid=os.getpid())).state("encode")[0] == "running"
    assert standing(began(1, "encode", pid=over.pid)).state("encode")[0] == "running"  # not for us to see


def test_a_job_that_its_cluster_knows_to_be_over_is_killed_unless_it_told_its_end() -> None:
    found = standing(began(1, "encode", submission="one"), began(2, "text", submission="two"), ended(3, "text"))
    assert (found.state("encode")[0], found.state("text")[0]) == ("running", "done")
    found.over = frozenset({"one", "two"})
    assert (found.state("encode")[0], found.state("text")[0]) == ("killed", "done")


def test_shards_are_counted_once_from_what_the_last_start_found() -> None:
    start = event(0, "encode", "start", shards=10, committed=4, chosen=6)
    found = standing(start, shard(1, 4), shard(2, 5), shard(3, 5))  # two encoders did the same one
    assert found.shards() == (6, 10)
    found.take(event(10, "encode", "start", shards=10, committed=5, chosen=5))  # `verify --repair` took one back
    assert found.shards() == (5, 10)


def test_what_was_planned_since_is_still_to_be_done() -> None:
    plans = [event(number, "plan", "done", generation=number, shards=3) for number in range(2)]
    assert standing(*plans, plans[1]).shards() == (0, 6)
    start = event(5, "encode", "start", shards=6, committed=0, chosen=6)
    assert standing(*plans, start, event(6, "plan", "done", generation=2, shards=1)).shards() == (0, 7)


def test_the_pace_is_that_of_the_last_ten_minutes() -> None:
    start = event(0, "encode", "start", shards=100, committed=0, chosen=100)
    slow = [shard(100, 0, encode=1.0)]
    fast = [shard(1000 + number, number, encode=6.0, decode=2.0, write=1.0, wait=1.0) for number in range(1, 61)]
    pace = standing(start, *slow, *fast).pace(START_S + 1100)
    assert pace is not None
    assert (pace.chunks_per_s, pace.shards_per_s, pace.bytes_per_s, pace.decode_cpus) == (4.0, 0.1, 10**5, 0.6)
    assert pace.shares == pytest.approx({"encode": 0.6, "decode": 0.2, "write": 0.1, "wait": 0.1})
    assert standing(start, *slow, *fast).pace(START_S + 5000) is None


def test_at_the_beginning_the_pace_is_that_since_the_start() -> None:
    start = event(0, "encode", "start", shards=100, committed=0, chosen=100)
    pace = standing(shard(-5, 7), start, shard(10, 0), shard(20, 1)).pace(START_S + 20)
    assert pace is not None and pace.chunks_per_s == 4.0


def test_a_shard_that_is_done_again_has_today_s_failures() -> None:
    facts = {"videos": 5, "unreadable": 2, "duplicates": 1}
    found = standing(
        event(0, "scan", "done", **facts),
        event(1, "plan", "done", generation=0, shards=2, unusable=1),
        *(shard(2, 0, ("a", "b")), shard(3, 1, ("c",)), shard(4, 0, ("a",))),
    )
    assert found.quarantined() == 2 + 1 + 1 + 1 + 1
    found.take(shard(5, 1))
    assert found.quarantined() == 2 + 1 + 1 + 1


def test_a_long_log_is_not_kept() -> None:
    start = event(0, "encode", "start", shards=10**6, committed=0, chosen=10**6)
    found = standing(start, *(shard(number, number) for number in range(5000)))
    assert len(found.recent) == 601 and found.shards() == (5000, 10**6)
