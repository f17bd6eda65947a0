"""The child of a `Sandbox`, which does the work, and what the two say to each other."""

import ctypes
import faulthandler
import mmap
import os
import pickle
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

LARGE_BYTES = 1 << 16  # arrays of this size and more go through shared memory
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


@dataclass(frozen=True)
class Began:
    """The child has its work, and all that it imports."""


@dataclass(frozen=True)
class Item:
    """One item that the work has yielded."""

    pickled: bytes
    sizes: tuple[int, ...]  # in bytes, of the large arrays in the next slot


@dataclass(frozen=True)
class Ended:
    """The work is done, or has raised `error`."""

    error: Exception | None = None
    trace: str = ""


class Slot:
    """Memory that both processes see, as much as was ever needed."""

    def __init__(self, file: int) -> None:
        self.file = file
        self.map: mmap.mmap | None = None

    def write(self, buffers: Sequence[memoryview]) -> None:
        """Put buffers there, one after the other."""
        shared = self._shared(sum(buffer.nbytes for buffer in buffers))
        start = 0
        for buffer in buffers:
            shared[start : start + buffer.nbytes] = buffer
            start += buffer.nbytes

    def read(self, sizes: Sequence[int]) -> list[bytearray]:
        """Copies of the buffers, of these sizes in bytes."""
        copies, start = [], 0
        with memoryview(self._shared(sum(sizes))) as shared:
            for size in sizes:
                copies.append(bytearray(shared[start : start + size]))
                start += size
        return copies

    def close(self) -> None:
        if self.map is not None:
            self.map.close()
        os.close(self.file)

    def _shared(self, num_bytes: int) -> mmap.mmap:
        if self.map is None or len(self.map) < num_bytes:
            if os.fstat(self.file).st_size < num_bytes:
                os.ftruncate(self.file, num_bytes)
            if self.map is not None:
                self.map.close()
            self.map = mmap.mmap(self.file, num_bytes)
        return self.map


def open_memory() -> int:
    """A file that has no name and ends with those who hold it; in memory where the system can."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("sandbox")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def serve(parent: int, memory_bytes: int, wire: int, *slots: int) -> None:
    """Do one work after the other until the parent is gone."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is sent to all; the parent decides
    faulthandler.enable()
    worker = _Worker(Connection(wire), [Slot(file) for file in slots], memory_bytes)
    with suppress(EOFError, BrokenPipeError):  # the parent is gone
        while True:
            worker.do(worker.connection.recv_bytes())


class _Worker:
    """Does what the parent asks for."""

    def __init__(self, connection: Connection, slots: Sequence[Slot], memory_bytes: int) -> None:
        self.connection = connection
        self.slots = slots
        self.memory_bytes = memory_bytes
        self.limited = False
        self.shared = self.freed = 0  # slots that were filled and that the parent has emptied, in this work

    def do(self, request: bytes) -> None:
        """Unpickle a work, and answer with what it yields, or raises."""
        self.began_s = time.process_time()
        self.shared = self.freed = 0
        ended = Ended()
        try:
            work, arguments = pickle.loads(request)
            self._limit_memory()
            self._answer(Began())
            for item in work(*arguments):
                self._share(item)
        except Exception as error:
            ended = Ended(_portable(error), traceback.format_exc())
        self._await_slots(self.shared)
        self._answer(ended)

    def _answer(self, answer: Began | Item | Ended) -> None:
        self.connection.send((time.process_time() - self.began_s, answer))

    def _share(self, item: Any) -> None:
        """Send an item, its large arrays in the next slot as soon as that is free."""
        large: list[memoryview] = []

        def keep_small(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes >= LARGE_BYTES:
                large.append(raw)
            return raw.nbytes < LARGE_BYTES

        pickled = pickle.dumps(item, protocol=5, buffer_callback=keep_small)
        if large:
            self._await_slots(self.shared - len(self.slots) + 1)
            self.slots[self.shared % len(self.slots)].write(large)
            self.shared += 1
        self._answer(Item(pickled, tuple(buffer.nbytes for buffer in large)))

    def _await_slots(self, freed: int) -> None:
        """Wait until the parent has emptied so many."""
        while self.freed < freed:
            self.connection.recv_bytes()
            self.freed += 1

    def _limit_memory(self) -> None:
        """Limit private writable memory, on top of what the first work's imports have taken.

        Not the address space (RLIMIT_AS): 16 threads of glibc reserve 1 GiB of that, and 0.13 GiB of this.
        """
        if self.limited or not sys.platform.startswith("linux"):
            return
        pages = int(Path("/proc/self/statm").read_text().split()[5])  # data and stack
        _, highest = resource.getrlimit(resource.RLIMIT_DATA)
        limit = pages * resource.getpagesize() + self.memory_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (min(limit, highest) if highest >= 0 else limit, highest))
        self.limited = True


def _portable(error: Exception) -> Exception:
    """An exception that can be pickled: itself, or what it says."""
    if isinstance(error, MemoryError):
        return MemoryError(str(error))
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _die_with(parent: int) -> None:
    """Be killed when the parent dies, even while this process hangs in a decoder that holds Python's lock."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        sys.exit(0)
