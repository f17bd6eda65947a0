"""Start a training function on many workers through Ray Train."""

import os
import signal
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.exceptions import RayActorError, RayError
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.placement_group import (
    PlacementGroup,
    PlacementGroupID,  # pyright: ignore[reportPrivateImportUsage]
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster import notices
from cluster.line import Line
from cluster.meanwhile import meanwhile

MAX_WORKERS = 100_000  # a call of each waits in the line
LOOK_EVERY_S = 5.0  # for a notice that a node will be taken away
RESIZE_EVERY_S = 60.0  # how often a smaller group asks whether there is room for more
WAITING_S = 30.0  # after which, and as often as which, it is told that no worker has begun


@dataclass(frozen=True)
class Workers:
    """What is asked of the cluster."""

    most: int
    least: int  # as many as these are started while there is no room for more
    cpus: int  # per worker
    gpus: bool  # one per worker


def run_workers(
    function: Callable[[dict[str, Any]], Any],
    argument: dict[str, Any],
    workers: Workers,
    folder: Path,
    *,
    max_failures: int,
    final: tuple[type[Exception], ...],
    on_failure: Callable[[str], None],
    on_waiting: Callable[[float], None],
) -> Any:
    """Call `function(argument)` on each worker with torch.distributed set up; returns what it returns on the first.

    A worker that dies or raises restarts the group, at most `max_failures` times, each told by `on_failure(why)`;
    `function` resumes by itself. What is one of `final` is raised here at once. While no worker has begun
    `on_waiting(seconds)` tells so; both are called in a thread of their own. SIGTERM, to this process or to a worker,
    and the end of a node that Ray is told of before, become notices to all workers; where none has begun, SIGTERM ends
    the call at once, which returns "SIGTERM". Ray Train keeps its own state below `folder`.
    """
    remote_line: Any = Line
    line = remote_line.options(scheduling_strategy=_this_node(), max_concurrency=MAX_WORKERS).remote()
    terminated, failures = threading.Event(), count(1)
    left = max_failures

    def work() -> Any:
        _take_notices(line)
        return function(argument)

    def tell(why: str) -> None:
        nonlocal left
        left = max_failures - next(failures)
        on_failure(why)

    try:
        while True:
            trainer = _trainer(work, workers, folder, left, _Failures(line, final))
            try:
                with _signals(terminated), _watching(line, terminated, tell, on_waiting):
                    return trainer.fit().return_value
            except ControllerError as error:
                lost = error.controller_failure
                if not isinstance(lost, RayActorError) or left <= 0:
                    raise lost from error
                tell(_in_a_line(lost))  # a worker that died as it began, which Ray Train takes for its own failure
    except (KeyboardInterrupt, SystemExit) as stopped:  # the latter is how Ray Train's own handler of Ctrl-C ends
        if terminated.is_set():
            return "SIGTERM"
        raise KeyboardInterrupt from stopped
    except TrainingFailedError as error:
        by_rank = getattr(error, "worker_failures", {})
        if by_rank:
            raise by_rank[_first_of(by_rank)] from error
        raise
    finally:
        ray.kill(line)
        _give_places_back()


def _trainer(
    work: Callable[[], Any], workers: Workers, folder: Path, max_failures: int, failures: "_Failures"
) -> TorchTrainer:
    """Ray Train's, told all that it needs."""
    return TorchTrainer(
        work,
        torch_config=_Torch(backend="nccl" if workers.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.most if workers.least == workers.most else (workers.least, workers.most),
            use_gpu=workers.gpus,
            resources_per_worker={"CPU": workers.cpus},
            # GPUs of one node talk fastest; on CPUs, each node has a memory bus of its own.
            placement_strategy="PACK" if workers.gpus else "SPREAD",
            elastic_resize_monitor_interval_s=RESIZE_EVERY_S,
        ),
        run_config=RunConfig(
            name="ray_train",
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=[failures],
        ),
    )


def _give_places_back() -> None:
    """What this job still holds for its workers where Ray Train's controller ended before it could give it back."""
    job = ray.get_runtime_context().get_job_id()
    for number, group in placement_group_table().items():
        if number.endswith(job) and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(number)))


def _this_node() -> NodeAffinitySchedulingStrategy:
    """That of the driver, so that the one does not outlive the other."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


class _Failures(UserCallback):
    """Lives in Ray Train's controller."""

    def __init__(self, line: Any, final: tuple[type[Exception], ...]) -> None:
        self.line, self.final = line, final

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, self.final):
                raise error  # an error of the controller's own is the only one that is not tried again
        rank = _first_of(worker_exceptions)
        self.line.failed.remote(f"worker {rank}: {_in_a_line(worker_exceptions[rank])}")


def _first_of(failures: dict[int, Exception]) -> int:
    """The rank that the others probably failed because of: one that died, if any."""
    return min(failures, key=lambda rank: (not hasattr(failures[rank], "health_check_failure"), rank))


def _in_a_line(error: Exception) -> str:
    """What an exception says; Ray's own of a worker's death have many lines, of which the last tells its end."""
    error = getattr(error, "health_check_failure", error)
    last = str(error).strip().rpartition("\n")[2].rpartition("Worker exit detail: ")[2]
    return f"{type(error).__name__}: {textwrap.shorten(last, 200)}"


TorchBackend: Any = TorchConfig().backend_cls


class _Backend(TorchBackend):
    """Workers run the training function in a thread; signals reach the main thread only."""

    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        super().on_training_start(worker_group, backend_config)
        worker_group.execute(notices.listen)


class _Torch(TorchConfig):
    @property
    def backend_cls(self) -> type:
        return _Backend


def _take_notices(line: Any) -> None:
    """In a worker: what the driver and Ray say become notices, each in a thread that waits for it."""

    def wait_for_driver() -> None:
        with suppress(RayError):  # the driver ended before
            ray.get(line.asked_to_stop.remote())
            notices.tell("SIGTERM")

    def look_for_preemption() -> None:
        with suppress(RayError):  # the group ended before
            while ray.train.get_preemption_info() is None:  # which all workers ask together
                time.sleep(LOOK_EVERY_S)
            notices.tell("preemption")

    line.began.remote()
    for wait in (wait_for_driver, look_for_preemption):
        threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _signals(terminated: threading.Event) -> Iterator[None]:
    """While the block runs SIGTERM sets `terminated`. Ctrl-C is put back: Ray Train leaves its own handler behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    on_interrupt = signal.getsignal(signal.SIGINT)
    on_terminate = signal.signal(signal.SIGTERM, lambda *_: terminated.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
        signal.signal(signal.SIGTERM, on_terminate)


@contextmanager
def _watching(
    line: Any,
    terminated: threading.Event,
    on_failure: Callable[[str], None],
    on_waiting: Callable[[float], None],
) -> Iterator[None]:
    """While the block runs, a thread tells what the line brings, and passes SIGTERM on."""
    tell_after_s = WAITING_S

    def look() -> float:
        waited_s, failures = ray.get(line.news.remote())
        for why in failures:
            on_failure(why)
        return waited_s

    def pass_on(waited_s: float) -> None:
        if waited_s:  # nothing runs that could stop; Ray Train heeds a third Ctrl-C even while it places workers
            os.kill(os.getpid(), signal.SIGINT)
        else:
            line.ask_to_stop.remote()

    def watch() -> None:
        nonlocal tell_after_s
        waited_s = look()
        if terminated.is_set():
            pass_on(waited_s)
        if waited_s >= tell_after_s:
            on_waiting(waited_s)
        tell_after_s = WAITING_S * (waited_s // WAITING_S + 1)

    try:
        with meanwhile(watch, 1.0):
            yield
    finally:
        look()
