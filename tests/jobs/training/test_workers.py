"""What is asked of the cluster, and what is told while it is not there."""

from pathlib import Path

import pytest
import ray

from cluster.launch import Workers
from jobs.config import ConfigError, RunConfig
from jobs.events import read_events
from jobs.training.workers import ask_for_workers, tell_failures, tell_waiting
from pipeline.errors import Refused
from tests.jobs.training.test_committed import committed


def config(**updates: object) -> RunConfig:
    default = RunConfig()
    return default.model_copy(update={"train": default.train.model_copy(update=updates)})


def test_there_must_be_room_for_the_fewest_workers(local_ray: None) -> None:
    here = int(ray.cluster_resources()["CPU"])
    assert ask_for_workers(config(workers=here)) == Workers(here, here, 1, gpus=False)
    assert ask_for_workers(config(workers=here + 1, min_workers=1)) == Workers(here + 1, 1, 1, gpus=False)
    with pytest.raises(
        Refused, match=rf"train: asks for {here + 1} workers of 1 CPU each; .* room for {here} on 1 node: "
    ):
        ask_for_workers(config(workers=here + 1))
    with pytest.raises(Refused, match=r"train: asks for 2 workers .* room for 1 on 1 node: lower train\.min_workers "):
        ask_for_workers(config(workers=9, min_workers=2, cpus_per_worker=here))
    with pytest.raises(ConfigError, match=r"train\.min_workers: found 3, wanted at most train\.workers, 2"):
        ask_for_workers(config(workers=2, min_workers=3))


def test_waiting_says_what_is_needed_and_what_is_free(local_ray: None, capsys: pytest.CaptureFixture[str]) -> None:
    tell_waiting(Workers(2, 1, 3, gpus=False), 61.0)
    told = capsys.readouterr().out
    assert "no worker has begun for 61 s" in told and "1 are needed, 3 CPU each" in told and told.count("\n") == 1


def test_restarts_are_counted_and_say_where_they_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    committed(tmp_path / "checkpoints", 4)
    tell = tell_failures(config(out=tmp_path, max_failures=1))
    for why in ("worker 0: died", "worker 1: died"):
        tell(why)
    assert capsys.readouterr().out == "train: worker 0: died; restart 1 of at most 1, from step 4\n"
    events = read_events(tmp_path / "events.jsonl")
    assert [(event["why"], event["number"], event["committed"]) for event in events] == [
        ("worker 0: died", 1, 4),
        ("worker 1: died", 2, 4),
    ]
