"""`scan`: source -> manifest."""

import os
from dataclasses import replace
from pathlib import Path

from jobs.config import RunConfig
from jobs.progress import Events, progress, say
from pipeline.cache import Cache
from pipeline.errors import BadVideo, Refused
from pipeline.quarantine import set_aside
from pipeline.records import Quarantined, Source, Video
from pipeline.scan import drop_duplicates, list_sources, probe
from pipeline.tables import read_records, write_records


def scan(config: RunConfig) -> int:
    """List the source, read the facts of every video that is new or changed, write the manifest.

    Returns how many inputs are in the quarantine.
    """
    cache = config.cache
    events = Events(cache.events, "scan")
    sources, passed_over = list_sources(Path(config.data.source), config.data.caption_from_name)
    known = _known(cache)
    videos: list[Video] = []
    bad: list[Quarantined] = []
    with progress("scan", len(sources), "videos") as bar:
        for source in sources:
            try:
                videos.append(_facts(source, known))
            except BadVideo as error:
                bad.append(Quarantined(source.path, "scan", str(error), 1))
            bar.advance()
    kept, duplicates = drop_duplicates(videos)
    if not kept:
        reasons = "; ".join(f"{one.path}: {one.reason}" for one in bad[:3])
        raise Refused(f"data.source: none of the {len(sources)} videos can be read: {reasons}")
    set_aside(cache, "scan", bad + duplicates)
    write_records(cache.manifest, Video, kept)
    events.write("done", videos=len(kept), bad=len(bad), duplicates=len(duplicates), passed_over=passed_over)
    others = f"; passed over {len(passed_over)} files that are not videos by name" if passed_over else ""
    say(f"scan: {len(kept)} videos, {len(bad)} unreadable, {len(duplicates)} duplicates{others} -> {cache.manifest}")
    return len(bad) + len(duplicates)


def _known(cache: Cache) -> dict[tuple[str, int, int], Video]:
    """What the last manifest says of files by (path, size, modification time)."""
    videos = read_records([cache.manifest], Video) if cache.manifest.exists() else []
    return {(video.path, video.size_bytes, video.mtime_ns): video for video in videos}


def _facts(source: Source, known: dict[tuple[str, int, int], Video]) -> Video:
    """The facts of a file: as last time where it is unchanged, else read anew; the caption always as it is now."""
    try:
        status = os.stat(source.path)
    except OSError:
        return probe(source)  # which says what is wrong with it
    before = known.get((source.path, status.st_size, status.st_mtime_ns))
    return replace(before, caption=source.caption) if before else probe(source)
