"""A source -> a row of the manifest: what its container says, what it is known by, and where it cuts."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from pipeline.container import read_facts
from pipeline.errors import BadVideo
from pipeline.files import local_copy
from pipeline.identity import ID, Identity, content_id
from pipeline.recipe import Scenes
from pipeline.records import Quarantined, Scene, Source, Video
from pipeline.sandbox import Sandbox
from pipeline.scenes import find_scenes

READ_BYTES_PER_S = 1e8  # a file is given as long as a video that is read at this rate when it is played


def probe(source: Source, identity: Identity) -> Video:
    """Read a local file's facts; BadVideo with a plain reason where it is not a video that can be read."""
    path = Path(source.path)
    facts = read_facts(path)
    return Video(
        id=content_id(path, identity),
        path=source.path,
        caption=source.caption,
        size_bytes=source.size_bytes,
        mtime_ns=source.mtime_ns,
        extra=source.extra,
        **asdict(facts),
    )


def examine(
    source: Source, identity: Identity, scenes: Scenes, threshold: float | None, sandbox: Sandbox
) -> tuple[Video, list[Scene]]:
    """A file, local or not -> its facts and scenes, both read in the sandbox: the second knows how long it lasts.

    BadVideo where it cannot be used, OSError where it cannot be reached.
    """
    with local_copy(source.path) as path:
        here = replace(source, path=str(path))
        video = sandbox.call(probe, here, identity, lasts_s=path.stat().st_size / READ_BYTES_PER_S)
        if not ID.fullmatch(video.id):  # it becomes the name of files
            raise BadVideo(f"its decoder answers with {video.id[:100]!r} as its id")
        found = sandbox.call(find_scenes, path, video, scenes, threshold, lasts_s=video.duration_s)
    video = replace(video, **asdict(source))  # what the list says of it counts, and not what its decoder says
    return video, [replace(scene, video=video.id) for scene in found]


def why_not(source: Source, error: BadVideo | OSError) -> Quarantined:
    """What the quarantine keeps of a file that `examine` cannot read.

    Of one that cannot be reached it keeps no size and time: the next scan tries it again, changed or not.
    """
    if isinstance(error, BadVideo):
        return replace(_quarantined(source, str(error)), stderr=error.stderr)
    if isinstance(error, FileNotFoundError):
        return Quarantined(source.path, "scan", "file not found", 1)
    if isinstance(error, PermissionError):
        return Quarantined(source.path, "scan", "permission to read it is denied", 1)
    return Quarantined(source.path, "scan", f"cannot be read: {error.strerror or error}", 1)


def _quarantined(file: Source | Video, reason: str) -> Quarantined:
    """A file as it is, so that it is known again."""
    return Quarantined(file.path, "scan", reason, 1, size_bytes=file.size_bytes, mtime_ns=file.mtime_ns)


def drop_duplicates(videos: Iterable[Video]) -> tuple[list[Video], list[Quarantined]]:
    """Videos sorted by id, one for each content, and the others with the reason; the first path and caption win."""
    kept: dict[str, Video] = {}
    dropped = []
    for video in sorted(videos, key=lambda video: (video.path, video.caption, video.extra)):
        first = kept.setdefault(video.id, video)
        if first is not video:
            again = first.path == video.path
            reason = "named more than once; its first caption is used" if again else f"same content as {first.path}"
            dropped.append(replace(_quarantined(video, reason), video=video.id))
    return sorted(kept.values(), key=lambda video: video.id), dropped
