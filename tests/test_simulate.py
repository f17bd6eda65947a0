"""Thousands of shards on a cluster where everything goes wrong, in simulated time, by the real planner, scheduler and
commit protocol: what is left behind is what one undisturbed worker leaves.

`python -m tests.simulate --help` plays larger scenes.
"""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulate.report import lines, tail_s
from tests.simulate.run import Run, play
from tests.simulate.scene import Scene, make_plan

SMALL = Scene(videos=240, workers=10, shard_bytes=2**25, joining=1.0, bad=0.02)
TROUBLE = {  # what happens in an hour of work, and how it shows
    "death": {"deaths": 8.0},
    "eviction": {"evictions": 2.0},
    "preemption": {"preemptions": 2.0, "notice_s": 20.0},
    "cut": {"cuts": 2.0},
    "crash": {"crashes": 8.0},
    "store": {"outages": 6.0},
    "done elsewhere": {"hangs": 0.02},
    "done twice": {"cuts": 3.0, "cut_s": 3600.0},
}


@pytest.fixture(scope="module")
def planned() -> dict[str, bytes]:
    return make_plan(SMALL)


@pytest.fixture(scope="module")
def calm(planned: dict[str, bytes]) -> Run:
    return play(SMALL.calm(), planned)


def assert_nothing_is_lost(run: Run, calm: Run) -> None:
    """The same objects with the same bytes, none ever written with others, no commit undone, every second told of."""
    assert run.kept == calm.kept
    assert not run.store.rewritten
    assert not [key for key, count in run.store.taken_away.items() if count]
    assert run.account.done_s.keys() == run.driver.planned.keys()
    assert run.account.idle_s > -1e-6 * run.account.lived_s


def test_one_worker_left_alone_wastes_nothing(calm: Run) -> None:
    shards = len(calm.driver.planned)
    assert shards > 50 and not calm.account.wasted and not calm.account.stops
    assert [calm.store.requests[kind] for kind in ("PUT tar", "PUT sidecar", "PUT index.parquet")] == [
        shards,
        shards,
        1,
    ]
    assert any(key.startswith("cache/quarantine/") for key in calm.kept)


@pytest.mark.parametrize("what", TROUBLE)
def test_one_kind_of_trouble_costs_time_and_nothing_else(planned: dict[str, bytes], calm: Run, what: str) -> None:
    run = play(replace(SMALL, **TROUBLE[what]), planned)
    assert_nothing_is_lost(run, calm)
    assert run.account.wasted[what] > 0
    assert run.account.stops.keys() <= {what}


def test_a_new_driver_has_done_only_what_is_missing(planned: dict[str, bytes]) -> None:
    run = play(replace(SMALL, crashes=8.0), planned)
    assert run.account.stops["crash"] > 1
    assert not run.account.wasted["done twice"]


rates = st.sampled_from([0.0, 0.3, 2.0])
shares = st.sampled_from([0.0, 0.01, 0.05])
scenes = st.builds(
    Scene,
    videos=st.just(SMALL.videos),
    shard_bytes=st.just(SMALL.shard_bytes),
    bad=st.just(SMALL.bad),
    seed=st.integers(0, 1000),
    workers=st.integers(8, 60),
    joining=st.sampled_from([0.1, 10.0]),
    **dict.fromkeys(("deaths", "evictions", "preemptions", "cuts", "crashes", "outages"), rates),
    **dict.fromkeys(("slow", "hangs", "failures", "lost_answers"), shares),
)


@settings(max_examples=3, derandomize=True)
@given(scene=scenes)
def test_all_troubles_at_once(planned: dict[str, bytes], calm: Run, scene: Scene) -> None:
    run = play(scene, planned)
    assert_nothing_is_lost(run, calm)
    assert dict(lines(run))["makespan"]


@pytest.mark.slow
@settings(max_examples=100)
@given(scene=scenes)
def test_a_hundred_times_all_troubles(planned: dict[str, bytes], calm: Run, scene: Scene) -> None:
    assert_nothing_is_lost(play(scene, planned), calm)


def test_the_same_scene_is_played_the_same(planned: dict[str, bytes]) -> None:
    scene = replace(SMALL, deaths=1.0, cuts=1.0, slow=0.05, lost_answers=0.01)
    one, other = (play(scene, planned) for _ in range(2))
    assert (one.makespan_s, one.store.requests, one.account.wasted_s) == (
        other.makespan_s,
        other.store.requests,
        other.account.wasted_s,
    )


def test_a_second_worker_for_what_is_overdue_shortens_the_tail(planned: dict[str, bytes]) -> None:
    slow = replace(SMALL, slow=0.3)
    assert tail_s(play(slow, planned), 0.95) < tail_s(play(replace(slow, backups=False), planned), 0.95)
