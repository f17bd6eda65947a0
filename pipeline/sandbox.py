"""Work that may crash, hang or eat the memory, in a child process that can be killed: reading videos is such work.

`sandbox_process.py` is the parent's side of it, `sandbox_child.py` the child's. Not by fork, which copies the locks
that other threads hold, and not by multiprocessing, whose children import the main module of their parent: in a Ray
worker that is Ray's.

A video may be made to take its decoder over. So the child has none of the parent's secrets in its environment, gives up
what `confine.py` says before it reads anything, and answers with plain values (`wire.py`), which are looked at.
"""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.errors import BadVideo
from pipeline.sandbox_process import Answer, Child, Died, Late

PATIENCE = 10.0  # seconds that a work may take for each second that its video lasts, beside the deadline
NO_MEMORY = re.compile(r"allocate memory|get_buffer\(\) failed|bad_alloc")  # FFmpeg then says "damaged", C++ aborts


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
        self.child: Child | None = None

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
        except Late as error:
            reason = f"still not done after {late_s:g} s: it hangs, or data.deadline_s is too short for it"
            raise BadVideo(reason, child.stderr()) from error
        except Died as error:
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

    def _ready_child(self) -> Child:
        if self.child is not None and self.child.working:
            raise RuntimeError("one work at a time: an earlier stream of this sandbox is still open; close it first")
        if self.child is not None and (self.child.works >= self.limits.videos or not self.child.is_alive()):
            self.close()
        if self.child is None:
            self.child = Child(self.limits.memory_bytes)
        return self.child

    def _begin(self, work: Callable[..., Iterable[Any]], arguments: tuple) -> tuple[Child, Answer]:
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

    def _items(self, child: Child, answer: Answer, late_s: float) -> Iterator[Any]:
        while answer.kind != "ended":
            if answer.kind == "item":
                yield child.take(answer)
            began_s = time.monotonic()
            answer = child.receive(late_s)
            self.cpu_s = answer.cpu_s
            late_s -= time.monotonic() - began_s
        if (error := child.error_in(answer)) is not None:
            child.working = isinstance(error, MemoryError)  # it has as much memory as it may: not used again
            raise error from ChildTraceback(answer.content[1])
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
