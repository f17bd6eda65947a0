"""Whatever dies on the way, wherever it dies: the same command again, and the cache has the same bytes."""

import hashlib
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from jobs.encode import encode
from jobs.mp4 import write_mp4
from jobs.plan import plan
from jobs.run_toml import load_config
from jobs.scan import scan
from pipeline.cache import Cache, tar_path
from pipeline.plan import shards_of
from pipeline.records import Clip, Sample, TextSample, Video
from pipeline.shard import Member, committed_footer
from pipeline.tables import read_records, write_records
from pipeline.tar_reader import TarReader
from tests.conftest import CACHE_OVERRIDES, cache_config, digests
from tests.crashes import Verb, run
from tests.object_store import NAME, Bucket, serve_bucket
from tests.test_end_to_end import moving_bar

AT_ONCE = 4  # processes: they wait for the disk more than they compute


@dataclass(frozen=True)
class Scene:
    """A verb and the cache that it finds."""

    verb: str
    before: str
    broken: bool = False  # one of the videos is no longer the one that was scanned


SCENES = {
    "plan": Scene("plan", "scanned"),
    "plan a next generation": Scene("plan", "to be planned again"),
    "encode": Scene("encode", "planned"),
    "encode without a bad video": Scene("encode", "planned", broken=True),
    "encode a mended video": Scene("retry", "encoded without a bad video"),
    "text": Scene("text", "encoded"),
    "text with an edited caption": Scene("text", "to be captioned again"),
}
USUAL = {("store", "encode a mended video"), ("disk", "encode without a bad video")}


def words(videos: Path, cache: str) -> list[str]:
    """A configuration."""
    given = [f"data.source={videos}", f"data.cache={cache}", *CACHE_OVERRIDES]
    return [*given, "recipe.scenes=off", "encode.forecast=false"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, which share a shard, and an image."""
    folder = tmp_path_factory.mktemp("videos")
    write_mp4(folder / "a.mp4", moving_bar(34, 1), 8)
    write_mp4(folder / "b.mp4", moving_bar(17, 2), 8)
    write_mp4(folder / "image.mp4", moving_bar(1, 3), 8)
    return folder


@contextmanager
def broken(video: Path) -> Iterator[None]:
    """For a while it is not the file that was scanned."""
    aside = video.with_suffix(".aside")
    video.rename(aside)
    video.write_bytes(b"another file by now")
    try:
        yield
    finally:
        aside.replace(video)


@pytest.fixture(scope="module")
def caches(local_ray: None, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Local caches in every state that a scene begins with."""
    root = tmp_path_factory.mktemp("caches")
    scan(cache_config(videos, root, "recipe.scenes=off"))
    made = {"scanned": root / "cache"}

    def state(name: str, before: str, verb: str = "") -> Cache:
        made[name] = root / name
        shutil.copytree(made[before], made[name])
        assert not verb or run(verb, words(videos, str(made[name]))).code == 0
        return Cache(made[name])

    state("planned", "scanned", "plan")
    state("encoded", "planned", "encode")
    with broken(videos / "b.mp4"):
        state("encoded without a bad video", "planned", "encode")
    first, *others = read_records([Cache(made["scanned"]).manifest], Video)
    write_records(state("fewer", "scanned").manifest, Video, [first, *others[1:]])
    again = state("to be planned again", "fewer", "plan")
    write_records(again.manifest, Video, [replace(first, removed=True), *others])
    captioned = state("to be captioned again", "encoded", "text")
    write_records(captioned.manifest, Video, [replace(first, caption="edited"), *others])
    return made


@dataclass(frozen=True)
class Disk:
    """Caches in local folders."""

    folder: Path

    def copy(self, cache: Path, name: str) -> str:
        shutil.copytree(cache, self.folder / name)
        return str(self.folder / name)

    def digests(self, name: str) -> dict[str, str]:
        return digests(self.folder / name)


@dataclass(frozen=True)
class Store:
    """Caches in an object store."""

    bucket: Bucket

    def copy(self, cache: Path, name: str) -> str:
        for path in cache.rglob("*.*"):
            self.bucket.put(f"{name}/{path.relative_to(cache)}", path)
        return self.bucket.uri(name)

    def digests(self, name: str) -> dict[str, str]:
        listed = self.bucket.client.list_objects_v2(Bucket=NAME, Prefix=f"{name}/")["Contents"]
        keys = [one["Key"] for one in listed if "/events" not in one["Key"]]
        contents = {key: self.bucket.client.get_object(Bucket=NAME, Key=key)["Body"].read() for key in keys}
        return {key.removeprefix(f"{name}/"): hashlib.sha256(content).hexdigest() for key, content in contents.items()}


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with serve_bucket() as bucket:
        yield bucket


@pytest.fixture(params=["disk", "store"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Disk | Store:
    """Where caches lie."""
    return Disk(tmp_path) if request.param == "disk" else Store(request.getfixturevalue("bucket"))


def at_every_effect(effects: int, check: Callable[[int], None]) -> None:
    """Check the first, the second, ... of them, some at once."""
    assert effects > 4
    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(check, range(1, effects + 1)))


def scenes() -> list:
    """(where, scene), most of them slow: those that show no more than others do."""
    pairs = [(where, name) for where in ("disk", "store") for name in SCENES]
    return [pytest.param(*pair, marks=[] if pair in USUAL else pytest.mark.slow) for pair in pairs]


@pytest.mark.parametrize(("places", "name"), scenes(), indirect=["places"])
def test_killed_before_any_of_its_effects_the_same_command_gives_the_same_bytes(
    places: Disk | Store, name: str, caches: dict[str, Path], videos: Path
) -> None:
    scene = SCENES[name]

    def dies(effect: int) -> None:
        cache = words(videos, places.copy(caches[scene.before], f"{name} {effect}"))
        assert run(scene.verb, cache, effect=effect).code == -signal.SIGKILL
        assert_nothing_lies(cache)
        assert run(scene.verb, cache).code == 0
        assert places.digests(f"{name} {effect}") == wanted, effect

    with broken(videos / "b.mp4") if scene.broken else nullcontext():
        undisturbed = run(scene.verb, words(videos, places.copy(caches[scene.before], name)))
        assert undisturbed.code == 0
        wanted = places.digests(name)
        at_every_effect(undisturbed.effects, dies)


@pytest.mark.slow  # two writers of one shard race in tests/pipeline/test_shard.py
def test_stopped_before_any_of_its_effects_and_taken_for_dead_it_disturbs_nothing_when_it_goes_on(
    caches: dict[str, Path], videos: Path, tmp_path: Path
) -> None:
    """As an encoder that is cut off for a while, and whose shard Ray has given to another."""
    disk = Disk(tmp_path)

    def sleeps(effect: int) -> None:
        cache = words(videos, disk.copy(caches["planned"], str(effect)))
        asleep = Verb("encode", cache, effect=effect, what=signal.SIGSTOP)
        process = psutil.Process(asleep.process.pid)
        while process.status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        try:
            assert run("encode", cache).code == 0
        finally:
            process.resume()
        assert asleep.end().code == 0
        assert_nothing_lies(cache)
        assert disk.digests(str(effect)) == digests(caches["encoded"]), effect

    at_every_effect(run("encode", words(videos, disk.copy(caches["planned"], "undisturbed"))).effects, sleeps)


@pytest.mark.parametrize(("verb", "before"), [("plan", "scanned"), ("encode", "planned"), ("text", "encoded")])
def test_where_there_is_no_room_one_line_says_so_and_with_room_the_same_command_goes_on(
    verb: str, before: str, caches: dict[str, Path], videos: Path, tmp_path: Path
) -> None:
    disk = Disk(tmp_path)
    assert run(verb, words(videos, disk.copy(caches[before], "undisturbed"))).code == 0
    made = disk.digests("undisturbed").keys() - digests(caches[before]).keys()
    largest = max((tmp_path / "undisturbed" / name).stat().st_size for name in made)

    def fails(room: int) -> None:
        cache = words(videos, disk.copy(caches[before], str(room)))
        ended = run(verb, cache, room=room)
        assert ended.code == 1
        assert re.fullmatch(r"\S.*: cannot be written: File too large; make room .*", ended.refused)
        assert not list((tmp_path / str(room)).rglob("*.tmp"))
        assert_nothing_lies(cache)
        assert run(verb, cache).code == 0
        assert disk.digests(str(room)) == disk.digests("undisturbed")

    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(fails, (1, largest // 4, largest // 2, largest - 1)))


def test_decode_child_decode_task_and_encoder_are_killed_at_work_and_the_same_run_gives_the_same_bytes(
    local_ray: None, tmp_path: Path
) -> None:
    """A video keeps each of them waiting until it is dead; then it can be read."""
    for seed, name in enumerate(("first.mp4", "waits.mp4", "last.mp4")):
        write_mp4(tmp_path / "videos" / name, moving_bar(34, seed), 8)
    config, twin = (
        cache_config(tmp_path / "videos", tmp_path / name, "recipe.scenes=off", "encode.forecast=false")
        for name in ("killed", "undisturbed")
    )
    scan(config)
    plan(config)
    shutil.copytree(config.data.cache, twin.data.cache)
    assert encode(twin) == 0
    held = tmp_path / "videos" / "waits.mp4.hold"
    held.touch()
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(encode, config)
        try:
            child = who_waits(held)
            child.kill()
            child = who_waits(held, after=child)
            task = parent_of(child)
            assert title(task) == "ray::decode"
            task.kill()
            child = who_waits(held, after=child)
            [encoder] = [one for one in parent_of(parent_of(child)).children() if "ray::ShardEncoder" in title(one)]
            encoder.kill()
            who_waits(held, after=child)
        finally:
            held.unlink()
        assert running.result() == 0
    assert digests(config.cache.root) == digests(twin.cache.root)


def who_waits(held: Path, after: psutil.Process | None = None) -> psutil.Process:
    """The process that wants to read a video that is held, other than `after`."""
    earlier = after.pid if after else held.stat().st_mtime_ns
    while (pid := held.stat().st_mtime_ns) == earlier:
        time.sleep(0.01)
    return psutil.Process(pid)


def parent_of(process: psutil.Process) -> psutil.Process:
    parent = process.parent()
    assert parent is not None
    return parent


def title(process: psutil.Process) -> str:
    """What a process calls itself."""
    return " ".join(process.cmdline()).strip()


def assert_nothing_lies(words: list[str]) -> None:
    """At no time does a sidecar vouch for another tar, or an index point to what is not there."""
    cache = load_config(None, words).cache
    shards = list(shards_of(read_records(cache.plans(), Clip)))
    for column, index, row_type, member in (
        (cache.latents, cache.index, Sample, "latent"),
        (cache.text("bytes"), cache.text_index("bytes"), TextSample, "text"),
    ):
        for shard in shards:
            if footer := committed_footer(column, shard):
                assert hashlib.sha256(tar_path(column, shard).read_bytes()).hexdigest() == footer["tar_sha256"]
        for row in read_records([index], row_type) if index.exists() else []:
            where = (getattr(row, f"{member}_{fact}") for fact in ("offset", "bytes", "crc32c"))
            TarReader(column).read(row.shard, Member(*where))
