"""The manifest: what scans found out about files, so that none is read twice and what has left is not forgotten."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby

from pipeline.cache import Cache
from pipeline.errors import Refused
from pipeline.identity import Identity
from pipeline.location import Place
from pipeline.quarantine import set_aside
from pipeline.recipe import Scenes
from pipeline.records import Quarantined, Scene, Source, Video
from pipeline.storage import publish, sweep_folder
from pipeline.tables import read_metadata, read_records, write_records

STAGE = "scan"  # whose quarantine is kept with the manifest

Readable = tuple[Video, tuple[Scene, ...]]
Outcome = Readable | Quarantined  # of reading a file
State = tuple[str, int, int]  # path, size, time: a file that has all three as before is as before


def state_of(file: Source | Video | Quarantined) -> State:
    return file.path, file.size_bytes, file.mtime_ns


@dataclass(frozen=True)
class Settings:
    """What decides the ids of videos, and their scenes."""

    identity: Identity
    scenes: Scenes
    threshold: float | None

    def footer(self) -> dict[str, str]:
        return {name: str(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Manifest:
    """Videos and their scenes by video id, and the files that gave none."""

    videos: dict[str, Video] = field(default_factory=dict)
    scenes: dict[str, tuple[Scene, ...]] = field(default_factory=dict)
    quarantined: tuple[Quarantined, ...] = ()

    @property
    def present(self) -> list[Video]:
        """The videos that have not left the source."""
        return [video for video in self.videos.values() if not video.removed]

    def outcomes(self) -> dict[State, Outcome]:
        """What reading each file came to."""
        found: dict[State, Outcome] = {}
        for bad in self.quarantined:
            if not bad.video:
                found[state_of(bad)] = bad
            elif bad.video in self.scenes:  # a duplicate: what is known of its like is known of it
                video = replace(self.videos[bad.video], path=bad.path, mtime_ns=bad.mtime_ns)
                found[state_of(bad)] = video, self.scenes[bad.video]
        known = [video for video in self.videos.values() if video.id in self.scenes]
        return found | {state_of(video): (video, self.scenes[video.id]) for video in known}


def read_scanned(cache: Cache, settings: Settings) -> Manifest:
    """What the last scan wrote; without scenes, which makes files be read again, where its settings were others.

    Refused where videos have ids of another kind: plan and shards name them by these.
    """
    if not cache.manifest.exists() or not cache.scenes.exists():
        return Manifest()
    before = read_metadata(cache.scenes)
    if before.get("identity") != settings.identity:
        raise Refused(
            f"data.identity: found {before.get('identity')} in {cache.manifest}, wanted {settings.identity}; "
            f"set it back, or use another data.cache"
        )
    videos = {video.id: video for video in read_records([cache.manifest], Video)}
    if before != settings.footer():
        return Manifest(videos)
    scenes = groupby(read_records([cache.scenes], Scene), key=lambda scene: scene.video)
    bad = cache.quarantine(STAGE)
    return Manifest(
        videos,
        {video: tuple(those) for video, those in scenes},
        tuple(read_records([bad], Quarantined)) if bad.exists() else (),
    )


def write_scanned(cache: Cache, manifest: Manifest, settings: Settings) -> None:
    """The manifest last: with it the scan is done."""
    ids = sorted(manifest.videos)
    set_aside(cache, STAGE, sorted(manifest.quarantined, key=lambda one: (one.path, one.reason)))
    scenes = (scene for video in ids for scene in manifest.scenes.get(video, ()))
    write_records(cache.scenes, Scene, scenes, settings.footer())
    write_records(cache.manifest, Video, (manifest.videos[video] for video in ids))


def update_manifest(before: Manifest, found: Iterable[Readable], quarantined: Sequence[Quarantined]) -> Manifest:
    """The manifest of what is found now; videos of `before` that are no longer found stay in it as removed."""
    scenes = dict(before.scenes)
    videos = {video.id: replace(video, removed=True) for video in before.videos.values()}
    for video, those in found:
        videos[video.id] = replace(video, removed=False)
        scenes[video.id] = those
    return Manifest(videos, scenes, tuple(quarantined))


class Journal:
    """The files that a scan could read so far: a scan that is stopped goes on from there.

    Parts numbered without gaps, each a file of JSON lines, so that it can also lie where nothing can be appended to.
    """

    def __init__(self, folder: Place, settings: Settings) -> None:
        self.folder = folder
        self.head = json.dumps(settings.footer())
        self.num_parts = 0

    def read(self) -> dict[State, Readable]:
        """What it says; it is removed where other settings wrote it."""
        found: dict[State, Readable] = {}
        while self._part(self.num_parts).exists():
            head, *lines = self._part(self.num_parts).read_text().splitlines()
            self.num_parts += 1
            if head != self.head:
                self.remove()
                return {}
            found |= {state_of(video): (video, scenes) for video, scenes in map(_from_json, lines)}
        return found

    def append(self, read: Iterable[Readable]) -> None:
        lines = [self.head, *(_to_json(video, scenes) for video, scenes in read)]
        publish(self._part(self.num_parts), "".join(f"{line}\n" for line in lines).encode())
        self.num_parts += 1

    def remove(self) -> None:
        """The last part first: a rest of it has no gaps."""
        sweep_folder(self.folder)
        while self._part(self.num_parts).exists():
            self.num_parts += 1
        for number in reversed(range(self.num_parts)):
            self._part(number).unlink(missing_ok=True)
        self.num_parts = 0

    def _part(self, number: int) -> Place:
        return self.folder / f"{number:06d}.jsonl"


def _to_json(video: Video, scenes: Iterable[Scene]) -> str:
    return json.dumps([asdict(video), [asdict(scene) for scene in scenes]])


def _from_json(line: str) -> Readable:
    video, scenes = json.loads(line)
    return Video(**video), tuple(Scene(**scene) for scene in scenes)
