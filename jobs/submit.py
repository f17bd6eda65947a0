"""`submit`, `logs`, `stop`, `list`: verbs as jobs of a Ray cluster."""

import os
import re
import shlex
import signal
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from cluster.submission import Command, Job, Submissions
from jobs.config import ConfigError, RunConfig
from jobs.outcome import DONE, FAILED, INTERRUPTED, QUARANTINED
from jobs.parcel import CONFIG_NAME, pack, packages
from jobs.progress import console, printable_log, say
from jobs.recorded import fingerprint

STEPS = ("scan", "plan", "encode", "text", "train", "sample")  # of `run`, whose own table imports all of them
VERBS = (*STEPS, "run", "stats", "verify", "export")  # that are worth a cluster
STOPPED = 143  # the exit code of a verb that SIGTERM ends
DASHBOARD = "http://127.0.0.1:8265"  # of a Ray that `ray start --head` started here


def submit(config: RunConfig, verb: str, options: Sequence[str] = (), follow: bool = False, again: bool = False) -> int:
    """Have a cluster run a verb with this configuration, once: where its job runs or is done, there is no other.

    `options` are the verb's own, such as ["--limit", "3"].

    Returns the verb's exit code with `follow`, else 0. Code and configuration travel with the job; data and checkpoints
    stay where the configuration says, which all nodes must see.
    """
    if verb not in VERBS:
        raise ConfigError(f"submit: found {verb!r}, wanted one of {', '.join(VERBS)}")
    submissions = connect(config)
    job, is_new = send(submissions, config, verb, options, again)
    if is_new:
        say(f"submit: {job.id} is submitted")
    elif job.is_over:
        say(f"submit: {job.id} is done, with exit code {job.exit_code}; --again runs it once more")
    else:
        say(f"submit: {job.id} is {job.status.lower()} already, and not submitted a second time")
    if follow:
        return follow_job(submissions, job)
    say(f"submit: see it with `latentmill logs --job {job.id} --follow`, end it with `latentmill stop --job {job.id}`")
    return DONE


def logs(config: RunConfig, job: str, follow: bool) -> int:
    """Show what a job has written; with `follow` until it is over, and then return its exit code."""
    submissions = connect(config)
    found = submissions.get(job) if job else _latest(submissions, config)
    if follow:
        return follow_job(submissions, found)
    print(printable_log(submissions.logs(found.id)), end="")
    return DONE


def stop(config: RunConfig, job: str) -> None:
    """Stop a job, or all of a run, and wait until they are over: training first writes a checkpoint."""
    submissions = connect(config)
    found = [submissions.get(job)] if job else jobs_of(submissions, config)
    going = [one for one in found if not one.is_over]
    if not going:
        say("stop: nothing of this run is waiting or running")
    for one in going:
        submissions.ask_to_stop(one.id)
    for one in going:
        say(f"stop: {one.id} is {submissions.stop(one.id).status.lower()}")


def show_list(config: RunConfig) -> None:
    """Show all jobs of the cluster, the oldest first."""
    table = Table(box=None, pad_edge=False)
    for column in ("job", "status", "exit", "begun", "minutes", "user"):
        table.add_column(column, overflow="fold")
    for job in connect(config).list():
        began = datetime.fromtimestamp(job.begun_s)
        took_s = (job.ended_s or datetime.now().timestamp()) - job.begun_s
        code = str(exit_code(job)) if job.is_over else ""
        cells = [job.id, job.status.lower(), code, f"{began:%Y-%m-%d %H:%M}", f"{took_s / 60:.1f}"]
        table.add_row(*cells, job.metadata.get("user", ""))
    console.print(table)


def chain(config: RunConfig) -> int:
    """On the cluster: the steps of `run`, each a job of its own, one after the other; they meet only in the cache.

    A step skips what is done, and one that runs already is joined. Returns the exit code of the first that fails, else
    the worst. SIGTERM is handed on to the step that runs.
    """
    submissions, worst = Submissions(), DONE
    signal.signal(signal.SIGTERM, _leave)
    for verb in STEPS:
        try:
            job, _ = send(submissions, config, verb, (), again=True)
            code = follow_job(submissions, job)
        except SystemExit:
            if last := submissions.newest(command_id(config, verb)):
                submissions.ask_to_stop(last.id)
            raise
        if code not in (DONE, QUARANTINED):
            say(f"run: {job.id} ended with exit code {code}; submitted again, `run` goes on from there")
            return code
        worst = max(worst, code)
    return worst


def _leave(*_: Any) -> None:
    raise SystemExit(STOPPED)


def connect(config: RunConfig) -> Submissions:
    """The jobs of the cluster that the configuration or the environment names, by its dashboard."""
    named = [("cluster.address", config.cluster.address)]
    named += [(name, os.environ.get(name, "")) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")]
    knob, address = next(((knob, address) for knob, address in named if address), ("", DASHBOARD))
    if not address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{knob}: found {address!r}, which a verb that runs here takes; jobs are submitted to the dashboard of a "
            f"cluster, so wanted http://HEAD:8265"
        )
    return Submissions(address.rstrip("/"))


def send(
    submissions: Submissions, config: RunConfig, verb: str, options: Sequence[str], again: bool
) -> tuple[Job, bool]:
    """Submit a verb, and return its job and whether that is new."""
    with tempfile.TemporaryDirectory() as folder:
        return submissions.submit(make_command(config, verb, options, pack(config, Path(folder))), again)


def make_command(config: RunConfig, verb: str, options: Sequence[str], working_dir: Path) -> Command:
    """A verb as a cluster runs it. Credentials are not in it: the nodes have their own."""
    entry = "chain" if verb == "run" else verb
    user = os.environ.get("USER") or str(os.getuid())
    facts = {"run": config.train.out.name, "verb": verb, "user": user, "config": fingerprint(config)}
    return Command(
        id=command_id(config, verb, options),
        entrypoint=shlex.join(["python", "-m", "jobs", entry, CONFIG_NAME, *options]),
        working_dir=working_dir,
        env={
            "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "token"),  # that of the cluster, which is looked at before
            "RAY_JOB_STOP_WAIT_TIME_S": str(config.cluster.grace_s),  # 3 s otherwise, too few for a checkpoint
        },
        packages=packages(working_dir),
        metadata={**facts, "cache": config.data.cache, "out": str(config.train.out)},
        num_cpus=0.0 if verb == "run" else config.cluster.driver_cpus,
        done=frozenset({DONE, QUARANTINED}),
    )


def command_id(config: RunConfig, verb: str, options: Sequence[str] = ()) -> str:
    """The same for the same run, verb, knobs and options: RUN-VERB-FINGERPRINT, of letters that an address may have."""
    run = re.sub(r"[^A-Za-z0-9._-]+", "-", config.train.out.name)[:60]
    return f"{run}-{verb}-{fingerprint(config, options)}"


def jobs_of(submissions: Submissions, config: RunConfig) -> list[Job]:
    """Those of a run, the oldest first: they have its cache and its folder."""
    wanted = {"cache": config.data.cache, "out": str(config.train.out)}
    return [job for job in submissions.list() if wanted.items() <= job.metadata.items()]


def _latest(submissions: Submissions, config: RunConfig) -> Job:
    """The job of a run that was begun last; while `run` goes on this one, which tells what its steps do."""
    found: Sequence[Job] = jobs_of(submissions, config)
    if not found:
        raise ConfigError(f"logs: no job of {config.train.out} is known; `latentmill list` shows those that are")
    return max(found, key=lambda job: (job.metadata["verb"] == "run" and not job.is_over, job.begun_s))


def follow_job(submissions: Submissions, job: Job) -> int:
    """Show what a job writes until it is over, and return its exit code. Ctrl-C leaves the job alone."""
    try:
        found = submissions.follow(job.id, lambda text: print(printable_log(text), end="", flush=True))
    except KeyboardInterrupt:
        say(
            f"\n{job.id} goes on; see it with `latentmill logs --job {job.id} --follow`, "
            f"end it with `latentmill stop --job {job.id}`"
        )
        return INTERRUPTED
    if found.exit_code is None:  # the log does not tell why
        say(f"{job.id}: {found.status.lower()}: {found.message}")
    return exit_code(found)


def exit_code(job: Job) -> int:
    """That of a job that is over, as a shell has it."""
    if job.exit_code is None:
        return STOPPED if job.status == "STOPPED" else FAILED
    return job.exit_code if job.exit_code >= 0 else 128 - job.exit_code
