"""Jobs of a real Ray head with token authentication: once each, followed to the end, told in one line what is wrong."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.errors import NoCluster
from cluster.submission import Command, Once, Submissions
from tests.head import Head, Wire, free_ports, serve_head


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with serve_head() as head:
        yield head


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client of Ray's leaves in the environment goes with the test."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")


def followed(submissions: Submissions, job: str) -> tuple[str, Any]:
    """All that a job wrote itself, and how it ended."""
    parts: list[str] = []
    found = submissions.follow(job, parts.append)
    lines = "".join(parts).splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(("20", "Running entrypoint"))), found


@pytest.mark.slow  # tests/jobs/test_submit.py submits a verb twice
def test_a_command_runs_once_until_it_is_asked_for_again(head: Head, tmp_path: Path) -> None:
    submissions = Submissions(head.dashboard)
    entrypoint = "cat given; echo $WORD; exit 3"
    (tmp_path / "given").write_text("sent along\n")
    command = Command("once", entrypoint, tmp_path, {"WORD": "told"}, metadata={"a": "b"}, done=frozenset({0, 3}))
    job, is_new = submissions.submit(command)
    assert (job.id, is_new) == ("once", True)
    text, ended = followed(submissions, job.id)
    assert text == "sent along\ntold\n"
    assert (ended.status, ended.exit_code, ended.metadata) == ("FAILED", 3, {"a": "b"})
    assert submissions.submit(command) == (ended, False)
    again, is_new = submissions.submit(command, again=True)
    assert (again.id, is_new) == ("once-2", True)
    assert followed(submissions, again.id)[0] == text  # and not that of the first attempt too
    assert submissions.submit(replace(command, done=frozenset({0})))[0].id == "once-3"  # for 3 is a failure then
    assert [job.id for job in submissions.list()] == ["once", "once-2", "once-3"]


def test_a_command_submitted_many_times_at_once_is_one_job(head: Head, tmp_path: Path) -> None:
    submissions = Submissions(head.dashboard)
    command = Command("race", "true", tmp_path)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: submissions.submit(command), range(4)))
    assert sorted(is_new for _, is_new in found) == [False, False, False, True]
    assert {job.id for job, _ in found} == {"race"}


@pytest.mark.slow
def test_a_job_that_is_stopped_may_end_in_its_own_way_and_is_tried_anew(head: Head, tmp_path: Path) -> None:
    submissions = Submissions(head.dashboard)
    slow = "trap 'sleep 4; echo saved; exit' TERM; echo up; while true; do sleep 0.1; done"
    command = Command("slow", slow, tmp_path, {"RAY_JOB_STOP_WAIT_TIME_S": "60"})  # 3 s would be too few
    submissions.submit(command)
    while "\nup\n" not in submissions.logs("slow"):
        time.sleep(0.2)
    assert submissions.submit(command)[1] is False  # for it runs
    assert submissions.stop("slow").status == "STOPPED"
    assert submissions.logs("slow").endswith("\nsaved\n")
    anew, is_new = submissions.submit(command)
    assert (anew.id, is_new) == ("slow-2", True)
    submissions.stop(anew.id)


def test_what_is_told_anew_after_a_cut_is_handed_on_once() -> None:
    parts: list[str] = []
    once = Once(parts.append)
    for telling in (["one\n", "tw"], ["on"], ["one\ntwo\nthr", "ee\n"]):
        once.begin()
        for part in telling:
            once.take(part)
    assert parts == ["one\n", "tw", "o\nthr", "ee\n"]


@pytest.mark.slow
def test_following_goes_on_behind_a_cut_without_a_line_lost_or_told_twice(head: Head, tmp_path: Path) -> None:
    wire = Wire(int(head.dashboard.rpartition(":")[2]))
    submissions = Submissions(f"http://127.0.0.1:{wire.port}")
    count = "for n in 1 2 3 4 5 6; do echo line $n; sleep 0.7; done; exit 5"
    job, _ = submissions.submit(Command("cut", count, tmp_path))
    parts: list[str] = []

    def write(text: str) -> None:
        parts.append(text)
        if "line" in text:
            wire.cut()

    assert submissions.follow(job.id, write).exit_code == 5
    lines = [line for line in "".join(parts).splitlines() if line.startswith("line")]
    assert lines == [f"line {n}" for n in range(1, 7)]
    wire.close()


def test_a_job_that_nobody_knows(head: Head) -> None:
    with pytest.raises(NoCluster, match=r"knows no job nix; `latentmill list`"):
        Submissions(head.dashboard).logs("nix")


def test_nothing_answers() -> None:
    [port] = free_ports(1)
    with pytest.raises(NoCluster, match=rf"^http://127.0.0.1:{port}: no Ray dashboard answers there; .*:8265$"):
        Submissions(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ({}, "no Ray dashboard answers there"),
        ({"authentication_mode": "disabled"}, "has no token authentication"),
        ({"authentication_mode": "token", "ray_version": "2.40.0"}, f"runs Ray 2.40.0, and here is {ray.__version__}"),
    ],
    ids=["another server", "a cluster without authentication", "another version of Ray"],
)
def test_what_answers_is_not_what_we_can_talk_to(answers: dict[str, str], problem: str) -> None:
    with serving(answers) as address, pytest.raises(NoCluster, match=rf"^{address}: .*{problem}[^\n]*$"):
        Submissions(address)


@contextmanager
def serving(answers: dict[str, str]) -> Iterator[str]:
    """A server that answers whatever it is asked with the same few facts."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if answers else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answers).encode())

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
