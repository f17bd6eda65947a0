"""The log of jobs: that a verb began, where and as what, and how it ended, as two events of the cache."""

import hashlib
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from textwrap import shorten
from typing import Any

from cluster import torchrun
from cluster.job import job_here
from jobs.config import RunConfig
from jobs.events import Events
from jobs.outcome import DONE, QUARANTINED, outcome_of, refusal
from jobs.progress import say
from pipeline.errors import Refused

BEGAN, ENDED = "began", "ended"  # the two events
FIRST = ("scan", "run")  # the verbs that make a cache
MESSAGE = 300  # letters that are kept of it


def recorded(verb: str, run: Callable[[RunConfig], int], config: RunConfig) -> int:
    """Run a verb and return what it returns; the events of its cache tell that it began, and how it ended.

    Nothing is told by the other ranks of torchrun, of a cache that is not there, or in one that cannot be written:
    some verbs only read.
    """
    if (torchrun.is_rank() and not torchrun.is_first()) or not (verb in FIRST or _is_there(config)):
        return run(config)
    tell = _teller(verb, config)
    begun_s = time.monotonic()
    tell(BEGAN, host=socket.gethostname(), pid=os.getpid(), version=_version(), config=fingerprint(config))
    try:
        quarantined = run(config)
    except BaseException as error:
        outcome, code = outcome_of(error)
        tell(ENDED, outcome=outcome, exit_code=code, took_s=_since(begun_s), message=_in_a_line(error))
        raise
    tell(ENDED, outcome="done", exit_code=QUARANTINED if quarantined else DONE, took_s=_since(begun_s))
    return quarantined


def fingerprint(config: RunConfig, options: Sequence[str] = ()) -> str:
    """The same for two runs of a verb with the same knobs and options, whichever cluster they run on."""
    knobs = config.model_dump_json(exclude={"cluster": {"address"}})
    return hashlib.sha256("\n".join([knobs, *options]).encode()).hexdigest()[:12]


def _is_there(config: RunConfig) -> bool:
    return config.cache.manifest.exists() or config.cache.recipe.exists()


def _teller(verb: str, config: RunConfig) -> Callable[..., None]:
    """Writes an event of this job, whose `id` both have."""
    events, number = Events(config.cache.events, verb), uuid.uuid4().hex[:12]

    def tell(event: str, **facts: Any) -> None:
        try:
            events.write(event, **{"id": number, **facts, **job_here()})
        except Refused as refused:
            say(f"{verb}: that it {event} is not in the log of jobs: {refused}")

    return tell


def _in_a_line(error: BaseException) -> str:
    """What the user is told of a refusal; of another error its type, and the end of what it says."""
    if refused := refusal(error):
        return shorten(str(refused), MESSAGE)
    return shorten(": ".join([type(error).__name__, *str(error).strip().splitlines()[-1:]]), MESSAGE)


def _since(begun_s: float) -> float:
    return round(time.monotonic() - begun_s, 3)


def _version() -> str:
    """Of this package; empty where it runs from a copy of its source."""
    try:
        return version("latentmill")
    except PackageNotFoundError:
        return ""
