"""A training run's numbers, written by one process and read by another."""

from pathlib import Path

import pytest

from jobs.progress import progress
from jobs.training.metrics import Metrics, following, read_metrics, read_new_metrics


def test_a_line_that_is_still_being_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    lines, seen = read_new_metrics(path, 0)
    assert [line["step"] for line in lines] == [1]
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    assert [line["step"] for line in read_new_metrics(path, seen)[0]] == [2]


def test_a_file_that_became_shorter_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    _, seen = read_new_metrics(path, 0)
    path.write_text('{"step": 1}\n')
    assert read_new_metrics(path, seen)[0] == [{"step": 1}]


def test_a_resumed_run_drops_the_lines_behind_its_checkpoint(tmp_path: Path) -> None:
    first = Metrics(tmp_path, start=0)
    for step in (1, 2, 3):
        first.write(step, loss=float(step))
    Metrics(tmp_path, start=2).write(3, loss=30.0)
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path / "metrics.jsonl")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 30.0),
    ]


def test_a_bar_follows_to_the_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train", 2, "steps") as bar, following(tmp_path / "metrics.jsonl", bar):
        metrics = Metrics(tmp_path, start=0)
        metrics.write(1, loss=3.0, step_s=0.1)
        metrics.write(2, loss=1.0, step_s=0.2)
    assert capsys.readouterr().out == "train: 2/2 steps loss 2.0000, 0.20 s/step\n"
