"""What a training run says of itself: one line of JSON and one TensorBoard point per step."""

import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from jobs.progress import Bar
from pipeline.storage import publish


class Metrics:
    """The file and the curves of one run; what lies behind the step it resumes from is dropped first."""

    def __init__(self, out: Path, start: int) -> None:
        self.path = out / "metrics.jsonl"
        kept = [line for line in read_metrics(self.path) if line["step"] <= start]
        publish(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, **values: float) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(f"train/{name}", value, step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The metrics of a run so far, one per step."""
    return read_new_metrics(path, 0)[0]


def read_new_metrics(path: Path, seen_bytes: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines behind `seen_bytes`, and how many bytes are seen now; a shorter file is read from its start."""
    if not path.exists():
        return [], 0
    with open(path, "rb") as file:
        if path.stat().st_size < seen_bytes:
            seen_bytes = 0
        file.seek(seen_bytes)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], seen_bytes + len(whole)


@contextmanager
def following(path: Path, bar: Bar) -> Iterator[None]:
    """Move a bar along a metrics file that another process appends to, while the block runs."""
    over = threading.Event()
    recent: deque[dict[str, Any]] = deque(maxlen=50)

    def show(seen_bytes: int) -> int:
        lines, seen_bytes = read_new_metrics(path, seen_bytes)
        recent.extend(lines)
        if lines:
            loss = sum(line["loss"] for line in recent) / len(recent)
            bar.move_to(recent[-1]["step"], f"loss {loss:.4f}, {recent[-1]['step_s']:.2f} s/step")
        return seen_bytes

    def follow() -> None:
        seen_bytes = 0
        while not over.wait(1.0):
            seen_bytes = show(seen_bytes)
        show(seen_bytes)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
