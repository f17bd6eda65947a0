"""How far a run has come, by the events of its cache, which are taken one by one: a long log is read only once."""

import os
import socket
from collections import deque
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jobs.recorded import BEGAN, ENDED
from jobs.stages import STAGES

WINDOW_S = 600.0  # over which the pace is measured
KILLED = "killed"  # the state of a job whose process is not there any more

Event = dict[str, Any]


@dataclass(frozen=True)
class Pace:
    """How fast shards came in the last minutes."""

    chunks_per_s: float
    shards_per_s: float
    bytes_per_s: float  # of latents
    decode_cpus: float
    shares: dict[str, float]  # of the encoders' time, by stage


class Standing:
    """What the events so far come to."""

    def __init__(self) -> None:
        self.jobs: dict[str, Event] = {}  # by verb, the last one that began
        self.ends: dict[str, Event] = {}  # how that one ended, by verb
        self.last: dict[tuple[str, str], Event] = {}  # by verb and event, shards left out
        self.planned: dict[int, int] = {}  # shards, by generation
        self.encoded: set[str] = set()  # shards since the last start of `encode`
        self.failed: dict[str, int] = {}  # videos, by shard
        self.recent: deque[Event] = deque()  # shards of the last minutes
        self.over: frozenset[str] = frozenset()  # submitted jobs that are no more, as their cluster told before

    def take(self, event: Event) -> None:
        """Those of one verb come by their time."""
        verb, what = event["verb"], event["event"]
        if what == BEGAN:
            self.jobs[verb] = event
            self.ends.pop(verb, None)
        elif what == ENDED:
            if event["id"] == self.jobs.get(verb, event)["id"]:
                self.ends[verb] = event
        elif (verb, what) == ("encode", "shard"):
            self._take_shard(event)
        else:
            self.last[verb, what] = event
        if (verb, what) == ("encode", "start"):
            self.encoded.clear()
            self.recent.clear()
        if (verb, what) == ("plan", "done"):
            self.planned[event["generation"]] = event.get("shards", 0)

    def _take_shard(self, event: Event) -> None:
        self.encoded.add(event["shard"])
        self.failed.pop(event["shard"], None)
        if event["failed"]:
            self.failed[event["shard"]] = len(event["failed"])
        self.recent.append(event)
        while seconds(self.recent[0]) < seconds(event) - WINDOW_S:
            self.recent.popleft()

    def state(self, verb: str) -> tuple[str, float]:
        """How the last job of a verb is, and since when; empty where none is known."""
        if verb in self.ends:
            return self.ends[verb]["outcome"], seconds(self.ends[verb])
        if verb in self.jobs:
            job = self.jobs[verb]
            is_killed = is_gone(job) or job.get("submission") in self.over
            return KILLED if is_killed else "running", seconds(job)
        return "", 0.0

    def shards(self) -> tuple[int, int]:
        """How many are committed, and planned."""
        start = self.last.get(("encode", "start"), {"committed": 0, "shards": 0})
        return start["committed"] + len(self.encoded), max(start["shards"], sum(self.planned.values()))

    def until(self, now_s: float) -> float:
        """Now, where `encode` runs, else when it ended."""
        return seconds(self.ends["encode"]) if "encode" in self.ends else now_s

    def pace(self, now_s: float) -> Pace | None:
        """That of `encode`; None where no shard came lately."""
        start = self.last.get(("encode", "start"))
        shards = [event for event in self.recent if seconds(event) > now_s - WINDOW_S]
        if start is None or not shards:
            return None
        passed_s = max(1e-3, now_s - max(seconds(start), now_s - WINDOW_S))
        spent = {stage: sum(event.get("stages", {}).get(stage, 0.0) for event in shards) for stage in STAGES}
        whole_s = sum(spent.values()) or 1.0
        return Pace(
            chunks_per_s=sum(event["chunks"] for event in shards) / passed_s,
            shards_per_s=len(shards) / passed_s,
            bytes_per_s=sum(event["latent_bytes"] for event in shards) / passed_s,
            decode_cpus=sum(event["decode_cpu_s"] for event in shards) / passed_s,
            shares={stage: spent_s / whole_s for stage, spent_s in spent.items()},
        )

    def quarantined(self) -> int:
        """How many inputs `scan`, `plan` and `encode` have set aside."""
        scan, plan = self.last.get(("scan", "done"), {}), self.last.get(("plan", "done"), {})
        scanned = scan.get("unreadable", 0) + scan.get("duplicates", 0)
        return scanned + plan.get("unusable", 0) + sum(self.failed.values())


def seconds(event: Event) -> float:
    """When it happened, since 1970."""
    return datetime.fromisoformat(event["time"]).timestamp()


def is_gone(job: Event) -> bool:
    """Whether the process of a job was on this machine and is not any more."""
    if job["host"] != socket.gethostname():
        return False
    try:
        os.kill(job["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's
        return False
    return False
