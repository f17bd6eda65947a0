"""Verbs as jobs of a Ray head that wants a token: once each, with their exit codes; a run is stopped and goes on."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.submission import Job
from jobs import run, submit
from jobs.config import ConfigError, RunConfig
from jobs.events import read_events
from jobs.glance import Gatherer
from jobs.training.committed import list_committed
from jobs.training.metrics import read_metrics
from tests.conftest import cache_config, digests
from tests.head import Head, serve_head

ROOT = Path(__file__).resolve().parents[2]
OVER = Job("id", "SUCCEEDED", "true", exit_code=0, begun_s=1.0, ended_s=2.0, message="", metadata={})


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with serve_head(num_cpus=3) as head:
        yield head


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client of Ray's leaves in the environment goes with the test."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    monkeypatch.setenv("RAY_ADDRESS", "")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")


def test_without_the_token_a_submit_is_one_clear_line(head: Head, shapes: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    (tmp_path / "run.toml").touch()
    words = ["submit", "scan", "run.toml", f"data.source={shapes}", f"cluster.address={head.dashboard}", "--follow"]
    told = subprocess.run(
        [sys.executable, "-m", "jobs", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr.startswith(f"latentmill: {head.dashboard}: found no token here that this cluster takes; ")
    assert told.stderr.count("\n") == 1


def test_a_verb_runs_once_and_its_log_and_exit_code_come_through(
    head: Head, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "videos"
    source.mkdir()
    shutil.copy(next(shapes.parent.rglob("*.mp4")), source / "a.mp4")
    (source / "broken.mp4").write_bytes(b"no video")
    config = cache_config(source, tmp_path, f"cluster.address={head.dashboard}", "data.max_bad_fraction=1")
    assert submit.submit(config, "scan", follow=True) == 3
    name = submit.command_id(config, "scan")
    log = capsys.readouterr().out
    assert f"submit: {name} is submitted" in log
    assert "scan: 1 videos, 0 images, 1 unreadable" in log
    assert submit.submit(config, "scan", follow=True) == 3
    assert f"submit: {name} is done, with exit code 3; --again runs it once more" in capsys.readouterr().out
    assert submit.logs(config, "", follow=False) == 0
    assert "scan: 1 videos" in capsys.readouterr().out
    submit.stop(config, "")
    submit.show_list(config)
    assert "nothing of this run is waiting or running" in (told := capsys.readouterr().out)
    assert name in told
    [job] = submit.jobs_of(submit.connect(config), config)
    assert {"run": "run", "verb": "scan", "cache": config.data.cache}.items() <= job.metadata.items()
    seen = Gatherer(config).look()
    assert seen.jobs == (job,) and seen.is_over
    assert seen.usage is not None and seen.usage.nodes == 1 and seen.usage.total == {"CPU": 3.0, "GPU": 0.0}
    began, ended = [one for one in read_events(config.cache.events) if one["event"] in ("began", "ended")]
    assert (began["submission"], ended["submission"], ended["exit_code"]) == (job.id, job.id, 3)


@pytest.mark.slow
def test_a_verb_has_its_own_options_on_the_cluster_too(
    head: Head, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = cache_config(tmp_path / "videos.csv", tmp_path, f"cluster.address={head.dashboard}")
    assert submit.submit(config, "encode", ["--limit", "-1", "--only", "a b"], follow=True) == 2
    assert "Invalid value for '--limit'" in capsys.readouterr().out
    [job] = submit.jobs_of(submit.connect(config), config)
    assert job.entrypoint == "python -m jobs encode run.toml --limit -1 --only 'a b'"


@pytest.mark.parametrize("address", ["auto", "127.0.0.1:6379", "ray://127.0.0.1:10001"])
@pytest.mark.parametrize("by", ["cluster.address", "RAY_ADDRESS"])
def test_jobs_are_not_submitted_to_what_is_no_dashboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, by: str
) -> None:
    knobs = [f'cluster.address="{address}"'] if by == "cluster.address" else []
    monkeypatch.setenv("RAY_ADDRESS", "" if knobs else address)
    config = cache_config(tmp_path / "videos.csv", tmp_path, *knobs)
    with pytest.raises(ConfigError, match=rf"^{by}: found '{address}', .* wanted http://HEAD:8265"):
        submit.submit(config, "encode")


def test_only_verbs_that_are_worth_a_cluster_are_submitted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found 'init', wanted one of scan, plan, encode"):
        submit.submit(cache_config(tmp_path / "videos.csv", tmp_path), "init")
    assert tuple(run.STEPS) == submit.STEPS


def test_a_job_has_the_name_of_its_run_its_verb_and_its_knobs(tmp_path: Path) -> None:
    def name(*more: str, verb: str = "encode", options: tuple[str, ...] = ()) -> str:
        return submit.command_id(cache_config(tmp_path / "videos.csv", tmp_path, *more), verb, options)

    assert name().startswith("run-encode-")
    assert name() == name("cluster.address=http://elsewhere:8265")
    others = [name("train.lr=0.5"), name(verb="train"), name(options=("--limit", "3")), name(options=("--limit", "4"))]
    assert len({name(), *others}) == 5
    assert name(f"train.out={tmp_path}/my run #1").startswith("my-run-1-encode-")


def test_no_credential_of_this_machine_is_in_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "not-for-other-eyes")
    config = cache_config(tmp_path / "videos.csv", tmp_path)
    assert "-eyes" not in repr(submit.make_command(config, "encode", (), tmp_path))


def test_a_job_is_given_the_options_of_its_verb(tmp_path: Path) -> None:
    command = submit.make_command(
        cache_config(tmp_path / "videos.csv", tmp_path), "encode", ["--only", "a b"], tmp_path
    )
    assert command.entrypoint == "python -m jobs encode run.toml --only 'a b'"


def test_a_job_may_take_as_long_to_stop_as_the_cluster_section_says(tmp_path: Path) -> None:
    config = cache_config(tmp_path / "videos.csv", tmp_path, "cluster.grace_s=77")
    assert submit.make_command(config, "train", (), tmp_path).env["RAY_JOB_STOP_WAIT_TIME_S"] == "77"


@pytest.mark.parametrize(
    ("status", "told", "code"),
    [
        *[("SUCCEEDED", 0, 0), ("FAILED", 1, 1), ("FAILED", 2, 2), ("FAILED", 3, 3)],
        *[("FAILED", -9, 137), ("FAILED", None, 1), ("STOPPED", None, 143)],
    ],
)
def test_exit_codes_pass_through(status: str, told: int | None, code: int) -> None:
    assert submit.exit_code(replace(OVER, status=status, exit_code=told)) == code


def wait_for_steps(config: RunConfig, steps: int) -> None:
    while len(read_metrics(config.train.out / "metrics.jsonl")) < steps:
        time.sleep(0.5)


@pytest.mark.slow
def test_a_run_of_separate_jobs_is_stopped_and_goes_on_as_if_it_had_not_been(
    head: Head, local_ray: None, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    knobs = ["train.steps=400", "train.timestep_transform=false", "sample.num_prompts=1", "sample.steps=2"]
    undisturbed = cache_config(shapes, tmp_path / "undisturbed", *knobs)
    run.run(undisturbed)
    config = cache_config(shapes, tmp_path / "submitted", *knobs, f"cluster.address={head.dashboard}")
    before = len(head.packages)
    assert submit.submit(config, "run") == 0
    assert submit.submit(config, "run") == 0
    assert "already, and not submitted a second time" in capsys.readouterr().out
    wait_for_steps(config, 20)
    submit.stop(config, "")
    found = {job.metadata["verb"]: submit.exit_code(job) for job in submit.jobs_of(submit.connect(config), config)}
    assert found == {"scan": 0, "plan": 0, "encode": 0, "text": 0, "train": 143, "run": 143}
    trained = len(read_metrics(config.train.out / "metrics.jsonl"))
    assert 20 <= trained < 400
    assert list_committed(config.train.out / "checkpoints")[-1].name == f"step-{trained:08d}"
    capsys.readouterr()
    assert submit.submit(config, "run", follow=True) == 0
    log = capsys.readouterr().out
    assert "train: 400 steps done" in log and "sample: 1 videos" in log
    assert len(head.packages) == before + 1  # the steps are the same code as `run` itself
    for part in ("cache", "run/model", "run/ema"):
        assert digests(tmp_path / "submitted" / part) == digests(tmp_path / "undisturbed" / part), part


@pytest.mark.slow
def test_stopping_run_stops_its_step(head: Head, shapes: Path, tmp_path: Path) -> None:
    config = cache_config(shapes, tmp_path, "train.steps=100000", f"cluster.address={head.dashboard}")
    submit.submit(config, "run")
    wait_for_steps(config, 1)
    submissions = submit.connect(config)
    submissions.stop(submit.command_id(config, "run"))
    train = submit.command_id(config, "train")
    while not submissions.get(train).is_over:
        time.sleep(0.5)
    assert submissions.get(train).status == "STOPPED"
