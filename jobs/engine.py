"""DeepSpeed: the optimizer step over all ranks, and checkpoints that are either whole or not there."""

import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jobs.config import TrainConfig
from pipeline.errors import Refused
from pipeline.storage import publish, sync_folder

COMMIT_NAME = "COMMITTED.json"
SHARDS_NAME = "zero"  # DeepSpeed's folder inside a checkpoint
MAX_BUCKET_ELEMENTS = 200_000_000  # DeepSpeed allocates its reduce bucket whole, so a small model gets a small one


def compiler_problem() -> str:
    """What is missing to build DeepSpeed's CPU operator, in one line; empty where nothing is."""
    if not (shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")):
        return "no C++ compiler; DeepSpeed compiles a small operator on CPU: install g++ (apt-get install g++)"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "no Python.h; DeepSpeed compiles a small operator on CPU: install python3-dev"
    return ""


def prepare_machine() -> str:
    """Build DeepSpeed's CPU operator if it is not built yet, so that no training step has to. Returns what was done."""
    _find_tools()
    if torch.cuda.is_available():
        return "CUDA is here: DeepSpeed needs nothing built beforehand"
    if problem := compiler_problem():
        raise Refused(problem)
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder().load(verbose=False)
    return "DeepSpeed's CPU operator is built"


def _find_tools() -> None:
    """Let DeepSpeed see the CPU where there is no GPU, and ninja in a virtual environment that is not activated."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    folder = str(Path(sys.executable).parent)
    if folder not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] = folder + os.pathsep + os.environ["PATH"]


def deepspeed_config(settings: TrainConfig, samples_per_rank: int, num_parameters: int) -> dict[str, Any]:
    """[train] as DeepSpeed wants it."""
    return {
        "train_micro_batch_size_per_gpu": samples_per_rank,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.clip_grad_norm,
        "bf16": {"enabled": settings.precision == "bf16"},
        "zero_optimization": {
            "stage": settings.zero_stage,
            "reduce_bucket_size": min(num_parameters, MAX_BUCKET_ELEMENTS),
            "allgather_bucket_size": min(num_parameters, MAX_BUCKET_ELEMENTS),
        },
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": settings.lr, "weight_decay": settings.weight_decay, "torch_adam": True},
        },
        "steps_per_print": sys.maxsize,
    }


class Engine:
    """A model under DeepSpeed ZeRO, on the device of this rank. torch.distributed is set up before."""

    def __init__(self, model: nn.Module, settings: TrainConfig, samples_per_rank: int) -> None:
        _find_tools()
        import deepspeed

        deepspeed.init_distributed()
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.settings = settings
        initialize: Any = deepspeed.initialize  # its annotations do not admit what it documents
        self._deepspeed, *_ = initialize(
            model=model,
            model_parameters=[parameter for parameter in model.parameters() if parameter.requires_grad],
            config=deepspeed_config(settings, samples_per_rank, num_parameters),
        )
        self.device = torch.device(self._deepspeed.device)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._deepspeed(*args, **kwargs)

    @property
    def model(self) -> Any:
        """The model itself, in the precision it is trained in."""
        return self._deepspeed.module

    def step(self, loss: Tensor, step: int) -> float:
        """Backward, reduce, clip, update, with the learning rate of `step`. Returns the gradient's norm."""
        for group in self._deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, step)
        self._deepspeed.backward(loss)
        self._deepspeed.step()
        return float(self._deepspeed.get_global_grad_norm())

    def save(self, folder: Path, step: int) -> None:
        """Commit a checkpoint of all ranks as `folder/step-<step>`; called by every rank.

        Written aside, checked, marked and then renamed: a checkpoint has its name only when every rank's files exist.
        """
        final = folder / f"step-{step:08d}"
        if (final / COMMIT_NAME).exists():
            return  # the same step of the same run: the same state
        aside = folder / f"step-{step:08d}.tmp"
        rank = dist.get_rank()
        if rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
        dist.barrier()
        self._deepspeed.save_checkpoint(str(aside), tag=SHARDS_NAME, save_latest=False)
        dist.barrier()
        if rank == 0:
            _commit(aside, final, step, dist.get_world_size())
            prune(folder, self.settings.keep_checkpoints)
        dist.barrier()

    def load(self, checkpoint: Path) -> None:
        """Restore model and optimizer from a committed checkpoint; Refused where another number of ranks wrote it."""
        refuse_other_ranks(checkpoint, dist.get_world_size())
        path, _ = self._deepspeed.load_checkpoint(str(checkpoint), tag=SHARDS_NAME)
        if path is None:
            raise Refused(f"{checkpoint}: DeepSpeed cannot read it; delete the folder to resume from an earlier one")


def learning_rate(settings: TrainConfig, step: int) -> float:
    """Linear warm-up, then constant."""
    return settings.lr * min(1.0, (step + 1) / max(1, settings.warmup_steps))


def _commit(aside: Path, final: Path, step: int, ranks: int) -> None:
    """Check that every rank's shard of the optimizer is there, state what belongs to it, sync, rename."""
    files = {str(path.relative_to(aside)): path.stat().st_size for path in sorted(aside.rglob("*")) if path.is_file()}
    shards = [name for name in files if name.endswith("_optim_states.pt")]
    if len(shards) != ranks or not all(files.values()):
        raise RuntimeError(
            f"{aside}: found {len(shards)} optimizer shards, wanted {ranks}, none of them empty: {files}"
        )
    for name in files:
        with open(aside / name, "rb") as file:
            os.fsync(file.fileno())
    publish(aside / COMMIT_NAME, json.dumps({"step": step, "ranks": ranks, "files": files}, indent=2).encode())
    os.replace(aside, final)
    sync_folder(final.parent)


def committed(folder: Path) -> list[Path]:
    """The committed checkpoints of a run, oldest first."""
    return sorted(mark.parent for mark in folder.glob("step-*/" + COMMIT_NAME) if mark.parent.suffix != ".tmp")


def refuse_other_ranks(checkpoint: Path, ranks: int) -> None:
    """A checkpoint is read by as many ranks as wrote it."""
    written = json.loads((checkpoint / COMMIT_NAME).read_text())["ranks"]
    if written != ranks:
        raise Refused(
            f"{checkpoint}: written by {written} workers, the run has {ranks}; set train.workers={written}, "
            f"or start anew with another train.out"
        )


def step_of(checkpoint: Path) -> int:
    """How many steps were done when it was written."""
    return int(checkpoint.name.removeprefix("step-"))


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what crashes left."""
    for old in [*committed(folder)[:-keep], *folder.glob("step-*.tmp")]:
        shutil.rmtree(old)
