"""A scene, played to its end, and what came of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from random import Random
from unittest import mock

from cluster import sharing
from jobs.encode import find_missing
from pipeline.cache import tar_path
from pipeline.location import Location
from pipeline.plan import latent_bytes
from tests.simulate.account import Account
from tests.simulate.clock import Clock
from tests.simulate.driver import Driver
from tests.simulate.machines import HOUR_S
from tests.simulate.scene import Scene, configure
from tests.simulate.store import Store

MOST_AGAIN = 10


@dataclass(frozen=True)
class Run:
    """What a scene left behind."""

    scene: Scene
    store: Store
    account: Account
    driver: Driver
    clock: Clock
    makespan_s: float  # until the index was there
    again: int  # how often `encode` had to be run again, for a late writer had died between its tar and its sidecar

    @property
    def kept(self) -> dict[str, bytes]:
        """All that an encode writes: tars (their checksums), sidecars, quarantine and index."""
        own = ("cache/latents/", "cache/quarantine/", "cache/index.parquet")
        return {key: content for key, content in self.store.objects.items() if key.startswith(own)}


def play(scene: Scene, planned: Mapping[str, bytes]) -> Run:
    """Encode a plan in simulated time, until the index is there and everybody has ended."""
    clock, account, sizes = Clock(), Account(), {}
    store = Store(clock, scene.weather, scene.seed, sizes)
    store.objects |= planned
    store.lengths |= {key: len(content) for key, content in planned.items()}
    overdue = sharing.OVERDUE if scene.backups else inf
    with store.installed(), mock.patch.object(sharing, "OVERDUE", overdue):
        driver = Driver(scene, configure(scene), clock, store, account)
        sizes |= tar_sizes(driver)
        draw = Random(scene.seed + 1)
        happening(clock, draw, scene.crashes, driver, driver.crash)
        happening(
            clock, draw, scene.outages, driver, lambda: setattr(store, "out_until_s", clock.now_s + scene.outage_s)
        )
        again = -1
        while not driver.is_done or find_missing(driver.cache, driver.planned, driver.recipe):
            again, driver.is_done = again + 1, False
            assert again < MOST_AGAIN, "there is always something missing"
            driver.begin()
            clock.run(lambda: driver.is_done)
            makespan_s = clock.now_s
            clock.run(lambda: False)
    return Run(scene, store, account, driver, clock, makespan_s, again)


def tar_sizes(driver: Driver) -> dict[str, int]:
    """The bytes of each shard's latents, by the key of its tar."""
    sizes = {}
    for shard, clips in driver.planned.items():
        place = tar_path(driver.cache.latents, shard)
        assert isinstance(place, Location)
        sizes[place.key] = sum(latent_bytes(one.num_frames, (one.height, one.width), driver.recipe) for one in clips)
    return sizes


def happening(clock: Clock, draw: Random, rate: float, driver: Driver, what: Callable[[], object]) -> None:
    """Something happens so often per hour, until all is done."""

    def happen() -> None:
        if not driver.is_done:
            what()
            happening(clock, draw, rate, driver, what)

    if rate:
        clock.after(draw.expovariate(rate / HOUR_S), happen)
