"""Sources are found in folders and tables, here and in object stores, each with its caption and its file's state."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import Refused
from pipeline.records import Source
from pipeline.sources import list_sources
from tests.object_store import Bucket


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def captions(source: Path | str, **options: bool) -> list[str]:
    return [one.caption for one in list_sources(str(source), **options).sources]


def write_table(path: Path, rows: list[dict]) -> None:
    if path.suffix == ".csv":
        names = list(rows[0])
        lines = [",".join(names)] + [",".join(f'"{row[name]}"' for name in names) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)


def test_a_folder_gives_its_videos_and_names_what_it_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "b.MP4", "a/c.mkv", "a.webm", "notes.pdf", "a/poster.jpg", "a.txt")
    found = list_sources(str(tmp_path), images=False)
    assert [one.path for one in found.sources] == [str(tmp_path / name) for name in ("a.webm", "a/c.mkv", "b.MP4")]
    assert (found.passed_over, found.unusable) == (("a/poster.jpg", "notes.pdf"), ())


def test_images_are_sources_where_they_are_asked_for(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.PNG", "c.jpeg", "d.svg")
    found = list_sources(str(tmp_path), images=True)
    assert [Path(one.path).name for one in found.sources] == ["a.mp4", "b.PNG", "c.jpeg"]
    assert found.passed_over == ("d.svg",)


def test_the_text_beside_a_video_is_its_caption(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4", "d.v2.mp4", "e/a.mp4")
    (tmp_path / "a.txt").write_text(" Ein Vögelchen \n", encoding="utf-8")
    (tmp_path / "c.txt").write_text("")
    (tmp_path / "d.v2.txt").write_text("dots")
    assert captions(tmp_path) == ["Ein Vögelchen", "", "", "dots", ""]


def test_a_name_is_a_caption_only_when_asked_for_and_where_no_text_is(tmp_path: Path) -> None:
    touch(tmp_path, "a_red-square.mp4", "b_blue.mp4")
    (tmp_path / "b_blue.txt").write_text("a blue circle")
    assert captions(tmp_path, caption_from_name=True) == ["a red square", "a blue circle"]
    assert captions(tmp_path) == ["", "a blue circle"]


def test_a_source_states_its_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    status = (tmp_path / "a.mp4").stat()
    wanted = Source(str(tmp_path / "a.mp4"), "", "{}", 1, status.st_mtime_ns)
    assert list_sources(str(tmp_path)).sources == (wanted,)
    write_table(tmp_path / "t.csv", [{"path": "a.mp4", "caption": ""}, {"path": "gone.mp4", "caption": ""}])
    assert list_sources(str(tmp_path / "t.csv")).sources == (wanted, Source(str(tmp_path / "gone.mp4"), ""))


def test_one_bad_name_or_caption_costs_one_video(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4", os.fsdecode(b"caf\xe9.mp4"), os.fsdecode(b"caf\xe9.pdf"))
    (tmp_path / "b.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "c.txt").symlink_to(tmp_path / "nowhere.txt")
    found = list_sources(str(tmp_path))
    assert [one.path for one in found.sources] == [str(tmp_path / "a.mp4")]
    text = tmp_path / "b.txt"
    name, illegible, missing = found.unusable
    assert (name.path, name.reason) == (f"{tmp_path}/caf\\udce9.mp4", "its name is not UTF-8; rename it")
    assert (illegible.path, missing.path) == (str(tmp_path / "b.mp4"), str(tmp_path / "c.mp4"))
    assert illegible.reason.startswith(f"its caption {text}: not UTF-8") and "save it as UTF-8" in illegible.reason
    assert missing.reason == f"its caption {tmp_path / 'c.txt'} cannot be read: No such file or directory"


@pytest.mark.parametrize("column", ["caption", "text"])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_table_gives_paths_from_its_own_folder(tmp_path: Path, ending: str, column: str) -> None:
    rows = [
        {"path": "deep/b.mp4", column: "zwei, über", "score": 5.5, "kept": True},
        {"path": "/far/a.mp4", column: "", "score": 4.5, "kept": False},
    ]
    write_table(tmp_path / f"table.{ending}", rows)
    assert list_sources(str(tmp_path / f"table.{ending}")).sources == (
        Source("/far/a.mp4", "", '{"kept": false, "score": 4.5}'),
        Source(str(tmp_path / "deep/b.mp4"), "zwei, über", '{"kept": true, "score": 5.5}'),
    )


def test_a_second_column_of_text_is_carried_along(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", [{"path": "a.mp4", "caption": "short", "text": "12"}])
    assert list_sources(str(tmp_path / "t.csv")).sources == (
        Source(str(tmp_path / "a.mp4"), "short", '{"text": "12"}'),
    )


def test_captions_may_be_missing_here_and_there(tmp_path: Path) -> None:
    write_table(tmp_path / "t.jsonl", [{"path": "a.mp4", "caption": None}, {"path": "b.mp4", "caption": 7}])
    assert captions(tmp_path / "t.jsonl") == ["", "7"]


def test_rows_come_by_path_whatever_their_order(tmp_path: Path) -> None:
    rows = [{"path": f"{number % 3}.mp4", "caption": str(number)} for number in range(9)]
    write_table(tmp_path / "t.csv", rows)
    found = list_sources(str(tmp_path / "t.csv"))
    write_table(tmp_path / "t.csv", rows[::-1])
    assert list_sources(str(tmp_path / "t.csv")) == found


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_table_without_captions_is_refused_by_row(tmp_path: Path, ending: str) -> None:
    write_table(tmp_path / f"table.{ending}", [{"path": "a.mp4", "title": "x"}])
    with pytest.raises(Refused, match=rf"table\.{ending}, row 1: found .*'title'.*, wanted a path and a caption"):
        list_sources(str(tmp_path / f"table.{ending}"))


def test_a_row_of_another_scheme_or_half_a_character_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", [{"path": "http://host/a.mp4", "caption": ""}])
    with pytest.raises(Refused, match="http://host/a.mp4: found http://host, wanted a local path"):
        list_sources(str(tmp_path / "t.csv"))
    (tmp_path / "t.jsonl").write_text('{"path": "a.mp4", "caption": "\\ud83d"}\n')
    with pytest.raises(Refused, match="row 1: found half a surrogate pair"):
        list_sources(str(tmp_path / "t.jsonl"))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"nowhere not found"):
        list_sources(str(tmp_path / "nowhere"))
    touch(tmp_path, "table.xlsx", "empty/readme.md")
    with pytest.raises(Refused, match=r"table\.xlsx is neither a folder nor"):
        list_sources(str(tmp_path / "table.xlsx"))
    with pytest.raises(Refused, match=r"no videos in .*empty; found 1 other files, wanted files ending in"):
        list_sources(str(tmp_path / "empty"))
    (tmp_path / "none.csv").write_text("path,caption\n")
    with pytest.raises(Refused, match=r"no videos in .*none\.csv"):
        list_sources(str(tmp_path / "none.csv"))
    with pytest.raises(Refused, match=r"a\.csv cannot be read: Not a directory"):
        list_sources(str(tmp_path / "table.xlsx" / "a.csv"))


def test_a_folder_of_a_bucket_is_like_any_other(store: Bucket) -> None:
    for key in ("v/a.mp4", "v/deep/b c.mov", "v/notes.pdf", "v/still.png"):
        store.put(key, b"xyz")
    store.put("v/deep/b c.txt", "über".encode())
    found = list_sources(store.uri("v"))
    assert [(one.path, one.caption, one.size_bytes) for one in found.sources] == [
        (store.uri("v/a.mp4"), "", 3),
        (store.uri("v/deep/b c.mov"), "über", 3),
        (store.uri("v/still.png"), "", 3),
    ]
    assert found.passed_over == ("notes.pdf",)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_table_in_a_bucket_is_like_any_other(store: Bucket, tmp_path: Path, ending: str) -> None:
    video = store.put("t/deep/a.mp4", b"xyz")
    rows = [{"path": "deep/a.mp4", "caption": "a"}, {"path": video, "caption": "b"}, {"path": "no.mp4", "caption": ""}]
    touch(tmp_path, "here.mp4")
    write_table(tmp_path / f"t.{ending}", [*rows, {"path": str(tmp_path / "here.mp4"), "caption": "c"}])
    found = list_sources(store.put(f"t/t.{ending}", tmp_path / f"t.{ending}")).sources
    assert [(one.path, one.caption, one.size_bytes) for one in found] == [
        (str(tmp_path / "here.mp4"), "c", 1),
        (video, "a", 3),
        (video, "b", 3),
        (store.uri("t/no.mp4"), "", -1),
    ]


def test_a_bucket_that_is_not_there_is_refused(store: Bucket) -> None:
    with pytest.raises(Refused, match="not found; give a folder of videos"):
        list_sources(store.uri("none"))
    with pytest.raises(Refused, match="not found"):
        list_sources(store.uri().replace("videos", "no-bucket"))
