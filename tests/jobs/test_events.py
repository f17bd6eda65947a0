"""What happened is told by lines, in one file on a disk, and in a file for each run in an object store."""

import json
from pathlib import Path

import pytest

from jobs import events
from jobs.events import Events, NewEvents, read_events
from pipeline.location import Place, place_of
from pipeline.storage import list_files, size_of
from tests.object_store import Bucket


@pytest.fixture(params=["disk", "store"])
def place(request: pytest.FixtureRequest, store: Bucket, tmp_path: Path) -> Place:
    return place_of(tmp_path if request.param == "disk" else store.uri(tmp_path.name)) / "events.jsonl"


def told(place: Place) -> list[tuple]:
    return [(one["verb"], one["event"], one.get("shard")) for one in read_events(place)]


def test_what_is_told_can_be_read(place: Place) -> None:
    assert read_events(place) == []
    scan, encode = Events(place, "scan"), Events(place, "encode")
    encode.write("start", shard="ä")
    scan.write("done", videos=3)
    encode.write("done")
    assert told(place) == [("encode", "start", "ä"), ("scan", "done", None), ("encode", "done", None)]


def test_events_that_follow_each_other_are_there_in_the_end(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PUBLISH_EVERY_S", float("inf"))
    encode = Events(place, "encode")
    for number in range(5):
        encode.write("shard", often=True, shard=number)
    encode.write("done")
    assert [one[2] for one in told(place)] == [0, 1, 2, 3, 4, None]


def test_a_store_is_not_given_every_line_at_once(store: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Events(place_of(store.uri("often")) / "events.jsonl", "encode")
    encode.write("start")
    store.door.requests.clear()
    for number in range(50):
        encode.write("shard", often=True, shard=number)
    assert len(store.asked("PUT")) <= 1
    encode.write("done")
    assert len(store.asked("PUT")) <= 2


def test_a_long_log_in_a_store_is_put_a_part_at_a_time(store: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "FILE_BYTES", 1000)
    place = place_of(store.uri("long")) / "events.jsonl"
    encode = Events(place, "encode")
    for number in range(50):
        encode.write("shard", shard=number)
    assert [one["shard"] for one in NewEvents(place).read()] == list(range(50))
    sizes = [size_of(part) or 0 for part in list_files(place.parent / "events", ".jsonl")]
    assert len(sizes) > 3 and max(sizes) < 1200


def test_a_line_that_a_crash_left_torn_is_passed_over(tmp_path: Path) -> None:
    place = tmp_path / "events.jsonl"
    Events(place, "encode").write("done")
    with open(place, "a") as file:
        file.write('{"time": "20')
    assert told(place) == [("encode", "done", None)]
    assert [json.loads(place.read_text().splitlines()[0])["event"]] == ["done"]


def test_what_is_new_is_read_once(place: Place) -> None:
    new = NewEvents(place)
    scan, encode = Events(place, "scan"), Events(place, "encode")
    assert list(new.read()) == []
    scan.write("start")
    assert [one["verb"] for one in new.read()] == ["scan"]
    encode.write("start")
    scan.write("done")
    assert sorted((one["verb"], one["event"]) for one in new.read()) == [("encode", "start"), ("scan", "done")]
    assert list(new.read()) == []


def test_a_long_log_is_read_a_block_at_a_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "BLOCK_BYTES", 200)  # of a line or two
    encode = Events(place, "encode")
    for number in range(20):
        encode.write("shard", shard=number)
    assert [one["shard"] for one in NewEvents(place).read()] == list(range(20))


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    place = tmp_path / "events.jsonl"
    new, line = NewEvents(place), '{"time": "2025", "verb": "scan", "event": "done"}\n'
    place.write_text(line[:20])
    assert list(new.read()) == []
    place.write_text(line)
    assert len(list(new.read())) == 1


def test_messages_of_other_processes_are_told_while_a_block_runs(tmp_path: Path) -> None:
    path, found = tmp_path / "events.jsonl", []
    other = Events(path, "train")
    other.write("waiting", message="before")
    with events.telling(path, {"waiting"}, found.append):
        other.write("waiting", message="one")
        other.write("damaged", message="of another kind")
        with open(path, "a", encoding="utf-8") as file:
            file.write('{"event": "waiting", "message": "torn')
    assert found == ["one"]
