"""What DeepSpeed needs of this machine."""

import os
import shutil
import sys
import sysconfig
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch.utils import cpp_extension

from jobs.config import TrainConfig
from jobs.training.zero import is_offloaded
from pipeline.errors import Refused

RELEASE_S = 1.0  # who gives a lock back closes it and then removes it, and fails where it is gone by then


def compiler_problem() -> str:
    """What is missing to build DeepSpeed's CPU operators, in one line; empty where nothing is."""
    if not (shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")):
        return "no C++ compiler; DeepSpeed compiles its CPU operators: install g++ (apt-get install g++)"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "no Python.h; DeepSpeed compiles its CPU operators: install python3-dev"
    return ""


def refuse_impossible(settings: TrainConfig, on_gpu: bool) -> None:
    """Refuse what DeepSpeed could not do on such workers, before one starts."""
    if settings.precision == "fp16" and not on_gpu:
        raise Refused("train.precision: fp16 needs a GPU and there is none; use bf16 or fp32")
    if (not on_gpu or is_offloaded(settings)) and (problem := compiler_problem()):
        raise Refused(problem)


def prepare_machine() -> str:
    """Build DeepSpeed's CPU operators if they are not built yet, so that no training has to. Returns what was done."""
    find_tools()
    free_operators()
    if torch.cuda.is_available():
        return "CUDA is here: DeepSpeed needs nothing built beforehand, but for train.zero=...-offload"
    if problem := compiler_problem():
        raise Refused(problem)
    from deepspeed.ops.op_builder.cpu import CPUAdamBuilder, ShareMemCommBuilder

    for operator in (ShareMemCommBuilder(), CPUAdamBuilder()):
        operator.load(verbose=False)
    return "DeepSpeed's CPU operators are built"


def free_operators() -> None:
    """Remove the locks of DeepSpeed's operators that nobody holds any more: where a process was killed while it loaded
    one, all others would wait for it without end."""
    if not Path("/proc/self/fd").exists():
        return
    folder = os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root()
    found = {lock: _unheld_since_ns(lock) for lock in Path(folder).glob("*/*/lock")}
    unheld = {lock: since_ns for lock, since_ns in found.items() if since_ns}
    if unheld:
        time.sleep(RELEASE_S)
    for lock, since_ns in unheld.items():
        if _unheld_since_ns(lock) == since_ns:
            lock.unlink(missing_ok=True)


def _unheld_since_ns(lock: Path) -> int:
    """When a lock was made that no process of ours has open, as who holds one has; 0 where one has, or it is gone."""
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # it ended, or is another user's
            if handle.samefile(lock):
                return 0
    with suppress(FileNotFoundError):
        return lock.stat().st_mtime_ns
    return 0


def find_tools() -> None:
    """Let DeepSpeed see the CPU where there is no GPU, and ninja in a virtual environment that is not activated."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    folder = str(Path(sys.executable).parent)
    if folder not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = folder + os.pathsep + os.environ["PATH"]
