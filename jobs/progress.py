"""Progress for people: a bar, or plain lines where there is no terminal."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from pipeline.records import Quarantined

PLAIN_LINE_EVERY_S = 10.0

console = Console(highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """One line for the user."""
    console.print(message, markup=False)


class Bar:
    """Counts up to `total`; `note` is shown behind the count."""

    def __init__(self, verb: str, total: int, unit: str, screen: RichProgress | None) -> None:
        self.verb, self.total, self.unit, self.done = verb, total, unit, 0
        self.screen = screen
        self.task = screen.add_task(verb, total=total, unit=unit, note="") if screen else None
        self.next_line_s = time.monotonic() + PLAIN_LINE_EVERY_S

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.move_to(self.done + steps, note)

    def move_to(self, done: int, note: str = "") -> None:
        if done == self.done and self.screen is None:
            return
        self.done = done
        if self.screen is not None and self.task is not None:
            self.screen.update(self.task, completed=done, note=note)
        elif time.monotonic() >= self.next_line_s or done == self.total:
            self.next_line_s = time.monotonic() + PLAIN_LINE_EVERY_S
            say(f"{self.verb}: {done}/{self.total} {self.unit} {note}".rstrip())


@contextmanager
def progress(verb: str, total: int, unit: str) -> Iterator[Bar]:
    """A bar on a terminal; elsewhere a plain line every ten seconds and at the end."""
    if not sys.stdout.isatty():
        yield Bar(verb, total, unit, None)
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
        yield Bar(verb, total, unit, screen)


def show_quarantine(quarantined: Sequence[Quarantined]) -> None:
    """A table of what could not be used, and why."""
    table = Table(title=f"quarantine: {len(quarantined)} inputs could not be used")
    for column in ("input", "stage", "reason"):
        table.add_column(column, overflow="fold")
    for one in quarantined:
        table.add_row(Text(one.path), one.stage, Text(one.reason))
    console.print(table)
