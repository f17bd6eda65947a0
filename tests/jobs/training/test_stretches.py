"""A run that follows `encode` and `text` shows each clip once in epoch 0, as it comes, and goes on as any other."""

import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from jobs import lookout
from jobs.config import ConfigError, RunConfig
from jobs.configured import configured_recipe, configured_schedule, open_configured_set
from jobs.encode import encode
from jobs.events import read_events
from jobs.text import text
from jobs.training import stretches as stretches_module
from jobs.training.committed import list_committed
from jobs.training.metrics import read_metrics
from jobs.training.stretches import begin_following, open_first, read_stretch, record_next, stretches
from pipeline.cache import sidecar_path, tar_path
from pipeline.errors import Refused
from pipeline.loader import RankSteps
from pipeline.plan import planned_shards
from tests.conftest import before_encoding, train_here
from tests.shards import local

LATENTS, TEXT = "latents", "text/bytes"
Shown = tuple[int, list[str]]  # a step, and the keys of its batch


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is waited for longer than it takes."""
    for module in (lookout, stretches_module):
        monkeypatch.setattr(module, "PAUSE_S", 0.01)
    monkeypatch.setattr(lookout, "PAUSE_BY_LOOK", 0.0)


@pytest.fixture
def empty(cached: RunConfig, tmp_path: Path) -> RunConfig:
    """A run that follows a cache of which nothing is committed yet; what comes is copied from `cached`."""
    config = before_encoding(cached, tmp_path)
    column = local(config.cache.text("bytes"))
    column.mkdir(parents=True)
    for name in ("encoder.json", "null.npy"):
        shutil.copy(local(cached.cache.text("bytes")) / name, column)
    return changed(config, out=tmp_path / "run", follow=True, workers=1, steps=40, batch=3, held_out=0.0)


def changed(config: RunConfig, **updates: object) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=updates)})


def commit(
    cached: RunConfig, config: RunConfig, shards: Sequence[str], columns: Sequence[str] = (LATENTS, TEXT)
) -> None:
    """Some shards are written and committed, as `encode` and `text` do it."""
    for shard in shards:
        for column in columns:
            source, target = (local(one.cache.root) / column for one in (cached, config))
            for path in map(local, (tar_path(source, shard), sidecar_path(source, shard))):
                to = target / path.relative_to(source)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, to.with_suffix(".aside"))
                to.with_suffix(".aside").replace(to)


def arrivals(shards: Sequence[str], seed: int) -> list[list[str]]:
    """All shards in groups, in an order that is not that of the plan."""
    drawn = random.Random(seed)
    mixed = drawn.sample(shards, len(shards))
    cuts = sorted(drawn.sample(range(1, len(mixed)), min(3, len(mixed) - 1)))
    return [mixed[first:end] for first, end in pairwise([0, *cuts, len(mixed)])]


def shown(config: RunConfig, start: int = 0, at_wait: Callable[[int], None] | None = None) -> list[Shown]:
    """What training is shown at each step from `start` on: the keys of the samples that count. What is to be done when
    it waits is to stop, or `at_wait`."""
    found, waited = [], []
    commit, told_to_stop = (waited.append, lambda: waited) if at_wait is None else (at_wait, lambda: False)
    for data, schedule, steps in stretches(config, configured_recipe(config), start, commit, told_to_stop):
        for step in steps:
            batch = schedule.batch(*schedule.locate(step))
            found.append((step, data.keys(batch.rows[batch.weights > 0])))
    return found


def followed(cached: RunConfig, config: RunConfig, groups: Sequence[Sequence[str]]) -> tuple[list[Shown], list[int]]:
    """What is shown where the next group is committed when training waits for it, and the steps it waited at."""
    coming, waited = iter(groups), []
    commit(cached, config, next(coming))
    begin_following(config, configured_recipe(config))

    def at_wait(step: int) -> None:
        waited.append(step)
        commit(cached, config, next(coming))

    return shown(config, at_wait=at_wait), waited


def keys_of(steps: Sequence[Shown]) -> Counter[str]:
    return Counter(key for _, keys in steps for key in keys)


@pytest.mark.parametrize("seed", range(4))
def test_epoch_0_shows_each_clip_once_and_then_all_is_as_without_following(
    alone: None, cached: RunConfig, empty: RunConfig, seed: int
) -> None:
    groups = arrivals(planned_shards(cached.cache), seed)
    found, waited = followed(cached, empty, groups)
    assert [step for step, _ in found] == list(range(40)) and len(waited) == len(groups) - 1
    last = read_stretch(empty, len(groups))
    plain = changed(cached, batch=3, held_out=0.0)
    whole = open_configured_set(plain, configured_recipe(plain))
    assert keys_of(found[: last.first_step]) == Counter(whole.keys(np.arange(whole.num_clips)))
    schedule, rest = configured_schedule(plain, whole), len(found) - last.first_step
    assert last.epoch == 1 and rest > schedule.num_steps(1)
    batches = schedule.batches(epoch=1)
    assert [keys for _, keys in found[last.first_step :]] == [
        whole.keys(batch.rows[batch.weights > 0]) for batch, _ in zip(batches, range(rest))
    ]


def test_a_run_resumed_at_any_step_is_shown_the_same(alone: None, cached: RunConfig, empty: RunConfig) -> None:
    groups = arrivals(planned_shards(cached.cache), 0)
    found, _ = followed(cached, empty, groups)
    for start in range(41):
        assert shown(empty, start) == found[start:]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_any_number_of_ranks_shares_the_same_batches(
    alone: None, cached: RunConfig, empty: RunConfig, num_ranks: int
) -> None:
    found, _ = followed(cached, empty, arrivals(planned_shards(cached.cache), 1))
    start, together = 2, []  # as if fewer or more went on there
    for data, schedule, steps in stretches(empty, configured_recipe(empty), start, print, lambda: False):
        for slots in zip(*(RankSteps(schedule, steps, rank, num_ranks) for rank in range(num_ranks))):
            rows = [slot.row for share in slots for slot in share if slot.weight]
            together.append(data.keys(np.array(rows)))
    assert together == [keys for _, keys in found[start:]]


def test_to_follow_what_is_complete_is_to_train_on_it(alone: None, cached: RunConfig, empty: RunConfig) -> None:
    found, _ = followed(cached, empty, [planned_shards(cached.cache)])
    assert found == shown(changed(cached, batch=3, held_out=0.0, steps=40))


def test_a_clip_without_text_is_waited_for_and_told_of(
    alone: None, cached: RunConfig, empty: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *others = planned_shards(cached.cache)
    recipe = configured_recipe(empty)
    commit(cached, empty, [first], [LATENTS])
    local(empty.cache.text_origin("bytes")).rename(empty.train.out.parent / "encoder.json")  # `text` has not begun
    assert f"{len(others) + 1} are not encoded yet (`encode`) and 1 have no text" in record_next(empty, recipe, [])
    (empty.train.out.parent / "encoder.json").rename(local(empty.cache.text_origin("bytes")))
    commit(cached, empty, [first], [TEXT])
    commit(cached, empty, [second], [LATENTS])
    assert record_next(empty, recipe, []) == "" and read_stretch(empty, 0).shards == (first,)
    message = record_next(empty, recipe, [read_stretch(empty, 0)])
    assert f"{len(others)} are not encoded yet (`encode`) and 1 have no text (`text`" in message
    steps_there = read_stretch(empty, 0).num_steps
    assert shown(empty) == shown(empty)[:steps_there]  # it was asked to stop while it waited
    told = [event for event in read_events(empty.train.out / "events.jsonl") if event["event"] == "waiting"]
    assert told and told[0]["step"] == steps_there and message in told[0]["message"]


def test_shards_without_a_clip_to_train_on_are_joined_by_the_next(
    alone: None, cached: RunConfig, empty: RunConfig
) -> None:
    config = changed(empty, filter="num_chunks > 1")
    recipe, plain = configured_recipe(config), changed(cached, filter="num_chunks > 1", held_out=0.0)
    whole = open_configured_set(plain, recipe)
    with_clips = set(whole.parts[0].view.shards)
    planned = planned_shards(cached.cache)
    without = [shard for shard in planned if shard not in with_clips]
    assert without and with_clips
    commit(cached, config, without)
    assert record_next(config, recipe, []) != ""
    commit(cached, config, planned)
    begin_following(config, recipe)
    assert read_stretch(config, 0).shards == tuple(planned)


def test_a_complete_cache_with_nothing_to_train_on_is_refused(alone: None, cached: RunConfig, empty: RunConfig) -> None:
    config = changed(empty, filter="num_chunks > 99")
    commit(cached, config, planned_shards(cached.cache))
    with pytest.raises(Refused, match=r"holds no clips to train on; see train\.filter"):
        begin_following(config, configured_recipe(config))


def test_other_clips_than_were_recorded_are_refused(alone: None, cached: RunConfig, empty: RunConfig) -> None:
    followed(cached, changed(empty, steps=1), [planned_shards(cached.cache)])
    with pytest.raises(Refused, match=r"0000/stretch\.json: of \d+ clips, now there are \d+, or others.*train\.out"):
        open_first(changed(empty, filter="num_chunks > 1"), configured_recipe(empty))


def test_what_a_run_without_a_checkpoint_recorded_is_forgotten_and_else_it_is_needed(
    alone: None, cached: RunConfig, empty: RunConfig
) -> None:
    recipe, (first, *others) = configured_recipe(empty), planned_shards(cached.cache)
    commit(cached, empty, [first])
    begin_following(empty, recipe)
    commit(cached, empty, others)
    begin_following(empty, recipe)
    assert len(read_stretch(empty, 0).shards) == 1 + len(others)
    mark = empty.train.out / "checkpoints" / "step-00000001" / "COMMITTED.json"
    mark.parent.mkdir(parents=True)
    mark.write_text("{}")
    begin_following(empty, recipe)
    shutil.rmtree(empty.train.out / "stretches")
    with pytest.raises(Refused, match=r"0000/stretch\.json: not found, .*restore it, or use another train\.out"):
        begin_following(empty, recipe)


def test_other_caches_are_not_mixed_in(cached: RunConfig, empty: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"train\.mix"):
        begin_following(changed(empty, mix={cached.data.cache: 1.0}), configured_recipe(empty))


def kept(config: RunConfig) -> list[tuple[int, float, float]]:
    return [
        (line["step"], line["loss"], line["grad_norm"]) for line in read_metrics(config.train.out / "metrics.jsonl")
    ]


def test_training_goes_on_while_a_cache_is_encoded_and_a_resumed_run_repeats_it(
    alone: None, cached: RunConfig, tmp_path: Path
) -> None:
    """It waits for the shard that `encode` and `text` bring, with all that is done committed."""
    config = before_encoding(cached, tmp_path)
    config = changed(config, out=tmp_path / "run", follow=True, workers=1, steps=14, batch=2)
    config = changed(config, held_out=0.0, keep_checkpoints=9)
    encode(config, limit=2)
    text(config)
    begin_following(config, configured_recipe(config))
    waits_at = read_stretch(config, 0).num_steps
    assert waits_at is not None
    with ThreadPoolExecutor(2) as threads:
        texts = threads.submit(partial(text, config, follow=True))
        encoded = threads.submit(encode_when_waited_for, config)
        train_here(config)
        assert texts.result() == 0 and encoded.result() == 0
    found = kept(config)
    assert [step for step, *_ in found] == list(range(1, 15))
    assert read_stretch(config, 1).first_step == waits_at < 14
    steps = [path.name for path in list_committed(config.train.out / "checkpoints")]
    assert f"step-{waits_at:08d}" in steps

    again = changed(config, out=tmp_path / "again")
    shutil.copytree(config.train.out / "stretches", again.train.out / "stretches")
    for until in (waits_at + 1, 14):  # stopped within the second stretch
        train_here(changed(again, steps=until))
    assert kept(again) == found
    told = [event["message"] for event in read_events(config.train.out / "events.jsonl") if event["event"] == "stretch"]
    assert told[0].startswith("stretch 0 of epoch 0") and "the cache is complete" in told[-1]


def encode_when_waited_for(config: RunConfig) -> int:
    """`encode`, as soon as training has nothing left to do."""
    events = config.train.out / "events.jsonl"
    lookout.Lookout(
        lambda: "" if any(one["event"] == "waiting" for one in read_events(events)) else "a wait", print
    ).wait()
    return encode(config)
