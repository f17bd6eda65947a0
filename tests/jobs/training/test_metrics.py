"""A training run's numbers, written by one process and read by another."""

import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs.config import RunConfig
from jobs.events import Events
from jobs.progress import progress
from jobs.training.metrics import Metrics, describe_steps, following, read_metrics, read_new_metrics


def test_a_line_that_is_still_being_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    lines, seen = read_new_metrics(path, 0)
    assert [line["step"] for line in lines] == [1]
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    assert [line["step"] for line in read_new_metrics(path, seen)[0]] == [2]


@pytest.mark.parametrize(
    "anew", ['{"step": 1}\n', '{"step": 1}\n{"step": 2, "loss": 1.5}\n{"step": 3, "loss": 0.5}\n{"step": 4}\n']
)
def test_a_file_that_was_written_anew_is_read_from_its_start_however_long_it_became(tmp_path: Path, anew: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    _, seen = read_new_metrics(path, 0)
    path.write_text(anew)
    lines, seen = read_new_metrics(path, seen)
    assert [line["step"] for line in lines] == list(range(1, anew.count("\n") + 1)) and seen == len(anew)


def test_a_resumed_run_drops_the_lines_behind_its_checkpoint(tmp_path: Path) -> None:
    first = Metrics(tmp_path, start=0)
    for step in (1, 2, 3):
        first.write(step, step_s=1.0, loss=float(step))
    Metrics(tmp_path, start=2).write(3, step_s=1.0, loss=30.0)
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path / "metrics.jsonl")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 30.0),
    ]


def test_goodput_counts_neither_lost_steps_nor_the_time_between(tmp_path: Path) -> None:
    Events(tmp_path / "events.jsonl", "encode").write("start")
    time.sleep(0.3)
    Events(tmp_path / "events.jsonl", "train").write("start")
    began_s = time.time()
    first = Metrics(tmp_path, start=0)
    for step in (1, 2, 3):
        first.write(step, step_s=0.01)
    time.sleep(0.2)
    Events(tmp_path / "events.jsonl", "train").write("start")
    Metrics(tmp_path, start=2).write(3, step_s=0.02)
    now = read_metrics(tmp_path / "metrics.jsonl")[-1]["goodput"]
    assert now == pytest.approx(0.04 / (time.time() - began_s), rel=0.3)
    assert 0 < now < 0.04 / 0.2


def test_every_number_is_a_point_in_tensorboard(tmp_path: Path) -> None:
    Metrics(tmp_path, start=0).write(1, **{"step_s": 1.0, "loss": 2.0, "held_out/loss": 3.0})
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    told = {name: [(point.step, point.value) for point in board.Scalars(name)] for name in board.Tags()["scalars"]}
    assert told == {
        "train/step_s": [(1, 1.0)],
        "train/loss": [(1, 2.0)],
        "train/goodput": [(1, 1.0)],
        "held_out/loss": [(1, 3.0)],
    }


def test_a_bar_follows_to_the_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train", 2, "steps", RunConfig()) as bar, following(tmp_path / "metrics.jsonl", bar):
        metrics = Metrics(tmp_path, start=0)
        metrics.write(1, loss=3.0, step_s=0.1, samples_per_s=20.0, data_wait_share=0.25)
        metrics.write(2, loss=1.0, step_s=0.2, samples_per_s=10.0, data_wait_share=0.0)
    assert capsys.readouterr().out == "train: 2/2 steps loss 2.0000, 0.15 s/step, 15 samples/s, data wait 12.5%\n"


def test_utilization_is_shown_where_it_is_known() -> None:
    line = {"loss": 1.0, "step_s": 2.0, "samples_per_s": 1234.5, "data_wait_share": 0.001, "mfu": 0.4}
    assert describe_steps([line]) == "loss 1.0000, 2.00 s/step, 1,234 samples/s, data wait 0.1%, MFU 40.0%"
