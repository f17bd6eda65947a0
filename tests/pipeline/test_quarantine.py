"""The quarantine says of every stage what it said last."""

from pathlib import Path

from pipeline.cache import Cache
from pipeline.quarantine import read_quarantine, set_aside
from pipeline.records import Quarantined

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
