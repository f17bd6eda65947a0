"""Ranks agree on when to stop."""

import signal
from pathlib import Path

import pytest
import torch

from cluster import notices
from jobs.events import Events, read_events
from jobs.training.stopping import agree, agree_to_stop, leave_stopped


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process had been told nothing yet, and again afterwards."""
    monkeypatch.setattr(notices, "_told", set())


def test_a_step_ends_with_sums_and_a_reason_to_stop_if_any(alone: None, untold: None) -> None:
    agreed = agree(torch.tensor(0.25), 3, 4.0, 5.5)
    assert (agreed.loss, agreed.damaged, agreed.stop, agreed.more) == (0.25, 3, None, [4.0, 5.5])
    assert agree_to_stop(torch.device("cpu")) is None
    notices.tell("preemption")
    assert agree(torch.tensor(0.25), 0).stop == agree_to_stop(torch.device("cpu")) == "preemption"
    notices.tell("SIGTERM")  # which ends the run, where the other only moves it
    assert agree(torch.tensor(0.25), 0).stop == agree_to_stop(torch.device("cpu")) == "SIGTERM"


def test_sigterm_is_a_notice_where_it_is_listened_to(untold: None) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        notices.listen()
        assert notices.told() == [False, False]
        signal.raise_signal(signal.SIGTERM)
        assert notices.told() == [True, False]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("step", "done"), [(7, "after step 7, which is committed"), (0, "before the first step")])
def test_a_stopped_run_says_how_far_it_came(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], step: int, done: str
) -> None:
    with pytest.raises(SystemExit) as left:
        leave_stopped(step, Events(tmp_path / "events.jsonl", "train"))
    assert left.value.code == 143
    told = capsys.readouterr().out
    assert done in told and told.count("\n") == 1 and "the same command goes on" in told
    assert [(event["event"], event["step"]) for event in read_events(tmp_path / "events.jsonl")] == [("stopped", step)]
