"""`status`: a run at a glance, and with `--watch` as it goes."""

import time
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cluster.submission import Job
from cluster.usage import Usage
from jobs.config import RunConfig
from jobs.glance import Gatherer, Glance, Step
from jobs.outcome import QUARANTINED
from jobs.progress import console
from pipeline.location import Location

WATCH_EVERY_S = 2.0
REMOTE_EVERY_S = 10.0  # as often as events are published in an object store
PLAIN_EVERY_S = 10.0  # where there is no terminal
UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0))
COLOURS = {"running": "cyan", "done": "green", "SUCCEEDED": "green", "RUNNING": "cyan", "PENDING": "yellow"}
BAD = "red"


def status(config: RunConfig, watch: bool) -> None:
    """Show how far a run is; with `watch` again and again, until Ctrl-C or, without a terminal, until it is over."""
    gatherer = Gatherer(config)
    if not watch:
        console.print(render(gatherer.look()))
        return
    try:
        _watch(gatherer, REMOTE_EVERY_S if isinstance(config.cache.root, Location) else WATCH_EVERY_S)
    except KeyboardInterrupt:
        return


def _watch(gatherer: Gatherer, every_s: float) -> None:
    if not console.is_terminal:
        for glance in _looks(gatherer, PLAIN_EVERY_S):
            console.print(render(glance))
            if glance.is_over:
                return
    with Live(console=console, auto_refresh=False) as live:
        for glance in _looks(gatherer, every_s):
            live.update(render(glance), refresh=True)


def _looks(gatherer: Gatherer, every_s: float) -> Iterator[Glance]:
    while True:
        yield gatherer.look()
        time.sleep(every_s)


def render(glance: Glance) -> RenderableType:
    """A run at one moment, for people."""
    quarantine = f", {glance.quarantined:,} inputs in the quarantine" if glance.quarantined else ""
    now = time.strftime("%H:%M:%S", time.localtime(glance.now_s))
    head = Text(f"{now}  {glance.cache} -> {glance.out}{quarantine}")
    steps = Table("verb", "state", "progress", "left", "", box=None, pad_edge=False)
    for step in glance.steps:
        steps.add_row(*_cells(step, glance.now_s))
    parts: list[RenderableType] = [head, steps]
    if glance.jobs:
        jobs = Table("job", "verb", "state", "since", "exit code", "", box=None, pad_edge=False)
        for job in glance.jobs:
            jobs.add_row(*_job_cells(job, glance.now_s))
        parts.append(jobs)
    parts.append(Text(_cluster(glance.usage, len(glance.jobs)) if glance.usage else f"no jobs: {glance.no_cluster}"))
    return Group(*parts, Text())


def _cells(step: Step, now_s: float) -> list[Text]:
    """A row of a verb."""
    age = f" {duration(now_s - step.since_s)}{'' if step.is_running else ' ago'}" if step.state else ""
    share = f"{step.done:,}/{step.total:,} {step.unit}" if step.done is not None and step.total else ""
    left = duration(step.left_s) if step.left_s is not None else ""
    return [Text(step.verb), _coloured(step.state, age), *map(Text, (share, left, step.told))]


def _job_cells(job: Job, now_s: float) -> list[Text]:
    since = duration(now_s - (job.ended_s or job.begun_s)) + (" ago" if job.is_over else "")
    code = "" if job.exit_code is None else str(job.exit_code)
    verb = job.metadata.get("verb", "")
    why = job.message if job.status == "FAILED" else ""
    if job.exit_code == QUARANTINED:  # done, and Ray calls it a failure
        return [Text(job.id), Text(verb), _coloured("SUCCEEDED"), *map(Text, (since, code, "see the quarantine"))]
    return [Text(job.id), Text(verb), _coloured(job.status), *map(Text, (since, code, why))]


def _coloured(state: str, more: str = "") -> Text:
    return Text(state + more, style=COLOURS.get(state, BAD) if state else "")


def _cluster(usage: Usage, num_jobs: int) -> str:
    """The nodes in a line."""
    amounts = [f"{usage.used[name]:g} of {total:g} {name}s" for name, total in usage.total.items() if total]
    jobs = "" if num_jobs else "; no job of this run was submitted"
    return f"{usage.nodes} node{'s' * (usage.nodes != 1)}, {', '.join(amounts)} in use{jobs}"


def duration(seconds: float) -> str:
    """In the largest unit that it has one of."""
    for unit, size in UNITS:
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
