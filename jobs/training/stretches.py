"""What is trained on, and for which steps: a cache; with train.follow what is committed of it, one stretch at a time.

Then epoch 0 shows each clip once, in stretches: the first is of the shards that have latents and text when training
begins, each other one of those that got both since the one before. When all that is planned was shown, the whole cache
is trained on from epoch 1 on, in the order it has without train.follow.

`train.out/stretches/N/` holds what a cache holds of all of it, for the shards of one stretch: their two indexes.
`stretch.json` is written last, before the first step of the stretch, and never changed, so that a run that is resumed
goes through the same ones.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import compress, count, takewhile
from pathlib import Path
from sys import maxsize
from time import sleep
from typing import Any

import torch.distributed as dist

from jobs.config import ConfigError, RunConfig
from jobs.configured import configured_schedule, open_configured_set
from jobs.events import Events
from jobs.lookout import PAUSE_S, Lookout
from jobs.progress import say
from jobs.training.run_record import committed_step, describe_clips
from pipeline.cache import Cache
from pipeline.errors import Refused
from pipeline.index import merge_index
from pipeline.location import Place
from pipeline.plan import planned_shards
from pipeline.recipe import Recipe, convertible_recipe
from pipeline.records import Sample, TextSample
from pipeline.schedule import Schedule
from pipeline.shard import is_committed
from pipeline.storage import in_parallel, publish
from pipeline.text_column import read_text_origin
from pipeline.training_set import TrainingSet
from pipeline.view import NothingLeft


@dataclass(frozen=True)
class Stretch:
    """Shards that are trained on together, and for which steps."""

    epoch: int  # 0; that of the whole cache is 1, and it goes on with the next ones
    first_step: int
    num_steps: int | None  # None = without end
    shards: tuple[str, ...]  # in plan order
    clips: list[dict[str, Any]]


def stretches(
    config: RunConfig, recipe: Recipe, start: int, commit: Callable[[int], None], told_to_stop: Callable[[], object]
) -> Iterator[tuple[TrainingSet, Schedule, range]]:
    """What is trained on, one after the other, and the steps of training that are left of it from `start` on.

    Iterated by every rank; without train.follow it is one. Before a further one is waited for, `commit` is called with
    the number of steps done. Where `told_to_stop` says so, on every rank alike, there is no further one.
    """
    end = config.train.steps
    if not config.train.follow:
        data = open_configured_set(config, recipe)
        yield data, configured_schedule(config, data), range(start, end)
        return
    shown: list[Stretch] = []
    while _end(shown) < end and (stretch := _next(config, recipe, shown, commit, told_to_stop)):
        left = range(max(start, stretch.first_step), min(_end([*shown, stretch]), end))
        if left:
            data = _open_stretch(config, recipe, len(shown))
            if dist.get_rank() == 0:
                _tell(config, len(shown), stretch)
            yield data, configured_schedule(config, data, (stretch.first_step, stretch.epoch)), left
        shown.append(stretch)


def begin_following(config: RunConfig, recipe: Recipe) -> None:
    """Wait until there is a first stretch; of a run that left no checkpoint what was recorded is forgotten.

    Where shards were written again since, as `text` does when captions change, indexes are merged again.
    """
    if config.train.mix:
        raise ConfigError("train.mix: is given, and train.follow is of data.cache alone; leave one of them out")
    done = committed_step(config.train.out)
    if not done:
        shutil.rmtree(_folder(config), ignore_errors=True)
    known = _recorded(config)
    if _end(known) < done:
        lost = _record(config, len(known))
        raise Refused(f"{lost}: not found, and the run was shown it; restore it, or use another train.out")
    for number, stretch in enumerate(known):
        _merge(config, number, stretch.shards)
    if not known:
        Lookout(lambda: record_next(config, recipe, []), lambda message: say(f"train: {message}")).wait()


def open_first(config: RunConfig, recipe: Recipe) -> TrainingSet:
    """What is trained on first: by it models are shaped, and loss is measured on what it holds out."""
    return _open_stretch(config, recipe, 0) if config.train.follow else open_configured_set(config, recipe)


def record_next(config: RunConfig, recipe: Recipe, shown: Sequence[Stretch]) -> str:
    """Record the stretch behind those that were shown. Returns what is missing, where there is none yet."""
    planned = planned_shards(config.cache)
    if not planned:
        raise Refused(f"{config.cache.root}: no plan; run `plan` first, or set data.cache")
    past = {shard for one in shown for shard in one.shards}
    further = [shard for shard in planned if shard not in past]
    encoded, ready = find_ready(config, recipe, further)
    first_step = _end(shown)
    if ready and _record_stretch(config, recipe, len(shown), 0, first_step, ready):
        return ""
    if len(ready) < len(further):
        without_text, not_encoded = len(encoded) - len(ready), len(further) - len(encoded)
        told = [f"{not_encoded} are not encoded yet (`encode`)"] * bool(not_encoded)
        told += [f"{without_text} have no text (`text`, or `text --follow` beside `encode`)"] * bool(without_text)
        return f"of {len(planned)} planned shards {' and '.join(told)}"
    if not _record_stretch(config, recipe, len(shown), 1, first_step, planned):
        raise Refused(f"{config.cache.root}: holds no clips to train on; see train.filter and train.held_out")
    return ""


def find_ready(config: RunConfig, recipe: Recipe, shards: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of some shards whose latents are committed, and those of them whose text is too."""
    cache, encoder = config.cache, config.text.encoder
    made_by = {"recipe": convertible_recipe(cache, recipe).fingerprint()}
    encoded = _committed(cache.latents, shards, made_by)
    if not cache.text_origin(encoder).exists():  # `text` has not begun
        return encoded, []
    told_by = {**made_by, "encoder": read_text_origin(cache, encoder).fingerprint}
    return encoded, _committed(cache.text(encoder), encoded, told_by)


def _committed(column: Place, shards: Sequence[str], facts: dict[str, str]) -> list[str]:
    return list(compress(shards, in_parallel(lambda shard: is_committed(column, shard, facts), shards)))


def _record_stretch(
    config: RunConfig, recipe: Recipe, number: int, epoch: int, first_step: int, shards: Sequence[str]
) -> bool:
    """Write a stretch's indexes, then its record; False where its shards hold no clip to train on."""
    try:
        data = open_configured_set(config, recipe, _merge(config, number, shards))
    except NothingLeft:
        return False
    num_steps = None if epoch else configured_schedule(config, data).num_steps(0)
    stretch = Stretch(epoch, first_step, num_steps, tuple(shards), describe_clips(data))
    publish(_record(config, number), (json.dumps(asdict(stretch)) + "\n").encode())
    return True


def _merge(config: RunConfig, number: int, shards: Sequence[str]) -> Cache:
    """The run's cache with indexes of these shards only; they are written where they are not there yet."""
    cache, encoder = _indexed(config, number), config.text.encoder
    merge_index(cache.index, cache.latents, shards, Sample)
    merge_index(cache.text_index(encoder), cache.text(encoder), shards, TextSample)
    return cache


def _next(
    config: RunConfig,
    recipe: Recipe,
    shown: Sequence[Stretch],
    commit: Callable[[int], None],
    told_to_stop: Callable[[], object],
) -> Stretch | None:
    """The stretch behind those that were shown, waited for, the same on every rank; None where they are to stop."""
    number, done = len(shown), _end(shown)
    events = Events(config.train.out / "events.jsonl", "train")
    lookout = Lookout(
        lambda: record_next(config, recipe, shown),
        lambda message: events.write("waiting", step=done, message=message),
    )
    is_waiting = False
    while not told_to_stop():
        found = [dist.get_rank() == 0 and (_record(config, number).exists() or lookout.found())]
        dist.broadcast_object_list(found)
        if found[0]:
            return read_stretch(config, number)
        if not is_waiting:
            commit(done)
        is_waiting = True
        sleep(PAUSE_S)
    return None


def _open_stretch(config: RunConfig, recipe: Recipe, number: int) -> TrainingSet:
    """The clips of a stretch; Refused where they are others than when it was recorded."""
    data = open_configured_set(config, recipe, _indexed(config, number))
    before, now = read_stretch(config, number).clips, describe_clips(data)
    if before != now:
        wanted, found = (sum(part["count"] for part in parts) for parts in (before, now))
        raise Refused(
            f"{_record(config, number)}: of {wanted} clips, now there are {found}, or others, in another order; bring "
            f"them back, or use another train.out"
        )
    return data


def _tell(config: RunConfig, number: int, stretch: Stretch) -> None:
    """Which stretch begins, or goes on after a restart."""
    clips, shards = sum(part["count"] for part in stretch.clips), len(stretch.shards)
    message = (
        f"the cache is complete: epoch 0 showed it, and epoch 1 is of all {clips:,} clips"
        if stretch.epoch
        else f"stretch {number} of epoch 0: {clips:,} clips of {shards:,} shards, {stretch.num_steps:,} steps"
    )
    Events(config.train.out / "events.jsonl", "train").write("stretch", number=number, message=message)


def read_stretch(config: RunConfig, number: int) -> Stretch:
    """The record of a stretch."""
    told = json.loads(_record(config, number).read_text())
    return Stretch(**{**told, "shards": tuple(told["shards"])})


def _recorded(config: RunConfig) -> list[Stretch]:
    """Those that are recorded, in their order."""
    there = takewhile(lambda number: _record(config, number).exists(), count())
    return [read_stretch(config, number) for number in there]


def _end(shown: Sequence[Stretch]) -> int:
    """How many steps they take; as good as no end where the whole cache is one of them."""
    return sum(maxsize if one.num_steps is None else one.num_steps for one in shown)


def _folder(config: RunConfig) -> Path:
    return config.train.out / "stretches"


def _record(config: RunConfig, number: int) -> Path:
    return _folder(config) / f"{number:04d}" / "stretch.json"


def _indexed(config: RunConfig, number: int) -> Cache:
    """The run's cache, with the indexes of a stretch."""
    return replace(config.cache, indexes=_record(config, number).parent)
