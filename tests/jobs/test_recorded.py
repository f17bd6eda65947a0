"""Every job leaves in the cache that it began, and how it ended."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.config import ConfigError, RunConfig
from jobs.events import read_events
from jobs.recorded import fingerprint, recorded
from jobs.run_toml import load_config
from pipeline.errors import Refused
from pipeline.storage import publish


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run whose cache is begun."""
    config = load_config(None, [f"data.cache={tmp_path / 'cache'}"])
    publish(config.cache.manifest, b"videos")
    return config


def raising(error: BaseException) -> Callable[[RunConfig], int]:
    def run(config: RunConfig) -> int:
        raise error

    return run


def wrapped(error: Exception) -> Exception:
    """As Ray raises what a worker has raised."""
    outer = RuntimeError("\x1b[36mray::do()\x1b[39m\n  File ...")
    outer.__cause__ = error
    return outer


def ends(config: RunConfig) -> list[dict[str, Any]]:
    return [event for event in read_events(config.cache.events) if event["event"] == "ended"]


@pytest.mark.parametrize(("quarantined", "code"), [(0, 0), (2, 3)])
def test_a_job_that_is_done(config: RunConfig, quarantined: int, code: int) -> None:
    assert recorded("encode", lambda given: quarantined if given is config else -1, config) == quarantined
    began, ended = read_events(config.cache.events)
    assert (began["verb"], began["event"], ended["verb"], ended["event"]) == ("encode", "began", "encode", "ended")
    assert began["id"] == ended["id"]
    assert (began["host"], began["pid"]) == (socket.gethostname(), os.getpid())
    assert began["config"] == fingerprint(config)
    assert (ended["outcome"], ended["exit_code"]) == ("done", code)
    assert ended["took_s"] >= 0 and "submission" not in ended


@pytest.mark.parametrize(
    ("error", "outcome", "code", "message"),
    [
        (Refused("no plan; run `plan` first"), "refused", 1, "no plan; run `plan` first"),
        (ConfigError("run.toml: not found"), "refused", 2, "run.toml: not found"),
        (wrapped(Refused("a worker's")), "refused", 1, "a worker's"),
        (ValueError("many\nlines\nthe last "), "failed", 1, "ValueError: the last"),
        (KeyboardInterrupt(), "interrupted", 130, "KeyboardInterrupt"),
        (SystemExit(143), "stopped", 143, "SystemExit: 143"),
    ],
)
def test_a_job_that_is_not(config: RunConfig, error: BaseException, outcome: str, code: int, message: str) -> None:
    with pytest.raises(type(error)) as raised:
        recorded("encode", raising(error), config)
    assert raised.value is error
    [ended] = ends(config)
    assert (ended["outcome"], ended["exit_code"], ended["message"]) == (outcome, code, message)


def test_a_job_inside_another_is_one_too(config: RunConfig) -> None:
    recorded("run", lambda config: recorded("scan", lambda config: 0, config), config)
    told = [(event["verb"], event["event"]) for event in read_events(config.cache.events)]
    assert told == [("run", "began"), ("scan", "began"), ("scan", "ended"), ("run", "ended")]
    assert len({event["id"] for event in ends(config)}) == 2


def test_the_submission_it_came_with_is_told(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = '{"runtime_env": {}, "metadata": {"job_submission_id": "demo-encode-1"}}'
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", asked)  # as Ray's job supervisor sets it
    recorded("encode", lambda config: 0, config)
    assert {event["submission"] for event in read_events(config.cache.events)} == {"demo-encode-1"}


def test_where_no_event_can_be_written_the_verb_does_its_work(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "cache" / "events.jsonl").mkdir()  # also root cannot write to it
    assert recorded("train", lambda config: 7, config) == 7
    told = capsys.readouterr().out
    assert told.count("train: that it began is not in the log of jobs") == 1 and "cannot be written" in told


@pytest.mark.parametrize(("verb", "is_there"), [("scan", True), ("run", True), ("plan", False), ("train", False)])
def test_only_the_first_verbs_make_a_cache(tmp_path: Path, verb: str, is_there: bool) -> None:
    config = load_config(None, [f"data.cache={tmp_path / 'typo'}"])
    with pytest.raises(Refused):
        recorded(verb, raising(Refused("no cache")), config)
    assert (tmp_path / "typo").exists() == is_there


def test_of_torchruns_ranks_the_first_records(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert recorded("train", lambda config: 0, config) == 0
    assert len(ends(config)) == 1


def test_knobs_make_the_fingerprint_and_the_cluster_does_not(config: RunConfig) -> None:
    place = f"data.cache={config.data.cache}"
    assert fingerprint(load_config(None, [place, "cluster.address=http://head:8265"])) == fingerprint(config)
    assert fingerprint(load_config(None, [place, "train.steps=7"])) != fingerprint(config)
