"""How many workers training asks the cluster for, and what is told of them while they cannot train."""

from collections.abc import Callable
from itertools import count

from cluster import runtime
from cluster.launch import Workers
from jobs.config import ConfigError, RunConfig
from jobs.enter import enter
from jobs.events import Events
from jobs.placement import ask_training
from jobs.progress import say
from jobs.training.run_record import committed_step


def ask_for_workers(config: RunConfig) -> Workers:
    """What [train] asks the cluster for; Refused where there will never be room for the fewest."""
    settings = config.train
    if settings.min_workers is not None and settings.min_workers > settings.workers:
        raise ConfigError(
            f"train.min_workers: found {settings.min_workers}, wanted at most train.workers, {settings.workers}"
        )
    found = enter(config, "train", num_cpus=settings.workers * settings.cpus_per_worker)
    ask = ask_training(config, found)
    return Workers(settings.workers, ask.number, settings.cpus_per_worker, gpus=ask.gpus > 0)


def tell_failures(config: RunConfig) -> Callable[[str], None]:
    """What is to be told of the first failure of a worker, of the second and so on."""
    out, most, numbers = config.train.out, config.train.max_failures, count(1)
    events = Events(out / "events.jsonl", "train")

    def tell(why: str) -> None:
        number, step = next(numbers), committed_step(out)
        events.write("failed", why=why, number=number, committed=step)
        if number <= most:
            say(f"train: {why}; restart {number} of at most {most}, from step {step}")

    return tell


def tell_waiting(workers: Workers, waited_s: float) -> None:
    """What is waited for. Workers that have room but are still starting hold it already."""
    resource, each = _needs(workers)
    say(
        f"train: no worker has begun for {waited_s:.0f} s; they are starting, or wait for room: {workers.least} are "
        f"needed, {each} {resource} each, and of {runtime.count(resource)} {resource}s "
        f"{runtime.count_free(resource)} are free"
    )


def _needs(workers: Workers) -> tuple[str, int]:
    """What a worker takes a place by, and how many of it."""
    return ("GPU", 1) if workers.gpus else ("CPU", workers.cpus)
