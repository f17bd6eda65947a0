"""A run at one moment, as its cache, its training and its cluster tell it."""

from pathlib import Path

import pytest

from cluster.usage import Usage, count_usage
from jobs import glance
from jobs.config import RunConfig
from jobs.events import Events
from jobs.glance import Gatherer, Step
from jobs.recorded import recorded
from jobs.run_toml import load_config
from jobs.training.metrics import Metrics
from tests.conftest import before_encoding
from tests.object_store import Bucket

NOBODY = "cluster.address=http://127.0.0.1:9"  # the port of `discard`, where nothing listens


def steps_of(config: RunConfig) -> dict[str, Step]:
    return {step.verb: step for step in Gatherer(config).look().steps}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load_config(None, [f"data.cache={tmp_path / 'cache'}", f"train.out={tmp_path / 'out'}", NOBODY])


def test_a_run_that_has_not_begun(config: RunConfig) -> None:
    found = Gatherer(config).look()
    assert [step.verb for step in found.steps] == ["scan", "plan", "encode", "text", "train", "sample"]
    assert {(step.state, step.done, step.told) for step in found.steps} == {("", None, "")}
    assert found.no_cluster.startswith("http://127.0.0.1:9: ") and found.is_over


def test_what_real_verbs_left(cached: RunConfig) -> None:
    found = steps_of(cached)
    shards = len(list(Path(cached.data.cache).glob("latents/*/*.tar")))
    assert (found["encode"].done, found["encode"].total, found["encode"].unit) == (shards, shards, "shards")
    assert (found["scan"].done, found["scan"].total, found["scan"].told) == (10, 10, "10 videos")
    assert found["plan"].told == f"{shards} shards"
    assert found["text"].done == found["text"].total == shards + 1


def test_an_encode_that_runs_is_followed(cached: RunConfig, tmp_path: Path) -> None:
    config = before_encoding(cached, tmp_path)
    gatherer, seen = Gatherer(config), []
    events = Events(config.cache.events, "encode")

    def encode(config: RunConfig) -> int:
        events.write("start", shards=4, committed=1, chosen=3)
        for number in range(2):
            stages = {"encode": 3.0, "decode": 1.0, "write": 0.0, "wait": 0.0}
            facts = {"chunks": 3, "latent_bytes": 9, "decode_cpu_s": 1.0, "failed": [], "stages": stages}
            events.write("shard", often=True, shard=f"64x64/{number}", **facts)
            seen.append(gatherer.look())
        return 0

    recorded("encode", encode, config)
    seen.append(gatherer.look())
    encodes = [next(step for step in one.steps if step.verb == "encode") for one in seen]
    assert [(step.state, step.done, step.total) for step in encodes] == [
        ("running", 2, 4),
        ("running", 3, 4),
        ("done", 3, 4),
    ]
    assert [step.left_s is not None for step in encodes] == [True, True, False]
    assert "encode 75%, decode 25%, write 0%, wait 0%" in encodes[1].told
    assert [one.is_over for one in seen] == [False, False, True]


def test_training_is_told_by_its_last_steps(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics(config.train.out, start=0)
    for step in range(1, 41):
        metrics.write(step, step_s=2.0, loss=100.0 if step == 1 else 0.5, samples_per_s=20.0, data_wait_share=0.25)
    monkeypatch.setattr(glance, "TAIL_BYTES", 1000)  # a few of its lines
    found = steps_of(config)["train"]
    assert (found.done, found.total, found.unit) == (40, config.train.steps, "steps")
    assert found.told.startswith("loss 0.5000, 2.00 s/step, 20 samples/s, data wait 25.0%, goodput ")


def test_why_a_verb_was_refused_is_told(config: RunConfig) -> None:
    def run(config: RunConfig) -> int:
        raise glance.ConfigError("data.source: nothing there")

    with pytest.raises(glance.ConfigError):
        recorded("scan", run, config)
    found = steps_of(config)["scan"]
    assert (found.state, found.told) == ("refused", "data.source: nothing there")


def test_other_verbs_are_shown_once_they_ran(config: RunConfig) -> None:
    recorded("run", lambda config: recorded("scan", lambda config: 0, config), config)
    assert steps_of(config)["run"].state == "done"


def test_a_cache_in_a_store_is_looked_at_by_its_log_alone(store: Bucket, tmp_path: Path) -> None:
    words = [f"data.cache={store.uri('cache')}", f"train.out={tmp_path / 'out'}", NOBODY]
    config = load_config(None, words)
    events = Events(config.cache.events, "encode")
    events.write("start", shards=100_000, committed=70_000, chosen=30_000)
    gatherer = Gatherer(config)
    store.door.requests.clear()
    found = next(step for step in gatherer.look().steps if step.verb == "encode")
    assert (found.done, found.total) == (70_000, 100_000)
    assert [one.verb for one in store.door.requests] == ["LIST", "HEAD", "GET"]
    store.door.requests.clear()
    gatherer.look()
    assert [one.verb for one in store.door.requests] == ["LIST", "HEAD"]  # there is nothing new to read


def test_nodes_are_counted_from_what_the_dashboard_says_of_each() -> None:
    told = {
        "a": "1.5/4.0 CPU\n0.5/1.0 GPU\n0B/16.16GiB memory",
        "b": "2.0/4.0 CPU (2.0 used of 3.0 reserved in placement groups)\n0.0/1.0 decode",
    }
    assert count_usage(told) == Usage(2, {"CPU": 3.5, "GPU": 0.5}, {"CPU": 8.0, "GPU": 1.0})
