"""The quarantine says of every stage what it said last."""

from pathlib import Path

from jobs.plan import write_tombstones
from pipeline.cache import Cache
from pipeline.quarantine import LEAST_BAD, read_quarantine, set_aside, too_many
from pipeline.records import Quarantined, Tombstone

BAD = Quarantined("/b.mp4", "scan", "no video stream", 1)
WORSE = Quarantined("/a.mp4", "decode", "damaged: 3 of 90 frames can be decoded", 2)


def test_a_new_cache_has_nothing_in_quarantine(tmp_path: Path) -> None:
    assert read_quarantine(Cache(tmp_path)) == []


def test_all_stages_are_read_together_by_path(tmp_path: Path) -> None:
    set_aside(Cache(tmp_path), "64x64/0000-000000", [WORSE])
    set_aside(Cache(tmp_path), "64x64/0000-000001", [])
    set_aside(Cache(tmp_path), "scan", [BAD])
    assert read_quarantine(Cache(tmp_path)) == [WORSE, BAD]


def test_a_stage_that_runs_again_replaces_what_it_said(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    set_aside(cache, "scan", [BAD, WORSE])
    set_aside(cache, "scan", [BAD])
    assert read_quarantine(cache) == [BAD]


def test_a_stage_that_goes_well_leaves_no_file(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    set_aside(cache, "plan", [WORSE])
    set_aside(cache, "scan", [BAD])
    set_aside(cache, "scan", [])
    assert read_quarantine(cache) == [WORSE]
    assert cache.quarantines() == [cache.quarantine("plan")]


def test_nobody_waits_for_a_video_that_has_left(tmp_path: Path) -> None:
    cache, gone = Cache(tmp_path), Quarantined("/c.mp4", "decode", "damaged", 2, video="c")
    set_aside(cache, "64x64/0000-000000", [gone])
    write_tombstones(cache, [Tombstone("c", "/c.mp4")])
    assert read_quarantine(cache) == []
    write_tombstones(cache, [])
    assert read_quarantine(cache) == [gone]


def test_a_share_of_bad_videos_is_too_many_only_where_they_are_many() -> None:
    assert not too_many(LEAST_BAD - 1, LEAST_BAD - 1, 0.1)
    assert too_many(LEAST_BAD, LEAST_BAD, 0.1)
    assert not too_many(LEAST_BAD, 10 * LEAST_BAD, 0.1)
    assert too_many(LEAST_BAD + 1, 10 * LEAST_BAD, 0.1)
    assert not too_many(10**6, 10**6, 1.0)
