"""Real ranks for tests: processes of one group, each forked from one that has imported what they need."""

import multiprocessing
import os
import pickle
import tempfile
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest
import torch
import torch.distributed as dist

from jobs.config import RunConfig
from jobs.configured import configured_recipe
from jobs.train import train_worker
from jobs.training.machine import find_tools

# What takes seconds to import, and is imported only when an engine is made.
IMPORTED_LATE = ("deepspeed", "torch._dynamo", "deepspeed.runtime.zero.muon.original_muon")


def run_ranks(count: int, function: Callable[..., Any], *arguments: Any, on_gpu: bool = False) -> list[Any]:
    """Call `function(*arguments)` on `count` new ranks -> what each returned. Raises what the first to fail said.

    The function stands at the top of a module, and arguments and results can be pickled. Ranks are on the CPU, also
    where there are GPUs, unless they are asked to be `on_gpu`.
    """
    find_tools()
    processes: Any = multiprocessing.get_context("spawn" if on_gpu else "forkserver")
    if not on_gpu:
        processes.set_forkserver_preload([*IMPORTED_LATE, __name__])
    ends, ranks = {}, []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        if not on_gpu:
            patch.setenv("CUDA_VISIBLE_DEVICES", "")
            patch.setenv("DS_ACCELERATOR", "cpu")
        for rank in range(count):
            ours, theirs = processes.Pipe(duplex=False)
            group = {"init_method": f"file://{folder}/meet", "rank": rank, "world_size": count}
            group["backend"] = "nccl" if on_gpu else "gloo"
            ranks.append(processes.Process(target=_rank, args=(theirs, group, function, arguments)))
            ranks[-1].start()
            theirs.close()
            ends[ours] = rank
        try:
            return _collect(ends)
        except BaseException:
            for process in ranks:
                process.kill()  # they wait for the one that has failed
            raise
        finally:
            for process in ranks:
                process.join()


def _collect(ends: dict[Connection, int]) -> list[Any]:
    """What each rank sent, by rank."""
    results: dict[int, Any] = {}
    while waiting := [end for end, rank in ends.items() if rank not in results]:
        for end in wait(waiting):
            assert isinstance(end, Connection)
            try:
                problem, result = pickle.loads(end.recv_bytes())
            except EOFError:
                problem, result = "died", None
            assert not problem, f"rank {ends[end]}: {problem}"
            results[ends[end]] = result
    return [results[rank] for rank in sorted(results)]


def _rank(end: Connection, group: dict[str, Any], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # DeepSpeed calls collectives by names that torch will drop
    os.environ["LOCAL_RANK"] = str(group["rank"])  # DeepSpeed asks for it
    dist.init_process_group(**group)
    try:
        answer = "", function(*arguments)
    except Exception:
        answer = traceback.format_exc(), None
    end.send_bytes(pickle.dumps(answer))  # with tensors by value: as memory to share they would go with this process
    dist.barrier()  # none leaves while another still talks to it


def train_on(count: int, *configs: RunConfig) -> None:
    """The training loop of each configuration, one after the other, on so many ranks."""
    run_ranks(count, _train, [(config, configured_recipe(config)) for config in configs])


def _train(runs: list[tuple[RunConfig, Any]]) -> None:
    for config, recipe in runs:
        train_worker({"config": config, "recipe": recipe})
