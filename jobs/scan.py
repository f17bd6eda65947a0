"""`scan`: source -> manifest and scenes. Files that are new or have changed are read on Ray; the others are known."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from jobs.config import RunConfig
from jobs.decode import NODE_LOST, PROCESS_LOST, reader_limits
from jobs.enter import enter
from jobs.events import Events
from jobs.placement import ask_decoding, least_cpus, room
from jobs.progress import progress, say
from jobs.read_files import read_files
from pipeline.errors import Refused
from pipeline.manifest import (
    Journal,
    Manifest,
    Outcome,
    Settings,
    State,
    read_scanned,
    state_of,
    update_manifest,
    write_scanned,
)
from pipeline.quarantine import too_many
from pipeline.recipe import read_recipe
from pipeline.records import Quarantined, Source
from pipeline.scan import drop_duplicates
from pipeline.sources import Found, list_sources

FILES_PER_TASK = 8  # at the most
TASKS_PER_CPU = 2  # one at work, one waiting
ATTEMPTS = 2  # at a file whose process dies


def scan(config: RunConfig) -> int:
    """List the source, read the files that are new or have changed, write the manifest.

    Returns how many inputs are in the quarantine. Refused, and the manifest left as it was, where so many files are bad
    or gone that it must be a disk or the network.
    """
    cache, data = config.cache, config.data
    settings = _settings(config)
    _check_scenes(config)
    found = list_sources(data.source, data.caption_from_name, data.images)
    before = read_scanned(cache, settings)
    journal = Journal(cache.scan_journal, settings)
    known = _known(found, before.outcomes() | journal.read())
    outcomes = known | _read_others(config, found, known, journal)
    manifest = _merge(before, found, outcomes)
    _check_losses(config, before, manifest)
    write_scanned(cache, manifest, settings)
    journal.remove()
    _report(config, manifest, found, len(known))
    return len(manifest.quarantined)


def _settings(config: RunConfig) -> Settings:
    return Settings(config.data.identity, config.recipe.scenes, config.recipe.scene_threshold)


def _check_scenes(config: RunConfig) -> None:
    """Refuse to look for other scenes than the cache's clips are cut by, before every video is read again."""
    if not config.cache.recipe.exists():
        return
    recipe = read_recipe(config.cache)
    planned = (recipe.scenes, recipe.scene_threshold)
    wanted = (config.recipe.scenes, config.recipe.scene_threshold)
    if planned != wanted:
        raise Refused(
            f"{config.cache.root}: its clips are cut by recipe.scenes and scene_threshold {planned}, the run wants "
            f"{wanted}; change them back, or use another data.cache"
        )


def _known(found: Found, outcomes: Mapping[State, Outcome]) -> dict[str, Outcome]:
    """By path, what is known of the files that are as they were; nothing of files that are not there."""
    there = [source for source in found.sources if source.size_bytes >= 0]
    return {source.path: outcomes[state_of(source)] for source in there if state_of(source) in outcomes}


def _read_others(config: RunConfig, found: Found, known: Mapping[str, Outcome], journal: Journal) -> dict[str, Outcome]:
    """Read the files that are not known; Refused as soon as too many are bad, for reading on would not help."""
    others = {source.path: source for source in found.sources if source.path not in known}
    bad = [*found.unusable, *(one for one in known.values() if isinstance(one, Quarantined))]
    num_files = len(known) + len(others) + len(found.unusable)
    outcomes: dict[str, Outcome] = {}
    _check_bad(config, bad, num_files)
    with progress("scan", len(others), "files", config, Events(config.cache.events, "scan")) as bar:
        for done in _read(config, list(others.values())):
            journal.append(one for one in done if not isinstance(one, Quarantined))
            outcomes |= {one.path if isinstance(one, Quarantined) else one[0].path: one for one in done}
            bad += [one for one in done if isinstance(one, Quarantined)]
            bar.advance(len(done), note=f"{len(bad)} unreadable" if bad else "")
            _check_bad(config, bad, num_files)
    return outcomes


def _check_bad(config: RunConfig, bad: Sequence[Quarantined], num_files: int) -> None:
    reasons = "; ".join(f"{one.path}: {one.reason}" for one in bad[:3])
    if len(bad) == num_files:
        raise Refused(f"data.source: none of the {num_files} videos can be read: {reasons}")
    if too_many(len(bad), num_files, config.data.max_bad_fraction):
        raise Refused(
            f"data.source: found {len(bad)} of {num_files} files that cannot be read, wanted at most "
            f"{config.data.max_bad_fraction:.0%} of them: {reasons}; mend what they share, or accept it with "
            f"data.max_bad_fraction=1"
        )


def _merge(before: Manifest, found: Found, outcomes: Mapping[str, Outcome]) -> Manifest:
    """The manifest of what is there now; caption and extra columns are always today's."""
    bad = [one for one in outcomes.values() if isinstance(one, Quarantined)]
    videos, scenes = [], {}
    for source in found.sources:
        outcome = outcomes[source.path]
        if not isinstance(outcome, Quarantined):
            video, scenes[video.id] = outcome
            videos.append(replace(video, caption=source.caption, extra=source.extra))
    kept, duplicates = drop_duplicates(videos)
    return update_manifest(before, [(video, scenes[video.id]) for video in kept], [*found.unusable, *bad, *duplicates])


def _check_losses(config: RunConfig, before: Manifest, manifest: Manifest) -> None:
    """Refuse what looks like a disk that is not mounted."""
    gone = [video for video in before.present if manifest.videos[video.id].removed]
    if too_many(len(gone), len(before.present), config.data.max_bad_fraction):
        raise Refused(
            f"data.source: {len(gone)} of {len(before.present)} known videos are not in {config.data.source} any more, "
            f"such as {gone[0].path}, wanted at most {config.data.max_bad_fraction:.0%} of them; bring them back, "
            f"or accept it with data.max_bad_fraction=1"
        )


def _report(config: RunConfig, manifest: Manifest, found: Found, num_known: int) -> None:
    present = manifest.present
    images = sum(video.num_frames == 1 for video in present)
    duplicates = sum(one.video != "" for one in manifest.quarantined)
    facts = {
        "videos": len(present) - images,
        "images": images,
        "unreadable": len(manifest.quarantined) - duplicates,
        "duplicates": duplicates,
        "removed": len(manifest.videos) - len(present),
        "not read again": num_known,
        "hours": round(sum(video.duration_s for video in present) / 3600, 3),
    }
    Events(config.cache.events, "scan").write("done", **facts, passed_over=found.passed_over)
    counts = ", ".join(f"{number} {name}" for name, number in facts.items())
    others = f"; passed over {len(found.passed_over)} files that are none by name" if found.passed_over else ""
    say(f"scan: {counts}{others} -> {config.cache.manifest}")


@dataclass(frozen=True)
class _Task:
    """Files that one Ray task reads, and which attempt that is."""

    sources: tuple[Source, ...]
    attempt: int


def _read(config: RunConfig, sources: Sequence[Source]) -> Iterator[list[Outcome]]:
    """What reading each file comes to, some files at a time, as they are done; Ray starts where there are any."""
    if not sources:
        return
    found = enter(config, "scan", num_cpus=least_cpus(config))  # `run` encodes on the same Ray
    ask = ask_decoding(config, found, "scan")
    read, settings, limits = read_files.options(**ask.options), _settings(config), reader_limits(config.data)
    slots = TASKS_PER_CPU * max(1, room(ask, found.possible))
    num_files = max(1, min(FILES_PER_TASK, len(sources) // slots))
    waiting = deque(_Task(tuple(sources[at : at + num_files]), 1) for at in range(0, len(sources), num_files))
    running: dict[Any, _Task] = {}
    try:
        while waiting or running:
            while waiting and len(running) < slots:
                task = waiting.popleft()
                running[read.remote(task.sources, settings, limits)] = task
            [done], _ = ray.wait(list(running), num_returns=1)
            task = running.pop(done)
            try:
                yield ray.get(done)
            except PROCESS_LOST as error:
                if isinstance(error, NODE_LOST):
                    waiting.append(task)
                    continue
                if task.attempt < ATTEMPTS:
                    waiting.extendleft(_Task((source,), task.attempt + 1) for source in task.sources)
                    continue
                reason = f"the process that read it died: {type(error).__name__}"
                yield [Quarantined(source.path, "scan", reason, task.attempt) for source in task.sources]
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
