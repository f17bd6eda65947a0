"""Start a training function on many workers through Ray Train."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer


def run_workers(
    function: Callable[[dict[str, Any]], None],
    argument: dict[str, Any],
    *,
    num_workers: int,
    cpus_per_worker: int,
    use_gpu: bool,
    folder: Path,
    max_failures: int,
) -> None:
    """Call `function(argument)` on `num_workers` workers with torch.distributed set up, and wait for all.

    A worker that dies restarts the group, at most `max_failures` times; `function` resumes by itself. Ray Train keeps
    its own state below `folder`. Raises what a worker raised.
    """
    trainer = TorchTrainer(
        function,
        train_loop_config=argument,
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=use_gpu, resources_per_worker={"CPU": cpus_per_worker}
        ),
        run_config=RunConfig(
            name="ray_train", storage_path=str(folder), failure_config=FailureConfig(max_failures=max_failures)
        ),
    )
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit as stopped:  # how Ray Train's own handler of Ctrl-C ends
        raise KeyboardInterrupt from stopped
    except TrainingFailedError as error:
        failures = getattr(error, "worker_failures", {})
        if failures:
            raise failures[min(failures)] from error
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, on_interrupt)  # Ray Train leaves its handler behind
