"""The child of a `Sandbox` as its parent sees it: started, given works, listened to, killed.

It has none of the parent's secrets in its environment, gives up what `confine.py` says before it reads anything, and
nothing that it answers is believed before it was looked at.
"""

import fcntl
import json
import logging
import math
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.sandbox_child import LENGTH, bytes_of
from pipeline.scratch import open_memory
from pipeline.wire import Malformed, error_from_plain, from_plain

logger = logging.getLogger(__name__)

START_S = 120.0  # for starting Python and importing what the work needs, on a machine that has much else to do
KILL_S = 5.0  # a child that waits for a dead mount cannot be killed, and is left alone after this
LOOK_S = 0.1  # how often a waiting parent looks after the child's stderr
SLOTS = 2  # large items that the child makes ahead of the parent
STDERR_BYTES = 1 << 20  # of what a child writes while it works; then all but the end of it is forgotten
TAIL_BYTES = 4000  # the end of it, which is told
LINE_BYTES = 64 << 20  # of one answer, at the most: scenes and numbers of frames of a very long video are a few
RECEIVED_BYTES = 1 << 16  # at once
# What a child is told of its environment: where programs and libraries lie, and how many threads to use. Not HOME, for
# what lies there is not its concern, and no name that could be that of a secret.
ENVIRONMENT = re.compile(r"PATH|LANG|TMPDIR|(PYTHON|LC_|LD_|DYLD_|OMP_|MKL_|OPENBLAS_|MALLOC_)\w+")
# It begins without rights that it does not need: threads, which NumPy starts when it is imported, keep theirs.
START = """
import sys
sys.path.insert(0, sys.argv[1])
from pipeline.confine import confine
lacking = confine()
from pipeline.sandbox_child import serve
serve(lacking, *map(int, sys.argv[2:]))
"""


class Late(Exception):
    """The child does not answer in time."""


class Died(Exception):
    """The child is no more. The message says of what."""


@dataclass(frozen=True)
class Answer:
    """A line that the child has sent; what is in it is explained there."""

    cpu_s: float
    kind: str
    content: list[Any]

    @classmethod
    def of(cls, line: bytes) -> "Answer":
        match json.loads(line):
            case [float(cpu_s), "began", list() as lacking]:
                return cls(cpu_s, "began", lacking)
            case [float(cpu_s), "item", value]:
                return cls(cpu_s, "item", [value])
            case [float(cpu_s), "ended", error, str(trace)]:
                return cls(cpu_s, "ended", [error, trace])
        raise Malformed(f"found {line[:100]!r}")


class Child:
    """The child as its parent sees it."""

    def __init__(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self.works = 0
        self.working = False
        self.wire, theirs = socket.socketpair()
        self.received = bytearray()  # of answers that were not asked for yet
        self.log = open_memory()
        self.slots = [open_memory() for _ in range(SLOTS)]
        self.taken = 0  # items with arrays, from slot `taken % SLOTS` next
        fcntl.fcntl(self.log, fcntl.F_SETFL, os.O_APPEND)  # so that it can be cut while the child writes
        shared = (theirs.fileno(), *self.slots)
        root = str(Path(__file__).parents[1])
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, root, *map(str, (os.getpid(), memory_bytes, *shared))],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            pass_fds=shared,
            cwd="/",  # Python looks for modules in the working directory, where others may have put some
            env={name: value for name, value in os.environ.items() if ENVIRONMENT.fullmatch(name)},
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
        request = pickle.dumps((work, arguments))
        self._send(LENGTH.pack(len(request)) + request)

    def first_answer(self) -> Answer:
        """That it has begun, or that the work cannot be imported; RuntimeError where it does not start at all."""
        try:
            answer = self.receive(START_S)
        except (Late, Died) as error:
            raise RuntimeError(f"the sandbox does not start: {error}: {self.stderr()}") from error
        if answer.kind == "began" and answer.content:
            _warn(", ".join(map(str, answer.content)))
        return answer

    def receive(self, within_s: float) -> Answer:
        """Its next answer; Late or Died where none comes."""
        until_s = time.monotonic() + within_s
        seen = 0
        while (end := self.received.find(b"\n", seen)) < 0:
            seen = len(self.received)
            if time.monotonic() >= until_s:
                raise Late(f"no answer within {within_s:g} s")
            self._receive_some(until_s)
        line = bytes(self.received[:end])
        del self.received[: end + 1]
        try:
            return Answer.of(line)
        except (Malformed, ValueError, RecursionError) as error:
            raise Died(f"it does not answer as it should: {error}") from error

    def _receive_some(self, until_s: float) -> None:
        if self.wire.fileno() < 0:
            raise OSError("the sandbox was closed")
        self.wire.settimeout(max(1e-3, min(LOOK_S, until_s - time.monotonic())))
        try:
            content = self.wire.recv(RECEIVED_BYTES)
        except TimeoutError:
            content = None
        except ConnectionError:
            content = b""
        self._cut_log()
        if content == b"":
            raise Died(self._cause_of_death())
        self.received += content or b""
        if len(self.received) > LINE_BYTES:
            raise Died(f"it does not answer as it should: more than {LINE_BYTES} bytes")

    def take(self, item: Answer) -> Any:
        """The object that an item holds, its arrays copied out of their slot, which is free again."""
        slot, offset = self.slots[self.taken % SLOTS], 0

        def take_array(dtype: str, shape: list[int]) -> np.ndarray:
            nonlocal offset
            num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
            if offset + num_bytes > self.memory_bytes:
                raise Malformed(f"found an array of {num_bytes} bytes")
            array = np.empty(shape, dtype)
            offset += _read(slot, array, offset)
            return array

        try:
            value = from_plain(item.content[0], take_array)
        except (Malformed, ValueError, RecursionError) as error:
            raise Died(f"it does not answer as it should: {error}") from error
        if offset:
            self.taken += 1
            self._send(b"\0")
        return value

    def error_in(self, ended: Answer) -> Exception | None:
        """What the work has raised; None where it is done."""
        try:
            return None if ended.content[0] is None else error_from_plain(ended.content[0])
        except Malformed as error:
            raise Died(f"it does not answer as it should: {error}") from error

    def _send(self, content: bytes) -> None:
        self.wire.settimeout(START_S)
        with suppress(ConnectionError, TimeoutError):  # it died, or does not listen: the next answer will tell
            self.wire.sendall(content)

    def stderr(self) -> str:
        """The end of what it has written since its work began."""
        size = os.fstat(self.log).st_size
        return os.pread(self.log, TAIL_BYTES, max(0, size - TAIL_BYTES)).decode(errors="replace").strip()

    def kill(self) -> None:
        self.process.kill()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(KILL_S)
        self.wire.close()
        self.received.clear()
        for file in (self.log, *self.slots):
            os.close(file)

    def _cut_log(self) -> None:
        """Keep only the end of a long log: some decoders complain of every block, and what they write is memory."""
        if os.fstat(self.log).st_size > STDERR_BYTES:
            kept = self.stderr()
            os.ftruncate(self.log, 0)
            os.write(self.log, kept.encode())

    def _cause_of_death(self) -> str:
        try:
            code = self.process.wait(KILL_S)
        except subprocess.TimeoutExpired:
            return "it does not answer any more"
        if code >= 0:
            return f"its process ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"{name}, as where the machine's memory is used up" if name == "SIGKILL" else name


def _read(slot: int, array: np.ndarray, offset: int) -> int:
    """Fill an array from there; returns its bytes. Malformed where there are not as many."""
    content = bytes_of(array)
    while content:
        num_bytes = os.preadv(slot, [content], offset)
        if not num_bytes:
            raise Malformed(f"{array.nbytes} bytes were to be shared, and {len(content)} of them are not there")
        content, offset = content[num_bytes:], offset + num_bytes
    return array.nbytes


@cache
def _warn(lacking: str) -> None:
    """Once in a process."""
    logger.warning("videos are read in a process that this system does not let give up: %s", lacking)
