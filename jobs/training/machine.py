"""What DeepSpeed needs of this machine."""

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import torch

from pipeline.errors import Refused


def compiler_problem() -> str:
    """What is missing to build DeepSpeed's CPU operators, in one line; empty where nothing is."""
    if not (shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")):
        return "no C++ compiler; DeepSpeed compiles a small operator on CPU: install g++ (apt-get install g++)"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "no Python.h; DeepSpeed compiles a small operator on CPU: install python3-dev"
    return ""


def prepare_machine() -> str:
    """Build DeepSpeed's CPU operator if it is not built yet, so that no training step has to. Returns what was done."""
    find_tools()
    if torch.cuda.is_available():
        return "CUDA is here: DeepSpeed needs nothing built beforehand"
    if problem := compiler_problem():
        raise Refused(problem)
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder().load(verbose=False)
    return "DeepSpeed's CPU operator is built"


def find_tools() -> None:
    """Let DeepSpeed see the CPU where there is no GPU, and ninja in a virtual environment that is not activated."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    folder = str(Path(sys.executable).parent)
    if folder not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = folder + os.pathsep + os.environ["PATH"]
