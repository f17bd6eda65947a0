"""Decoders that crash or hang, by the name of the file: in every process started with this folder on PYTHONPATH.

`segfaults.mp4` and `hangs.mp4` do so when they are opened, `segfaults late.mp4` and `hangs late.mp4` only when decord
comes to them, which a scan without scenes never does. `waits.mp4` is opened when the file `waits.mp4.hold` beside it is
gone; until then the time of that file, in nanoseconds, is the id of the process that wants it, which may write no file.
No other name is touched.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

OPENS = {"av": "open", "decord": "VideoReader"}  # what opens a file, by its package


def fail(package: str, path: str) -> None:
    """Do what the file's name says."""
    name = os.path.basename(path)
    if "late" in name and package != "decord":
        return
    if name.startswith("segfaults"):
        os.kill(os.getpid(), signal.SIGSEGV)
    while name.startswith("hangs"):
        ctypes.PyDLL(None).pause()  # keeps the interpreter's lock, as decoders may: no thread of this process can help
    if name == "waits.mp4":
        wait(Path(path.removeprefix("file:")))


def wait(video: Path) -> None:
    """Until it is no longer held."""
    held = video.with_name("waits.mp4.hold")
    while held.exists():
        with suppress(FileNotFoundError):  # it has just gone
            os.utime(held, ns=(os.getpid(), os.getpid()))
        time.sleep(0.01)


class FaultyFinder:
    """Finds the packages of OPENS as Python does, and puts `fail` before what opens files there."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in OPENS else None
        if spec and spec.loader:
            make_faulty(spec.loader)
        return spec


def make_faulty(loader: Loader) -> None:
    execute = loader.exec_module

    def execute_and_change(module: ModuleType) -> None:
        execute(module)
        package, name = module.__name__, OPENS[module.__name__]
        opens: Callable[..., Any] = getattr(module, name)

        def open_or_fail(path: Any, *arguments: Any, **options: Any) -> Any:
            fail(package, str(path))
            return opens(path, *arguments, **options)

        setattr(module, name, open_or_fail)

    loader.exec_module = execute_and_change


sys.meta_path.insert(0, FaultyFinder)
