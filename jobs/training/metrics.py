"""What a training run says of itself: a line of JSON and a TensorBoard point per step, and Ray's own metrics."""

import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from cluster.meanwhile import meanwhile
from cluster.meters import Meters
from jobs.events import read_events
from jobs.progress import Bar
from pipeline.storage import publish


class Metrics:
    """The file and the curves of one run; what lies behind the step it resumes from is dropped first."""

    def __init__(self, out: Path, start: int) -> None:
        self.path = out / "metrics.jsonl"
        kept = [line for line in read_metrics(self.path) if line["step"] <= start]
        publish(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)
        self.meters = Meters("latentmill_train", run=out.name)
        self.begun_s = begun_s(read_events(out / "events.jsonl"))
        self.stepping_s = sum(line["step_s"] for line in kept)

    def write(self, step: int, step_s: float, **values: float) -> None:
        """Those of a step, and the goodput: what part of the time since the run first began went into steps that
        count. The rest went into starting, checkpoints, measuring, pauses, and steps that were done again."""
        self.stepping_s += step_s
        values = {
            "step_s": step_s,
            **values,
            "goodput": self.stepping_s / max(self.stepping_s, time.time() - self.begun_s),
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name if "/" in name else f"train/{name}", value, step)
        self.board.flush()  # else a run that ends takes the last points with it
        self.meters.set({"step": step, **values})


def begun_s(events: Sequence[dict[str, Any]]) -> float:
    """When a run first began, in seconds since the epoch; now where its events do not tell."""
    starts = [event["time"] for event in events if (event["verb"], event["event"]) == ("train", "start")]
    return datetime.fromisoformat(starts[0]).timestamp() if starts else time.time()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The metrics of a run so far, one per step."""
    return read_new_metrics(path, 0)[0]


def read_new_metrics(path: Path, seen_bytes: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines behind `seen_bytes`, and how many bytes are seen now.

    A resumed run writes the file anew: where no line ends at `seen_bytes` any more, it is read from its start.
    """
    if not path.exists():
        return [], 0
    with open(path, "rb") as file:
        file.seek(max(0, seen_bytes - 1))
        if seen_bytes and file.read(1) != b"\n":
            seen_bytes = 0
            file.seek(0)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], seen_bytes + len(whole)


@contextmanager
def following(path: Path, bar: Bar) -> Iterator[None]:
    """Move a bar along a metrics file that another process appends to, while the block runs."""
    recent: deque[dict[str, Any]] = deque(maxlen=50)
    seen_bytes = 0

    def show() -> None:
        nonlocal seen_bytes
        lines, seen_bytes = read_new_metrics(path, seen_bytes)
        recent.extend(lines)
        if lines:
            bar.move_to(recent[-1]["step"], describe_steps(list(recent)))

    try:
        with meanwhile(show, 1.0):
            yield
    finally:
        show()


def describe_steps(lines: list[dict[str, Any]]) -> str:
    """The few numbers of the latest steps that matter while one watches, on average."""

    def mean(name: str) -> float:
        return sum(line[name] for line in lines) / len(lines)

    rate = mean("samples_per_s")
    told = [
        f"loss {mean('loss'):.4f}",
        f"{mean('step_s'):.2f} s/step",
        f"{rate:,.0f} samples/s" if rate >= 10 else f"{rate:.2g} samples/s",
        f"data wait {mean('data_wait_share'):.1%}",
    ]
    return ", ".join([*told, f"MFU {mean('mfu'):.1%}"] if all("mfu" in line for line in lines) else told)
