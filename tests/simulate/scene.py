"""What is simulated: the numbers of a scene, its videos, and the plan that the real `plan` makes of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from jobs.config import RunConfig
from jobs.plan import plan
from jobs.run_toml import load_config
from pipeline.records import Video
from pipeline.tables import write_records
from tests.simulate.clock import Clock
from tests.simulate.store import Store, Weather

SIZES = ((720, 1280), (1280, 720), (1080, 1920))
MEDIAN_S, SPREAD = 7.0, 0.6  # of how long videos are: 8.4 s on average
PLACE = "s3://simulation/cache"


@dataclass(frozen=True)
class Scene:
    """What there is to do, who does it and what goes wrong. Rates are per hour and machine, and 0 is never."""

    videos: int = 2000
    workers: int = 50
    seed: int = 0
    shard_bytes: int = 2**27
    chunk_s: float = 4.0  # that an encoder takes for a chunk, its frames decoded beside it
    chunk_spread: float = 0.2  # sigma of the logarithm of how long the same shard takes
    start_s: float = 90.0  # until a new encoder is ready
    joining: float = 50.0  # machines per second by which the cluster grows
    slow: float = 0.0  # share of the machines that take ten times as long
    hangs: float = 0.0  # share of the shards that are begun and never end
    deaths: float = 0.0
    notice_s: float = 120.0  # before a machine is preempted
    preemptions: float = 0.0  # told so long before
    evictions: float = 0.0  # preempted without a word
    cuts: float = 0.0  # taken for dead, while it goes on for a while
    cut_s: float = 300.0  # on average
    unnoticed_s: float = 20.0  # until a machine that is dead or cut off is taken for dead
    crashes: float = 0.0  # of the driver
    outages: float = 0.0  # of the store
    outage_s: float = 240.0
    restart_s: float = 60.0  # until there is another driver
    failures: float = 0.0  # share of the requests that fail, and are sent again by the client
    lost_answers: float = 0.0  # share that is done and sent again
    bad: float = 0.0  # share of the videos that cannot be decoded
    backups: bool = True  # whether what takes far too long is given to a second worker

    @property
    def weather(self) -> Weather:
        return Weather(failures=self.failures, lost_answers=self.lost_answers)

    def calm(self) -> "Scene":
        """The same work and nothing that goes wrong, by one worker, which is quick."""
        same = {"videos": self.videos, "seed": self.seed, "shard_bytes": self.shard_bytes, "bad": self.bad}
        return Scene(**same, workers=1, chunk_s=0.01)


def configure(scene: Scene) -> RunConfig:
    """As a run.toml would."""
    return load_config(
        None,
        [
            f"data.cache={PLACE}",
            f"encode.shard_bytes={scene.shard_bytes}",
            "recipe.buckets=[[480, 848], [848, 480]]",
            "recipe.scenes=off",
            "recipe.max_chunks=6",
            "encode.forecast=false",
        ],
    )


def make_videos(scene: Scene) -> Iterator[Video]:
    """A manifest's worth, by id as `scan` sorts them."""
    draw = Random(scene.seed)
    for number, content in enumerate(sorted(draw.getrandbits(64) for _ in range(scene.videos))):
        (height, width), fps = draw.choice(SIZES), draw.choice((24.0, 25.0, 30.0))
        frames = 1 + int(draw.lognormvariate(0, SPREAD) * MEDIAN_S * fps)
        path, caption = f"/data/part-{number % 1000:03d}/{content:016x}.mp4", f"a person does thing number {number}"
        end_s = (frames - 1) / fps
        yield Video(f"{content:016x}", path, caption, 10**6, number, "h264", 0, height, width, frames, 0.0, end_s, fps)


def make_plan(scene: Scene) -> dict[str, bytes]:
    """What a store holds when the real `plan` is done."""
    store = Store(Clock(), Weather(), scene.seed, {})
    with store.installed():
        config = configure(scene)
        write_records(config.cache.manifest, Video, make_videos(scene))
        plan(config)
    return store.objects
