"""Verbs in processes of their own, which are killed or stopped before their k-th effect on a cache, or find no room.

They are forked from a server that has imported what they need, so that each takes a fraction of a second. There is no
Ray in them and no sandbox: encoder and decode task are called where they are.
"""

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from threading import Lock
from typing import Any

import obstore
import torch

import jobs.decode
import jobs.encode
import jobs.text
from jobs.config import RunConfig
from jobs.decode import Decoders, ShardWork, Yielded, decode_groups
from jobs.encode import ShardEncoder, ShardReport, encode
from jobs.events import Events
from jobs.plan import plan
from jobs.quarantine import retry_quarantine
from jobs.run_toml import load_config
from jobs.text import TextWriter, Work, text
from models.text.interface import TextDescription
from pipeline.errors import Refused
from tests.object_store import CREDENTIALS

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])
ONE_THREAD = Lock()  # at a time starts or ends a process: `start` looks after all others, too
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.link", "os.mkdir", "os.remove", "os.rename", "os.truncate"}  # as sys.addaudithook names them


def retry(config: RunConfig) -> None:
    """Have what is in the quarantine tried again."""
    retry_quarantine(config, "*")
    encode(config)


VERBS: dict[str, Callable[[RunConfig], Any]] = {"plan": plan, "encode": encode, "retry": retry, "text": text}


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int | None  # negative for a signal
    effects: int = 0  # that it had on the cache, and
    refused: str = ""  # what it was refused for, where it came to its end


class Verb:
    """A verb that runs in its own process; `words` configure it.

    Before its `effect`-th effect, where that is not 0, the process is sent `what`. No file may grow larger than
    `room` bytes, where that is not 0.
    """

    def __init__(
        self, verb: str, words: Sequence[str], effect: int = 0, what: int = signal.SIGKILL, room: int = 0
    ) -> None:
        self.told, theirs = FORKS.Pipe(duplex=False)
        self.process: ForkServerProcess = FORKS.Process(target=_run, args=(theirs, verb, words, effect, what, room))
        with ONE_THREAD:
            self.process.start()
        theirs.close()

    def end(self) -> Ended:
        """Wait for it."""
        told: tuple[int, str] = (0, "")
        with self.told, suppress(EOFError):  # it was killed
            told = self.told.recv()
        wait([self.process.sentinel])
        with ONE_THREAD:
            self.process.join()
        return Ended(self.process.exitcode, *told)


def run(verb: str, words: Sequence[str], **given: Any) -> Ended:
    """Run a verb in its own process, to the end."""
    return Verb(verb, words, **given).end()


def _run(told: Connection, verb: str, words: Sequence[str], effect: int, what: int, room: int) -> None:
    os.environ.update(CREDENTIALS)
    torch.set_num_threads(1)
    jobs.decode.sandbox_here = NoSandbox
    jobs.encode._encode_shards = _encode_shards
    jobs.text._encode_all = _encode_all
    config = load_config(None, list(words))
    effects = _watch_effects(config.data.cache, effect, what)
    if room:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    try:
        VERBS[verb](config)
    except Refused as error:
        told.send((len(effects), str(error)))
        sys.exit(1)
    told.send((len(effects), ""))


def _watch_effects(cache: str, effect: int, what: int) -> list[str]:
    """Write down when this process is about to change a file below `cache`, or any object; signal it at one of them."""
    effects: list[str] = []

    def count(name: str) -> None:
        effects.append(name)
        if len(effects) == effect:
            os.kill(os.getpid(), what)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in CHANGES or (event == "open" and arguments[2] & WRITES)
        if changes and str(arguments[0]).startswith(cache):
            count(event)

    def watched(request: Callable[..., Any]) -> Callable[..., Any]:
        def send(*arguments: Any, **options: Any) -> Any:
            count(request.__name__)
            return request(*arguments, **options)

        return send

    sys.addaudithook(watch)
    obstore.put, obstore.delete = watched(obstore.put), watched(obstore.delete)
    return effects


decode_here: Any = jobs.decode.decode._function  # pyright: ignore[reportAttributeAccessIssue]
writer_here: Any = TextWriter.__ray_metadata__.modified_class  # pyright: ignore[reportAttributeAccessIssue]


class NoSandbox:
    """Does the work where it is called."""

    cpu_s = 0.0

    def __init__(self, limits: Any) -> None:
        pass

    def stream(self, work: Callable[..., Iterator[Any]], *arguments: Any, lasts_s: float) -> Iterator[Any]:
        return work(*arguments)


class DecodersHere(Decoders):
    """One decode task after the other, in this process."""

    def read(self, work: ShardWork, upcoming: ShardWork | None) -> Iterator[Yielded]:
        for group in decode_groups(work, self.settings.frames_per_task):
            yield from decode_here(group, self.limits)


def _encode_shards(config: RunConfig, works: list[ShardWork], events: Events) -> list[ShardReport]:
    encoder = ShardEncoder(config)
    encoder.decoders = DecodersHere(config.encode, encoder.decoders.limits)
    return [encoder.do(work, None, turn) for turn, work in enumerate(works)]


def _encode_all(config: RunConfig, encoder: TextDescription, works: Sequence[Work]) -> None:
    writer = writer_here(encoder, config.cache.text(encoder.name))
    for turn, work in enumerate(works):
        writer.do(work, None, turn)
