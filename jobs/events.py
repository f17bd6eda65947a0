"""What happens, for programs: one JSON object per line, in a file that several processes may append to."""

import json
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cluster.meanwhile import meanwhile
from pipeline.location import Location, Place
from pipeline.storage import append, in_parallel, list_files, publish, read_range, size_of

PUBLISH_EVERY_S = 10.0
TELL_EVERY_S = 1.0
BLOCK_BYTES = 1 << 22
FILE_BYTES = 1 << 20


class Events:
    """Writes a verb's events to a local file. In an object store, where nothing can be appended to, each run has a file
    of its own in a folder instead, which is published anew at most every ten seconds, and at once for what is rare;
    when it has FILE_BYTES the run begins another one.
    """

    def __init__(self, place: Place, verb: str) -> None:
        self.place, self.verb = place, verb
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H-%M-%S")
        self.run = f"{now}-{verb}-{uuid.uuid4().hex[:8]}"
        self.number = 0  # of its file in a store
        self.content = b""  # of that file
        self.published_s = 0.0

    def write(self, event: str, often: bool = False, **facts: Any) -> None:
        """`often` says that many such events follow each other."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "verb": self.verb, "event": event, **facts})
        if isinstance(self.place, Path):
            append(self.place, [line])
            return
        self.content += line.encode() + b"\n"
        is_full = len(self.content) > FILE_BYTES
        if is_full or not often or time.monotonic() - self.published_s > PUBLISH_EVERY_S:
            publish(_folder(self.place) / f"{self.run}-{self.number:06d}.jsonl", self.content)
            self.published_s = time.monotonic()
        if is_full:
            self.number, self.content = self.number + 1, b""


class NewEvents:
    """Reads a log while others write it: each time what has come since the time before."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.seen_bytes: dict[str, int] = {}  # of each of its files

    def read(self) -> Iterator[dict[str, Any]]:
        """Those of one file after the other, a few in memory at a time.

        A line that a crash left torn is passed over, and one that is being written waits.
        """
        files = list_files(_folder(self.place), ".jsonl") if isinstance(self.place, Location) else [self.place]
        for file, size in zip(files, list(in_parallel(size_of, files))):
            if size:
                yield from self._read(file, size)

    def _read(self, file: Place, size: int) -> Iterator[dict[str, Any]]:
        seen_bytes = self.seen_bytes.get(file.name, 0)
        while content := read_range(file, seen_bytes, min(BLOCK_BYTES, size - seen_bytes)):
            whole = content[: content.rfind(b"\n") + 1]
            if not whole:
                return
            seen_bytes += len(whole)
            self.seen_bytes[file.name] = seen_bytes
            yield from filter(None, map(_event, whole.splitlines()))


def read_events(place: Place) -> list[dict[str, Any]]:
    """All events by time."""
    return sorted(NewEvents(place).read(), key=lambda event: event["time"])


@contextmanager
def telling(path: Path, events: Collection[str], tell: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, tell the messages of such events as other processes write them to a local file."""
    new = NewEvents(path)
    list(new.read())

    def look() -> None:
        for event in new.read():
            if event["event"] in events:
                tell(event["message"])

    try:
        with meanwhile(look, TELL_EVERY_S):
            yield
    finally:
        look()  # what came last is told too


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _folder(place: Place) -> Place:
    return place.parent / Path(place.name).stem
