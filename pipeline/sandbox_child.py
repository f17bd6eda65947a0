"""The child of a `Sandbox`, which does the work.

It is sent pickles, for what its parent sends is trusted. What it sends is not: a line of JSON for each answer, and
arrays in memory that both see. A line is [CPU seconds for the work so far, what it is, ...]:

    began, rights              it has its work, and all that it imports, and could not give up these rights
    item, value                what the work has yielded, as `wire.to_plain` makes it; its arrays are in the next slot
    ended, error, traceback    the work is done (error is null), or has raised this
"""

import ctypes
import faulthandler
import json
import mmap
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.wire import error_to_plain, to_plain

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
LENGTH = struct.Struct("!Q")  # of a request, before it


def bytes_of(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, where they lie."""
    return np.ndarray(array.nbytes, np.uint8, array).data


class _Slot:
    """Memory that the parent sees too, as much as was ever needed. Mapped: writing takes an eighth of the time."""

    def __init__(self, file: int) -> None:
        self.file = file
        self.map: mmap.mmap | None = None

    def fill(self, arrays: Sequence[np.ndarray]) -> None:
        """Put arrays there, one after the other."""
        num_bytes = sum(array.nbytes for array in arrays)
        if self.map is None or len(self.map) < num_bytes:
            os.ftruncate(self.file, num_bytes)
            self.map = mmap.mmap(self.file, num_bytes)
        start = 0
        for array in arrays:
            self.map[start : start + array.nbytes] = bytes_of(array)
            start += array.nbytes


def serve(lacking: Sequence[str], parent: int, memory_bytes: int, wire: int, *slots: int) -> None:
    """Do one work after the other until the parent is gone; `lacking` are the rights that could not be taken away."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is sent to all; the parent decides
    faulthandler.enable()
    worker = _Worker(socket.socket(fileno=wire), slots, memory_bytes, lacking)
    with suppress(EOFError, ConnectionError):  # the parent is gone
        while True:
            worker.do_next()


class _Worker:
    """Does what the parent asks for."""

    def __init__(self, wire: socket.socket, slots: Sequence[int], memory_bytes: int, lacking: Sequence[str]) -> None:
        self.wire, self.lacking = wire, lacking
        self.requests = wire.makefile("rb")
        self.slots = [_Slot(file) for file in slots]
        self.memory_bytes = memory_bytes
        self.limited = False
        self.shared = self.freed = 0  # slots that were filled and that the parent has emptied, in this work

    def do_next(self) -> None:
        """Wait for a work, and answer with what it yields, or raises. EOFError where none will come."""
        request = self._receive(LENGTH.unpack(self._receive(LENGTH.size))[0])
        self.began_s = time.process_time()
        self.shared = self.freed = 0
        ended: list[Any] = [None, ""]
        try:
            work, arguments = pickle.loads(request)
            self._limit_memory()
            self._answer("began", self.lacking)
            for item in work(*arguments):
                self._share(item)
        except Exception as error:
            ended = [error_to_plain(error), traceback.format_exc()]
        self._await_slots(self.shared)
        self._answer("ended", *ended)

    def _receive(self, num_bytes: int) -> bytes:
        content = self.requests.read(num_bytes)
        if len(content) < num_bytes:
            raise EOFError
        return content

    def _answer(self, *answer: Any) -> None:
        line = json.dumps([time.process_time() - self.began_s, *answer])
        self.wire.sendall(f"{line}\n".encode())

    def _share(self, item: Any) -> None:
        """Send an item, its arrays in the next slot as soon as that is free."""
        arrays: list[np.ndarray] = []
        plain = to_plain(item, arrays)
        if any(array.nbytes for array in arrays):
            self._await_slots(self.shared - len(self.slots) + 1)
            self.slots[self.shared % len(self.slots)].fill(arrays)
            self.shared += 1
        self._answer("item", plain)

    def _await_slots(self, freed: int) -> None:
        """Wait until the parent has emptied so many."""
        while self.freed < freed:
            self._receive(1)
            self.freed += 1

    def _limit_memory(self) -> None:
        """Limit private writable memory, on top of what the first work's imports have taken, and each slot.

        Not the address space (RLIMIT_AS): 16 threads of glibc reserve 1 GiB of that, and 0.13 GiB of this.
        """
        if self.limited or not sys.platform.startswith("linux"):
            return
        pages = int(Path("/proc/self/statm").read_text().split()[5])  # data and stack
        _lower(resource.RLIMIT_DATA, pages * resource.getpagesize() + self.memory_bytes)
        _lower(resource.RLIMIT_FSIZE, self.memory_bytes)
        self.limited = True


def _lower(limit: int, value: int) -> None:
    _, highest = resource.getrlimit(limit)
    resource.setrlimit(limit, (min(value, highest) if highest >= 0 else value, highest))


def _die_with(parent: int) -> None:
    """Be killed when the parent dies, even while this process hangs in a decoder that holds Python's lock."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        sys.exit(0)
