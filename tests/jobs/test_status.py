"""What `status` shows, and when it stops to."""

import os
import pty
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cluster.submission import Job
from cluster.usage import Usage
from jobs import status
from jobs.config import RunConfig
from jobs.glance import Glance, Step
from jobs.progress import console
from jobs.recorded import recorded
from jobs.run_toml import load_config
from jobs.status import duration, render

NOW_S = 1_000_000.0
ENCODE = Step("encode", "running", NOW_S - 90, 37, 120, "shards", 720.0, "46.1 chunks/s; encoders: encode 71%")
JOB = Job("demo-encode-1", "FAILED", "python", 1, NOW_S - 500, NOW_S - 120, "it has [brackets]", {"verb": "encode"})
GLANCE = Glance(
    cache="s3://bucket/[cache]",
    out="/runs/demo",
    now_s=NOW_S,
    steps=(Step("scan", "done", NOW_S - 7200, 64, 64, "files", None, "64 videos"), ENCODE, Step("text", "", 0.0)),
    quarantined=1234,
    jobs=(JOB, replace(JOB, id="demo-train-2", status="RUNNING", exit_code=None, ended_s=None, message="")),
    usage=Usage(3, {"CPU": 9.5, "GPU": 2.0}, {"CPU": 32.0, "GPU": 4.0}),
)


def shown(glance: Glance) -> list[str]:
    """The lines on a wide screen, without columns."""
    screen = Console(width=200, force_terminal=False)
    with screen.capture() as captured:
        screen.print(render(glance))
    return [" ".join(line.split()) for line in captured.get().splitlines() if line.strip()]


def test_all_that_is_known_is_shown() -> None:
    head, _, scan, encode, text, _, failed, running, nodes = shown(GLANCE)
    assert head.endswith(" s3://bucket/[cache] -> /runs/demo, 1,234 inputs in the quarantine")
    assert scan == "scan done 2.0 h ago 64/64 files 64 videos"
    assert encode == "encode running 1.5 min 37/120 shards 12.0 min 46.1 chunks/s; encoders: encode 71%"
    assert text == "text"
    assert failed == "demo-encode-1 encode FAILED 2.0 min ago 1 it has [brackets]"
    assert running == "demo-train-2 encode RUNNING 8.3 min"
    assert nodes == "3 nodes, 9.5 of 32 CPUs, 2 of 4 GPUs in use"


def test_without_a_cluster_one_line_says_why() -> None:
    *_, last = shown(replace(GLANCE, jobs=(), usage=None, no_cluster="http://head:8265: nobody there"))
    assert last == "no jobs: http://head:8265: nobody there"


def test_a_cluster_without_jobs_of_the_run_is_told_apart() -> None:
    *_, last = shown(replace(GLANCE, jobs=(), usage=Usage(1, {"CPU": 0.0}, {"CPU": 2.0})))
    assert last == "1 node, 0 of 2 CPUs in use; no job of this run was submitted"


def test_a_run_is_over_when_nothing_runs() -> None:
    done = replace(ENCODE, state="killed")
    over = replace(GLANCE, steps=(done,), jobs=(JOB,))
    assert over.is_over
    assert not replace(over, steps=(ENCODE,)).is_over
    assert not replace(over, jobs=(JOB, replace(JOB, status="PENDING"))).is_over


@pytest.mark.parametrize(
    ("seconds", "told"), [(-1, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (60, "1.0 min"), (5400, "1.5 h"), (1e6, "11.6 d")]
)
def test_durations_have_a_unit_that_fits(seconds: float, told: str) -> None:
    assert duration(seconds) == told


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    words = [f"data.cache={tmp_path / 'cache'}", f"train.out={tmp_path / 'out'}"]
    return load_config(None, [*words, "cluster.address=http://127.0.0.1:9"])


def test_without_a_terminal_it_watches_until_all_is_over(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(status, "PLAIN_EVERY_S", 0.05)
    blocks = []

    def verb(config: RunConfig) -> int:
        recorded("scan", lambda config: 0, config)
        with pytest.raises(TimeoutError):
            status.status(config, watch=True)
        blocks.append(capsys.readouterr().out)
        return 0

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        recorded("run", verb, config)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert blocks[0].count("no jobs: ") > 1 and "run     running" in blocks[0]
    status.status(config, watch=True)
    assert capsys.readouterr().out.count("no jobs: ") == 1
    assert not console.is_terminal


def test_on_a_terminal_it_watches_until_ctrl_c(config: RunConfig, tmp_path: Path) -> None:
    """As a shell does: the process has a terminal of its own, and gets SIGINT."""
    recorded("scan", lambda config: 0, config)
    (tmp_path / "run.toml").write_text("")
    ours, theirs = pty.openpty()
    words = ["run.toml", f"data.cache={config.data.cache}", "cluster.address=http://127.0.0.1:9", "--watch"]
    watching = subprocess.Popen(
        [sys.executable, "-m", "jobs", "status", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(status.__file__).parents[1])},
    )
    os.close(theirs)
    written = b""
    while b"no jobs" not in written:
        written += os.read(ours, 1 << 16)
    time.sleep(0.1)
    watching.send_signal(signal.SIGINT)
    assert watching.wait() == 0
    assert b"scan" in written and watching.stderr is not None and watching.stderr.read() == b""
    os.close(ours)
