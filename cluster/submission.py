"""Ray's Jobs API: a command that a cluster runs, once, under an id of its own; what goes wrong is told in one line."""

import asyncio
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.errors import NoCluster, no_token
from cluster.token import keep_token_private

POLL_S = 1.0
ANSWER_S = 10.0  # within which a dashboard answers
SILENCE_S = 60.0  # after which a connection may be dead and is made again; for so long a cluster may be out of reach
# They tell of each file that is sent, and of each log that ends.
for chatty in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
    logging.getLogger(chatty).setLevel(logging.WARNING)


@dataclass(frozen=True)
class Command:
    """What a cluster is to run."""

    id: str  # of all its attempts: ID, ID-2, ID-3; the same command has the same one, so that it is not run twice
    entrypoint: str
    working_dir: Path  # a folder here, which is sent along
    env: dict[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()  # that pip is to install for it
    metadata: dict[str, str] = field(default_factory=dict)
    num_cpus: float = 0.0  # that the command itself takes; with 0 it runs on the head
    done: frozenset[int] = frozenset({0})  # exit codes after which it need not run again


@dataclass(frozen=True)
class Job:
    """One attempt at a command."""

    id: str
    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED
    entrypoint: str
    exit_code: int | None  # None while it runs, and where it was stopped or never began
    begun_s: float  # since 1970, as all of these
    ended_s: float | None
    message: str  # why it failed
    metadata: dict[str, str]

    @property
    def is_over(self) -> bool:
        return JobStatus(self.status).is_terminal()


class Submissions:
    """The jobs of one cluster."""

    def __init__(self, address: str = "") -> None:
        """`address` is its dashboard's, http://host:8265; empty in a job, for its own cluster.

        NoCluster where nothing answers there, or not to us, or another version of Ray.
        """
        self.address = address or os.environ.get("RAY_ADDRESS", "")
        keep_token_private()
        with self._plainly():
            if address:
                self._check_mode(address)
                os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray heeds RAY_ADDRESS before what it is given
            self._client = JobSubmissionClient()
            found = self._client._server_ray_version or ""
        if _minor(found) != _minor(ray.__version__):
            raise NoCluster(
                f"{self.address}: this cluster runs Ray {found}, and here is {ray.__version__}, which it may not "
                f"understand; install ray=={found} here, or {ray.__version__} there"
            )

    def submit(self, command: Command, again: bool = False) -> tuple[Job, bool]:
        """Have a command run; returns the job that runs or ran it, and whether that is a new one.

        One that failed or was stopped is tried anew; one that is done only with `again`. Two who submit it at the
        same moment have one job.
        """
        last = self.newest(command.id)
        if last and not last.is_over:
            return last, False
        if last and last.exit_code in command.done and not again:
            return last, False
        # An id of its own for each attempt: Ray gives a job the log of the one before that had its id, and its end.
        job = command.id if last is None else f"{command.id}-{_attempt(last.id, command.id) + 1}"
        try:
            self._submit(job, command)
        except NoCluster:
            if (found := self.find(job)) is None:
                raise
            return found, False  # somebody was faster: of one id Ray takes one job
        return self.get(job), True

    def _submit(self, job: str, command: Command) -> None:
        runtime_env: dict[str, Any] = {"working_dir": str(command.working_dir), "env_vars": command.env}
        if command.packages:
            runtime_env["pip"] = list(command.packages)
        with self._plainly():
            self._client.submit_job(
                entrypoint=command.entrypoint,
                submission_id=job,
                runtime_env=runtime_env,
                metadata=command.metadata,
                entrypoint_num_cpus=command.num_cpus,
            )

    def newest(self, command: str) -> Job | None:
        """The last attempt at a command, by the command's id."""
        attempts = [job for job in self.list() if _attempt(job.id, command)]
        return max(attempts, key=lambda job: _attempt(job.id, command), default=None)

    def find(self, job: str) -> Job | None:
        """What became of a job; None where the cluster does not know it."""
        return next((one for one in self.list() if one.id == job), None)

    def get(self, job: str) -> Job:
        """As `find`; NoCluster where it is not known."""
        found = self.find(job)
        if found is None:
            raise NoCluster(f"{self.address}: knows no job {job}; `latentmill list` shows those it knows")
        return found

    def list(self) -> list[Job]:
        """All jobs that were submitted, by whomever, the oldest first."""
        with self._plainly():
            found = [_job(one) for one in self._client.list_jobs() if one.submission_id]
        return sorted(found, key=lambda job: job.begun_s)

    def ask_to_stop(self, job: str) -> None:
        """Send SIGTERM to a job, all its processes; to no avail where it has none yet."""
        with self._plainly():
            self._client.stop_job(job)

    def stop(self, job: str) -> Job:
        """Have a job end, and wait until it has; Ray kills it RAY_JOB_STOP_WAIT_TIME_S after SIGTERM."""
        while not (found := self.get(job)).is_over:
            self.ask_to_stop(job)
            time.sleep(POLL_S)
        return found

    def logs(self, job: str) -> str:
        """All that a job has written so far."""
        self.get(job)
        with self._plainly():
            return self._client.get_job_logs(job)

    def follow(self, job: str, write: Callable[[str], None]) -> Job:
        """Hand on what a job writes, from its beginning, until it is over; a connection that is lost is made again."""
        was_over, once = self.get(job).is_over, Once(write)
        while True:
            whole = self._tail(job, once)
            found = self._patiently(job)
            if found.is_over and (whole or was_over):
                return found
            was_over = found.is_over
            time.sleep(POLL_S)

    def ask(self, path: str) -> Any:
        """What the dashboard answers to a path, which is JSON."""
        with self._plainly():
            answer = self._client._do_request("GET", path)
            answer.raise_for_status()
            return answer.json()

    def _tail(self, job: str, once: "Once") -> bool:
        """Hand on what a job writes until it is over, True, or the connection is."""

        async def tail() -> bool:
            once.begin()
            stream = self._client.tail_job_logs(job)
            while True:
                try:
                    text = await asyncio.wait_for(anext(stream, ""), SILENCE_S)
                except (aiohttp.ClientError, OSError, RuntimeError, asyncio.TimeoutError):
                    return False  # why is told by whatever is asked next
                if not text:
                    return True
                once.take(text)

        return asyncio.run(tail())

    def _patiently(self, job: str) -> Job:
        """As `get`, where the cluster may be out of reach for a while."""
        give_up_s = time.monotonic() + SILENCE_S
        while True:
            try:
                return self.get(job)
            except NoCluster:
                if time.monotonic() > give_up_s:
                    raise
            time.sleep(POLL_S)

    def _check_mode(self, address: str) -> None:
        """Both sides have token authentication, or neither: where only one has, they wait for each other for ever."""
        try:
            there = requests.get(f"{address}/api/authentication_mode", timeout=ANSWER_S).json()["authentication_mode"]
        except (ValueError, KeyError) as error:
            raise ConnectionError("what answers there is no dashboard of Ray's") from error
        here = os.environ.get("RAY_AUTH_MODE", "disabled")
        if there == "disabled" and here != "disabled":
            raise NoCluster(
                f"{address}: this cluster has no token authentication, so that whoever reaches it can run anything "
                f"there; start it with RAY_AUTH_MODE=token, or set RAY_AUTH_MODE=disabled here too"
            )

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """NoCluster for what Ray's client raises."""
        try:
            yield
        except NoCluster:
            raise
        except AuthenticationError as error:
            raise no_token(self.address) from error
        except (ConnectionError, requests.RequestException) as error:
            raise NoCluster(
                f"{self.address}: no Ray dashboard answers there; start one (`ray start --head`), forward its port, or "
                f"set cluster.address or RAY_ADDRESS to http://HEAD:8265"
            ) from error
        except RuntimeError as error:  # what it was answered, which may be a traceback of the head's
            if "No available agent" in str(error):
                raise NoCluster(
                    f"{self.address}: this head runs no jobs yet; try again soon. If that lasts, another Ray on its "
                    f"machine has its port: end that one, or start the head with --dashboard-agent-listen-port=52366"
                ) from error
            raise NoCluster(f"{self.address}: {str(error).strip().splitlines()[-1]}") from error


class Once:
    """Hands on a text that is told again from its beginning, each letter of it once."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write, self.told, self.position = write, 0, 0

    def begin(self) -> None:
        """It is told from its beginning."""
        self.position = 0

    def take(self, text: str) -> None:
        """The next part of it."""
        new = text[max(0, self.told - self.position) :]
        self.position += len(text)
        self.told = max(self.told, self.position)
        if new:
            self.write(new)


def _attempt(job: str, command: str) -> int:
    """Which attempt at a command a job is, counted from 1; 0 where it is none."""
    found = re.fullmatch(re.escape(command) + r"(?:-(\d+))?", job)
    return int(found[1] or 1) if found else 0


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _job(found: Any) -> Job:
    return Job(
        id=found.submission_id,
        status=str(found.status.value),
        entrypoint=found.entrypoint,
        exit_code=found.driver_exit_code,
        begun_s=(found.start_time or 0) / 1000,
        ended_s=found.end_time / 1000 if found.end_time else None,
        message=(found.message or "").partition(", last available logs")[0],
        metadata=found.metadata or {},
    )
