"""Progress: a bar for people, or plain lines where there is no terminal; metrics and events for programs."""

import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from cluster.meters import Meters
from jobs.config import RunConfig
from jobs.events import Events
from pipeline.records import Quarantined

PLAIN_LINE_EVERY_S = 10.0  # and an event as often

# What a terminal obeys instead of showing it, and what turns the order of letters: names and captions may hold it.
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
HARMLESS = re.compile("(\x1b\\[[0-9;]*m|\r)")

console = Console(highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """A text for a terminal: what it would obey is shown by its numbers."""
    return OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


def printable_log(text: str) -> str:
    """As `printable`, for what a program wrote for a terminal: its colours and rewritten lines stay."""
    parts = HARMLESS.split(text)  # every second one is harmless
    return "".join(part if index % 2 else printable(part) for index, part in enumerate(parts))


def say(message: str) -> None:
    """One line for the user."""
    console.print(printable(message), markup=False)


def say_waiting(verb: str, waited_s: float) -> None:
    """That nothing is done, for no worker has a place."""
    say(f"{verb}: waiting for nodes: for {waited_s:.0f} s no worker has begun; they are starting, or have no room yet")


def run_meters(prefix: str, config: RunConfig, **labels: str) -> Meters:
    """Metrics of a run, labelled by its name and its cache."""
    return Meters(f"latentmill_{prefix}", run=config.train.out.name, cache=config.data.cache, **labels)


class Bar:
    """Counts up to `total`; `note` is shown behind the count."""

    def __init__(
        self, verb: str, total: int, unit: str, screen: RichProgress | None, meters: Meters, events: Events | None
    ) -> None:
        self.verb, self.total, self.unit, self.done = verb, total, unit, 0
        self.screen, self.meters, self.events = screen, meters, events
        self.task = screen.add_task(verb, total=total, unit=unit, note="") if screen else None
        self.next_line_s = time.monotonic() + PLAIN_LINE_EVERY_S
        self._measure()
        self._tell()

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.meters.add({"items": steps})
        self.move_to(self.done + steps, note)

    def move_to(self, done: int, note: str = "") -> None:
        if done == self.done and self.screen is None:
            return
        self.done = done
        self._measure()
        if self.screen is not None and self.task is not None:
            self.screen.update(self.task, completed=done, note=note)
        if time.monotonic() < self.next_line_s and done != self.total:
            return
        self.next_line_s = time.monotonic() + PLAIN_LINE_EVERY_S
        self._tell()
        if self.screen is None:
            say(f"{self.verb}: {done}/{self.total} {self.unit} {note}".rstrip())

    def _measure(self) -> None:
        self.meters.set({"done": self.done, "wanted": self.total})

    def _tell(self) -> None:
        if self.events and self.total:
            self.events.write("progress", often=True, done=self.done, total=self.total, unit=self.unit)


@contextmanager
def progress(verb: str, total: int, unit: str, config: RunConfig, events: Events | None = None) -> Iterator[Bar]:
    """A bar on a terminal, elsewhere a plain line every ten seconds and at the end; as often an event, where asked for.

    Ray's metrics have it as latentmill_progress_done, _wanted and _items_total, by run, cache, verb and unit.
    """
    meters = run_meters("progress", config, verb=verb, unit=unit)
    if not sys.stdout.isatty():
        yield Bar(verb, total, unit, None, meters, events)
        return
    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with RichProgress(*columns, console=console) as screen:
        yield Bar(verb, total, unit, screen, meters, events)


def show_quarantine(quarantined: Sequence[Quarantined]) -> None:
    """A table of what could not be used, and why."""
    table = Table(title=f"quarantine: {len(quarantined)} inputs could not be used")
    for column in ("input", "stage", "reason"):
        table.add_column(column, overflow="fold")
    for one in quarantined:
        table.add_row(*(Text(printable(text)) for text in (one.path, one.stage, one.reason)))
    console.print(table)
