"""What `status` shows: facts of a run at one moment, gathered from its cache, its training and its cluster."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from cluster.errors import NoCluster
from cluster.submission import Job, Submissions
from cluster.usage import Usage, read_usage
from jobs.config import ConfigError, RunConfig
from jobs.events import NewEvents
from jobs.standing import Standing, seconds
from jobs.submit import connect, jobs_of
from jobs.training.metrics import describe_steps
from pipeline.storage import read_range, size_of

CLUSTER_EVERY_S = 10.0  # a dashboard is asked no more often
TAIL_BYTES = 1 << 16  # of the metrics of training: the last steps
LATEST = 50  # of them, which the loss is the mean of
ORDER = ("scan", "plan", "encode", "text", "train", "sample")  # what a run goes through; other verbs where they ran

Lines = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Step:
    """How far a verb is."""

    verb: str
    state: str  # running, done, refused, ...; empty where it never began
    since_s: float  # since 1970, as `now_s`
    done: int | None = None
    total: int | None = None
    unit: str = ""
    left_s: float | None = None
    told: str = ""

    @property
    def is_running(self) -> bool:
        return self.state == "running"


@dataclass(frozen=True)
class Glance:
    """A run at one moment."""

    cache: str
    out: str
    now_s: float
    steps: tuple[Step, ...]
    quarantined: int
    jobs: tuple[Job, ...] = ()  # of the run
    usage: Usage | None = None
    no_cluster: str = ""  # why there are no jobs to show

    @property
    def is_over(self) -> bool:
        """Whether nothing runs any more, as far as can be told."""
        return not any(step.is_running for step in self.steps) and all(job.is_over for job in self.jobs)


class Gatherer:
    """Looks at a run again and again, each time at what is new."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.events, self.standing = NewEvents(config.cache.events), Standing()
        self.submissions: Submissions | None = None
        self.asked_s = -CLUSTER_EVERY_S
        self.cluster: dict[str, Any] = {}

    def look(self) -> Glance:
        if time.monotonic() - self.asked_s >= CLUSTER_EVERY_S:
            self.cluster, self.asked_s = self._ask_cluster(), time.monotonic()
        self.standing.over = frozenset(job.id for job in self.cluster.get("jobs", ()) if job.is_over)
        for event in self.events.read():  # after the cluster: what has ended has told so before
            self.standing.take(event)
        now_s = time.time()
        lines = self._latest_steps()
        return Glance(
            cache=self.config.data.cache,
            out=str(self.config.train.out),
            now_s=now_s,
            steps=tuple(make_steps(self.standing, lines, self.config.train.steps, now_s)),
            quarantined=self.standing.quarantined(),
            **self.cluster,
        )

    def _ask_cluster(self) -> dict[str, Any]:
        try:
            self.submissions = self.submissions or connect(self.config)
            return {"jobs": tuple(jobs_of(self.submissions, self.config)), "usage": read_usage(self.submissions)}
        except (NoCluster, ConfigError) as error:  # the latter where the address is one for verbs that run here
            return {"no_cluster": str(error)}

    def _latest_steps(self) -> Lines:
        path = self.config.train.out / "metrics.jsonl"
        size = size_of(path) or 0
        tail = read_range(path, max(0, size - TAIL_BYTES), TAIL_BYTES) if size else b""
        whole = tail[: tail.rfind(b"\n") + 1].splitlines()
        return [json.loads(line) for line in whole[size > TAIL_BYTES :][-LATEST:]]


def make_steps(standing: Standing, lines: Lines, num_steps: int, now_s: float) -> list[Step]:
    """Each verb of a run, and the others that began."""
    facts = {
        "scan": _of_scan(standing),
        "plan": _of_plan(standing),
        "encode": _of_encode(standing, standing.until(now_s)),
        "text": _of_text(standing),
        "train": _of_train(lines, num_steps),
    }
    others = [verb for verb in standing.jobs if verb not in ORDER]
    steps = []
    for verb in (*ORDER, *others):
        state, since_s = standing.state(verb)
        told = {**_of_end(standing, verb), **facts.get(verb, {})}
        if state != "running":
            told.pop("left_s", None)
        steps.append(Step(verb, state, since_s, **told))
    return steps


def _of_end(standing: Standing, verb: str) -> dict[str, Any]:
    message = standing.ends.get(verb, {}).get("message", "")
    return {"told": message} if message else {}


def _of_progress(standing: Standing, verb: str) -> dict[str, Any]:
    """What the bar of a verb said last, if it is the last job's."""
    said, job = standing.last.get((verb, "progress")), standing.jobs.get(verb)
    if said is None or (job and seconds(said) < seconds(job)):
        return {}
    facts = {name: said[name] for name in ("done", "total", "unit")}
    if job and said["done"]:
        facts["left_s"] = (said["total"] - said["done"]) * (seconds(said) - seconds(job)) / said["done"]
    return facts


def _of_scan(standing: Standing) -> dict[str, Any]:
    done = standing.last.get(("scan", "done"))
    names = ("videos", "images", "unreadable", "duplicates", "removed")
    told = ", ".join(f"{done[name]:,} {name}" for name in names if done[name] or name == "videos") if done else ""
    return _of_progress(standing, "scan") | ({"told": told} if told else {})


def _of_plan(standing: Standing) -> dict[str, Any]:
    planned = sum(standing.planned.values())
    return {"told": f"{planned:,} shards"} if planned else {}


def _of_encode(standing: Standing, until_s: float) -> dict[str, Any]:
    done, total = standing.shards()
    if not total:
        return {}
    told, left_s, pace = [], None, standing.pace(until_s)
    if pace:
        left_s = (total - done) / pace.shards_per_s
        shares = ", ".join(f"{stage} {share:.0%}" for stage, share in pace.shares.items())
        rate = f"{pace.chunks_per_s:,.1f} chunks/s, {pace.bytes_per_s / 1e6:,.2f} MB/s"
        told += [rate, f"encoders: {shares}", f"{pace.decode_cpus:.1f} CPUs decode"]
    if standing.failed:
        told.append(f"{sum(standing.failed.values()):,} videos failed")
    facts = {"done": done, "total": total, "unit": "shards", "left_s": left_s}
    return facts | ({"told": "; ".join(told)} if told else {})


def _of_text(standing: Standing) -> dict[str, Any]:
    done = standing.last.get(("text", "done"))
    told = f"{done['captions']:,} captions encoded the last time" if done else ""
    return _of_progress(standing, "text") | ({"told": told} if told else {})


def _of_train(lines: Lines, num_steps: int) -> dict[str, Any]:
    if not lines:
        return {}
    last = lines[-1]
    left_s = (num_steps - last["step"]) * mean(line["step_s"] for line in lines)
    told = f"{describe_steps(list(lines))}, goodput {last['goodput']:.0%}"
    return {"done": last["step"], "total": num_steps, "unit": "steps", "left_s": left_s, "told": told}
