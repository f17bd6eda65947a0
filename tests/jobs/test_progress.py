"""Progress where there is no terminal, and events for programs."""

import json
from pathlib import Path

import pytest

from jobs.config import RunConfig
from jobs.events import Events, read_events
from jobs.progress import printable_log, progress, say, show_quarantine
from pipeline.records import Quarantined


def test_without_a_terminal_the_end_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("encode", 3, "shards", RunConfig()) as bar:
        for _ in range(3):
            bar.advance(note="fine")
    assert capsys.readouterr().out == "encode: 3/3 shards fine\n"


def test_the_same_place_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train", 2, "steps", RunConfig()) as bar:
        bar.move_to(2)
        bar.move_to(2)
    assert capsys.readouterr().out == "train: 2/2 steps\n"


def test_a_log_is_told_at_the_beginning_and_the_end_and_every_ten_seconds_between(tmp_path: Path) -> None:
    place = tmp_path / "events.jsonl"
    with progress("scan", 100, "files", RunConfig(), Events(place, "scan")) as bar:
        for _ in range(100):
            bar.advance()
    told = [(event["done"], event["total"], event["unit"]) for event in read_events(place)]
    assert told == [(0, 100, "files"), (100, 100, "files")]
    with progress("scan", 0, "files", RunConfig(), Events(place, "scan")):
        pass
    assert len(read_events(place)) == 2


def test_events_are_appended_as_json_lines(tmp_path: Path) -> None:
    Events(tmp_path / "new" / "events.jsonl", "scan").write("done", videos=3)
    Events(tmp_path / "new" / "events.jsonl", "plan").write("done", clips=[1, 2])
    lines = [json.loads(line) for line in (tmp_path / "new" / "events.jsonl").read_text().splitlines()]
    assert [(line["verb"], line["event"]) for line in lines] == [("scan", "done"), ("plan", "done")]
    assert (lines[0]["videos"], lines[1]["clips"]) == (3, [1, 2])
    assert lines[0]["time"] <= lines[1]["time"]


def test_names_that_look_like_markup_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    show_quarantine([Quarantined("/v/[red]a[/].mp4", "scan", "damaged [or not]", 1)])
    told = capsys.readouterr().out
    assert "[red]a[/].mp4" in told and "damaged [or not]" in told


@pytest.mark.parametrize("evil", ["\x1b]0;title\x07", "\x1b[2J", "\x9b2J", "a\rb", "\u202egnp.exe", "\x7f"])
def test_what_a_terminal_would_obey_is_shown(evil: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(f"caption: {evil} ünï 🎬\n\tand more")
    show_quarantine([Quarantined(f"/v/{evil}.mp4", "scan", f"no {evil}", 1)])
    told = capsys.readouterr().out
    assert not set(told) & set("\x1b\x07\x9b\r\u202e\x7f")
    assert ascii(evil)[1:-1] in told and "ünï 🎬\n" in told


def test_a_log_keeps_its_colours_and_nothing_else_that_a_terminal_obeys() -> None:
    log = "\x1b[36m(Encoder)\x1b[0m 5%\r10%\na\tb \x1b]0;title\x07 \x1b[2J \u202eend\n"
    shown = "\x1b[36m(Encoder)\x1b[0m 5%\r10%\na\tb \\x1b]0;title\\x07 \\x1b[2J \\u202eend\n"
    assert printable_log(log) == shown
