"""Work that may crash, hang or eat the memory, in a child process that can be killed: reading videos is such work.

This is the parent's side; the child's is `sandbox_child.py`. Requests and small results go through a socket, large
arrays through memory that both see. Not by fork, which copies the locks that other threads hold, and not by
multiprocessing, whose children import the main module of their parent: in a Ray worker that is Ray's. It guards
against accidents, not against attackers, for results are pickled.
"""

import fcntl
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from pipeline.errors import BadVideo
from pipeline.sandbox_child import Began, Ended, Item, Slot, open_memory

PATIENCE = 10.0  # seconds that a work may take for each second that its video lasts, beside the deadline
START_S = 120.0  # for starting Python and importing what the work needs, on a machine that has much else to do
KILL_S = 5.0  # a child that waits for a dead mount cannot be killed, and is left alone after this
LOOK_S = 0.1  # how often a waiting parent looks after the child's stderr
SLOTS = 2  # large items that the child makes ahead of the parent
STDERR_BYTES = 1 << 20  # of what a child writes while it works; then all but the end of it is forgotten
TAIL_BYTES = 4000  # the end of it, which is told
NO_MEMORY = re.compile(r"allocate memory|get_buffer\(\) failed|bad_alloc")  # FFmpeg then says "damaged", C++ aborts
START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from pipeline.sandbox_child import serve; serve(*map(int, sys.argv[2:]))"
)


@dataclass(frozen=True)
class Limits:
    """What a work may use, and how many of them one child does."""

    deadline_s: float  # and `PATIENCE` times what the video lasts
    memory_bytes: int  # on top of what the child has when its imports are done
    videos: int  # works, after which a fresh child takes over


class ChildTraceback(Exception):
    """Where an exception was raised in the child: the cause of the same exception in the parent."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Sandbox:
    """One child process: started when it is needed, killed when it must be, replaced after `limits.videos` works.

    `cpu_s` and `stderr` are the child's CPU seconds for the last work, and the last lines that it wrote meanwhile.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.cpu_s = 0.0
        self.stderr = ""
        self.child: _Child | None = None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child; the next work gets a fresh one."""
        if self.child is not None:
            self.child.kill()
            self.child = None

    def stream(self, work: Callable[..., Iterable[Any]], *arguments: Any, lasts_s: float = 0.0) -> Iterator[Any]:
        """What `work(*arguments)` yields, in the child; `work` is a function of a module, not of a main script.

        Items are the caller's to keep and to change. Only time that the caller waits for them counts. BadVideo where
        the child crashes, is late or needs too much memory, or the work raises it; what else it raises is raised here.
        A stream that is closed early takes its child with it.
        """
        self.cpu_s, self.stderr = 0.0, ""
        child, first = self._begin(work, arguments)
        late_s = self.limits.deadline_s + PATIENCE * lasts_s
        try:
            yield from self._items(child, first, late_s)
        except _Late as error:
            reason = f"still not done after {late_s:g} s: it hangs, or data.deadline_s is too short for it"
            raise BadVideo(reason, child.stderr()) from error
        except _Died as error:
            stderr = child.stderr()
            reason = self._needs_memory() if NO_MEMORY.search(stderr) else f"the decoder crashed: {error}"
            raise BadVideo(reason, stderr) from error
        except MemoryError as error:
            raise BadVideo(self._needs_memory(), child.stderr()) from error
        except BadVideo as error:
            stderr = error.stderr or child.stderr()
            reason = self._needs_memory() if NO_MEMORY.search(f"{error}\n{stderr}") else str(error)
            raise BadVideo(reason, stderr) from error.__cause__
        finally:
            if child is self.child:  # and not closed meanwhile
                self.stderr = child.stderr()
                if child.working:
                    self.close()

    def call(self, work: Callable[..., Any], *arguments: Any, lasts_s: float = 0.0) -> Any:
        """What `work(*arguments)` returns, in the child; raises as `stream` does."""
        [result] = self.stream(_once, work, *arguments, lasts_s=lasts_s)
        return result

    def _needs_memory(self) -> str:
        return f"needs more memory than {self.limits.memory_bytes / 2**30:.3g} GiB (data.reader_bytes)"

    def _ready_child(self) -> "_Child":
        if self.child is not None and self.child.working:
            raise RuntimeError("one work at a time: an earlier stream of this sandbox is still open; close it first")
        if self.child is not None and (self.child.works >= self.limits.videos or not self.child.is_alive()):
            self.close()
        if self.child is None:
            self.child = _Child(self.limits.memory_bytes)
        return self.child

    def _begin(self, work: Callable[..., Iterable[Any]], arguments: tuple) -> "tuple[_Child, Began | Ended]":
        """The child and its first answer: a fresh child's where the old one has died since its last work."""
        child = self._ready_child()
        child.begin(work, arguments)
        try:
            return child, child.first_answer()
        except RuntimeError:
            self.close()
            if child.works == 1:
                raise
        return self._begin(work, arguments)

    def _items(self, child: "_Child", answer: "Began | Item | Ended", late_s: float) -> Iterator[Any]:
        while not isinstance(answer, Ended):
            if isinstance(answer, Item):
                yield child.take(answer)
            began_s = time.monotonic()
            self.cpu_s, answer = child.receive(late_s)
            late_s -= time.monotonic() - began_s
        if answer.error is not None:
            child.working = isinstance(answer.error, MemoryError)  # it has as much memory as it may: not used again
            raise answer.error from ChildTraceback(answer.trace)
        child.working = False


def _once(work: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    yield work(*arguments)


_here: Sandbox | None = None


def sandbox_here(limits: Limits) -> Sandbox:
    """This process's own sandbox: made once, for one task after the other."""
    global _here
    if _here is None or _here.limits != limits:
        if _here is not None:
            _here.close()
        _here = Sandbox(limits)
    return _here


class _Late(Exception):
    """The child does not answer in time."""


class _Died(Exception):
    """The child is no more. The message says of what."""


class _Child:
    """The child as its parent sees it."""

    def __init__(self, memory_bytes: int) -> None:
        self.works = 0
        self.working = False
        self.connection, theirs = Pipe()
        self.log = open_memory()
        self.slots = [Slot(open_memory()) for _ in range(SLOTS)]
        self.taken = 0  # items, from slot `taken % SLOTS` next
        fcntl.fcntl(self.log, fcntl.F_SETFL, os.O_APPEND)  # so that it can be cut while the child writes
        shared = (theirs.fileno(), *(slot.file for slot in self.slots))
        root = str(Path(__file__).parents[1])
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, root, *map(str, (os.getpid(), memory_bytes, *shared))],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            pass_fds=shared,
        )
        theirs.close()

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def begin(self, work: Callable[..., Any], arguments: tuple) -> None:
        """Hand it a work."""
        os.ftruncate(self.log, 0)
        self.taken = 0
        self.works += 1
        self.working = True
        with suppress(ConnectionError):  # it died: the first answer will tell
            self.connection.send((work, arguments))

    def first_answer(self) -> Began | Ended:
        """That it has begun, or that the work cannot be imported; RuntimeError where it does not start at all."""
        try:
            return self.receive(START_S)[1]
        except (_Late, _Died) as error:
            raise RuntimeError(f"the sandbox does not start: {error}: {self.stderr()}") from error

    def receive(self, within_s: float) -> tuple[float, Any]:
        """Its CPU seconds for the work so far and its next answer; _Late or _Died where none comes."""
        until_s = time.monotonic() + within_s
        try:
            while not self.connection.poll(min(LOOK_S, max(0.0, until_s - time.monotonic()))):
                self._cut_log()
                if time.monotonic() >= until_s:
                    raise _Late(f"no answer within {within_s:g} s")
            self._cut_log()
            return self.connection.recv()
        except (EOFError, ConnectionError) as error:
            raise _Died(self._cause_of_death()) from error

    def take(self, item: Item) -> Any:
        """The object that an item holds, its arrays copied out of their slot, which is free again."""
        if not item.sizes:
            return pickle.loads(item.pickled)
        buffers = self.slots[self.taken % SLOTS].read(item.sizes)
        self.taken += 1
        with suppress(ConnectionError):
            self.connection.send_bytes(b"")
        return pickle.loads(item.pickled, buffers=buffers)

    def stderr(self) -> str:
        """The end of what it has written since its work began."""
        size = os.fstat(self.log).st_size
        return os.pread(self.log, TAIL_BYTES, max(0, size - TAIL_BYTES)).decode(errors="replace").strip()

    def kill(self) -> None:
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(KILL_S)
        self.connection.close()
        os.close(self.log)
        for slot in self.slots:
            slot.close()

    def _cut_log(self) -> None:
        """Keep only the end of a long log: some decoders complain of every block, and what they write is memory."""
        if os.fstat(self.log).st_size > STDERR_BYTES:
            kept = self.stderr()
            os.ftruncate(self.log, 0)
            os.write(self.log, kept.encode())

    def _cause_of_death(self) -> str:
        code = self.process.wait(KILL_S)
        if code >= 0:
            return f"its process ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"{name}, as where the machine's memory is used up" if name == "SIGKILL" else name
